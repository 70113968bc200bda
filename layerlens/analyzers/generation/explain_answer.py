"""Which part of the context made this answer."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.registry import METHODS
from layerlens.errors import InputError, OptionError, check_count, check_seed, choose
from layerlens.inputs.inputs import Forward
from layerlens.progress import counting, track
from layerlens.results import AnswerAttribution
from layerlens.results.values.answer_attribution import numbered
from layerlens.signatures import public

from .answer_scores import AnswerScorer, answer_texts
from .prompts import Prompt, Span, read_prompt, with_sources
from .source_regression import fit, masks
from .text_parts import Range, sentences, words
from .token_values import Shares, token_shares

OWN = ("auto", "relevance", "leave_one_out", "ablation", "attention")
FAMILIES = ("gradient", "path")
PARTS = ("answer", "sentence", "word", "token")
CERTAIN = 1e-6
"""Least log-probability below 0 whose logit is taken: probabilities this near to 1 are rounding."""


@public
def explain_answer(
    model: nn.Module,
    prompt: str | Sequence[Any],
    answer: str | Sequence[str] | None = None,
    *,
    sources: str | Sequence[Span] = "sentence",
    parts: Literal["answer", "sentence", "word", "token"] = "answer",
    by: str = "auto",
    passes: int = 12,
    until: float | None = None,
    context: str | Sequence[str] | None = None,
    max_new_tokens: int = 100,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    progress: bool | None = None,
    tokenizer: Callable[..., Any] | None = None,
    forward: Forward | None = None,
) -> AnswerAttribution | list[AnswerAttribution]:
    """Measure what each source in a prompt is worth to each part of the answer of a language model.

    The score is log p(part | prompt, parts before it), the sum over its tokens, in nats; a value above 0 says that the
    source makes the part likelier. With s the sources that stay, the methods are:

    - `"leave_one_out"`: log p with all sources minus log p without this one. One pass for each source, and one more.
    - `"ablation"`: a regression of the logit of p on s over random prompts that each keep about half of the sources
      (ContextCite, Cohen-Wang et al. 2024). `passes` in all.
    - `"relevance"`: layer-wise relevance propagation from log p to the tokens of the prompt, by the rulebook that
      `relevance` takes for the model. With `rest` it adds up to log p. One forward pass, and a sweep (2) for each part.
    - `"auto"`: relevance, and the regression of a few ablations that starts from it.
    - `"attention"`: the mean attention of all heads and layers to the source, as a reference; 2 passes.
    - a gradient or path method of `lens.saliency`, such as `"input_x_gradient"` or `"integrated_gradients"`.

    A source is taken out of the text, with the white space before it, and the tokenizer reads the rest again. The
    answer stays the same, token by token. A backward pass counts as two forward passes.

    Args:
        prompt: a text, as the model reads it; or the messages of a chat, `[{"role": "user", "content": ...}]`, which
            the chat template of the tokenizer puts together (its own words are not sources, and no source is in two
            messages). Or a list of those, for one result each.
        answer: the answer to explain, as it continues the prompt: with its space. None lets the model write it, by
            greedy decoding. For a list of prompts a list.
        sources: `"sentence"` (also items of lists, lines of code), `"word"`, `"token"`; or parts of the prompt, each as
            a text that is there once or as (start, stop) of its characters.
        parts: what of the answer is explained: `"answer"` as a whole, or each `"sentence"`, `"word"` or `"token"`.
        by: the method.
        passes: budget of `"auto"` and `"ablation"`; others take what they take.
        until: standard error, in the units of the values, at which these two stop early: when the mean over all values
            is below it. None takes all passes.
        context: text that the sources lie in; the rest of the prompt stays as it is. It is put before the prompt (or
            before the last message) with an empty line, unless the prompt has it already. For a list of prompts a list.
        max_new_tokens: most tokens of an answer that the model writes.
        batch_size: prompts in one pass; `"auto"` takes about 2,048 tokens on a processor and 32,768 on other devices.
        tokenizer: as in `Lens(model, tokenizer=...)`.

    Returns:
        An `AnswerAttribution`; for a list of prompts a list of them.

    Raises:
        InputError: when there is no tokenizer, or the prompt, answer, context or sources cannot be read.
        OptionError: when an option is unknown or out of range.
        TargetError: when the model returns no logits of every token.

    Warns:
        UserWarning: when a given answer would continue the last word of the prompt, or padding changes scores.

    Source: Cohen-Wang et al. 2024, "ContextCite"; Bach et al. 2015; Achtibat et al. 2024.

    Example:
        `lens.explain_answer("Who has a cat?", context="Ann has a dog. Bob has a cat.").top()`
    """
    if tokenizer is None:
        raise InputError("explain_answer reads texts and needs a tokenizer: Lens(model, tokenizer=...), or tokenizer=.")
    _check(by, parts, passes, until, batch_size, max_new_tokens, seed)
    prompts, single = _listed(prompt)
    answers = _one_each(answer, len(prompts), single, "answer")
    contexts = _one_each(context, len(prompts), single, "context")
    found = []
    every = list(zip(prompts, answers, contexts, strict=True))
    for one, own, within in every if single else track(every, "prompts"):
        scorer = AnswerScorer(model, tokenizer, forward)
        read = read_prompt(one, within, tokenizer)
        read = with_sources(read, sources, within, scorer.token_ranges)
        ended = None
        if own is None:
            scorer.answer, ended = scorer.generate(read, max_new_tokens)
        else:
            scorer.answer = scorer.read_answer(read, own)
        texts = answer_texts(tokenizer, scorer.answer, own)
        task = _Task(scorer, read, _groups(texts, parts), batch_size)
        start = time.perf_counter()
        made = _measured(task, by, passes, until, seed)
        settings: dict[str, Any] = {
            "sources": sources if isinstance(sources, str) else "given",
            "parts": parts,
            "by": by,
        }
        settings |= {"seed": seed, "ended": ended, **made.settings}
        found.append(_result(task, texts, made, settings, time.perf_counter() - start))
    return found[0] if single else found


@dataclasses.dataclass(frozen=True)
class _Task:
    """An answer after a prompt with sources.

    Attributes:
        scorer: with the answer.
        prompt: the prompt.
        groups: tokens of each part of the answer.
        batch_size: prompts in one pass.
    """

    scorer: AnswerScorer
    prompt: Prompt
    groups: list[Range]
    batch_size: BatchSize

    def score(self, kept: np.ndarray[Any, Any], label: str) -> torch.Tensor:
        """The log-probability of each part with some of the sources, `(len(kept), parts)`."""
        with counting(label, len(kept)) as done:
            rows = [self.scorer.encode(self.prompt, self.prompt.kept(row)) for row in kept.tolist()]
            tokens = self.scorer(rows, self.batch_size, done)
        return torch.stack([tokens[:, start:stop].sum(dim=1) for start, stop in self.groups], dim=1)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """The values of a method `(parts, sources)` with what belongs to them."""

    method: str
    values: torch.Tensor
    scores: torch.Tensor
    passes: int
    error: torch.Tensor | None = None
    intercept: torch.Tensor | None = None
    rest: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    scale: str = "log-probability"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def _measured(task: _Task, by: str, passes: int, until: float | None, seed: int) -> _Measured:
    count = len(task.prompt.sources)
    if by == "leave_one_out" or (by == "auto" and count == 1):
        kept = np.concatenate([np.ones((1, count), dtype=bool), ~np.eye(count, dtype=bool)])
        scores = task.score(kept, "leave_one_out")
        return _Measured("leave_one_out", (scores[0] - scores[1:]).T.contiguous(), scores[0], count + 1)
    if by == "ablation":
        return _regressed(task, None, passes, until, seed)
    if by != "auto":
        found = token_shares(task.scorer, task.prompt, task.groups, by)
        if found.scores is not None:
            return _Measured(by, found.values, found.scores, found.passes, rest=found.rest)
        (scores,) = task.score(np.ones((1, count), dtype=bool), by)
        return _Measured(by, found.values, scores, found.passes + 1)
    whole = [(task.groups[0][0], task.groups[-1][1])]
    each = 1 + 2 * len(task.groups) <= passes // 2  # else all parts share one prior
    prior = token_shares(task.scorer, task.prompt, task.groups if each else whole, "relevance")
    return _regressed(task, prior, passes, until, seed)


def _regressed(task: _Task, prior: Shares | None, passes: int, until: float | None, seed: int) -> _Measured:
    """Regress the logit of each part's probability on which sources stay.

    The ablations are drawn at once, so that a run that stops early is the beginning of one that does not.
    """
    count, parts = len(task.prompt.sources), len(task.groups)
    spent = 0 if prior is None else prior.passes
    least = 1 if until is None else min(4, max(1, passes - spent))
    values = None if prior is None else prior.values
    effects = torch.zeros(0, parts, dtype=torch.float64)
    if prior is not None and prior.scores is not None and len(prior.values) == parts:
        effects = prior.scores[None]  # the whole prompt was run for the prior
    known = len(effects)
    number = max(2 if prior is None else 1, passes - spent + known)
    if values is not None and len(values) < parts:
        values = values.expand(parts, -1) / parts
    start = None if values is None else values.numpy()
    kept = np.ones((1, count), dtype=bool)
    if number > 1:
        kept = np.concatenate([kept, masks(number - 1, count, start, seed)])
        kept = np.array(list(dict.fromkeys(map(tuple, kept.tolist()))))  # a prompt that was run says the same again
    if task.scorer.first is None and not task.prompt.kept([False] * count):
        kept = kept[kept.any(axis=1)]  # an empty prompt cannot be run
    number = len(kept)
    at_once = number if until is None else least
    while True:
        if len(effects) < number:
            effects = torch.cat([effects, task.score(kept[len(effects) : len(effects) + at_once], "ablations")])
        found, errors, intercept = fit(kept[: len(effects)], _logit(effects).numpy(), start)
        if len(effects) == number or (until is not None and float(np.mean(errors)) <= until):
            break
    settings = {"ablations": len(effects), "prior_passes": spent, "until": until}
    return _Measured(
        "ablation" if prior is None else "relevance + ablation", torch.from_numpy(found), effects[0],
        spent + len(effects) - known, torch.from_numpy(errors), torch.from_numpy(intercept), scale="logit",
        settings=settings,
    )  # fmt: skip


def _logit(scores: torch.Tensor) -> torch.Tensor:
    """The logit of a probability from its logarithm."""
    below = scores.clamp(max=-CERTAIN)
    return below - torch.log(-torch.expm1(below))


def _result(
    task: _Task, texts: Sequence[str], made: _Measured, settings: dict[str, Any], seconds: float
) -> AnswerAttribution:
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    answer = "".join(texts)
    spans = tuple((ends[start], ends[stop]) for start, stop in task.groups)
    intercept = made.scores - made.values.sum(dim=1) if made.intercept is None else made.intercept
    shares = made.method == "attention"
    return AnswerAttribution(
        quantity="attention" if shares else f"{made.scale} of a part of the answer",
        rows=numbered([answer[start:stop] for start, stop in spans]),
        columns=numbered(task.prompt.texts),
        values=made.values,
        axes=("part", "source"),
        units="share" if shares else "nats",
        signed=not shares,
        method=made.method,
        settings=settings,
        error=made.error,
        explanation=_explanation(made),
        prompt=task.prompt.text,
        answer=answer,
        spans=tuple(task.prompt.ranges),
        part_spans=spans,
        scores=made.scores,
        intercept=intercept,
        rest=made.rest,
        scale=made.scale,
        passes=made.passes,
        seconds=seconds,
    )


def _explanation(made: _Measured) -> tuple[str, str]:
    means = {
        "leave_one_out": "A value is what a part of the answer loses of its log-probability, in nats, when the source "
        "alone is taken out of the prompt.",
        "relevance": "A value is the share of a part's log-probability, in nats, that relevance propagation gives to "
        "the tokens of the source; with `rest` the shares add up to it.",
        "attention": "A value is the mean attention that predicting a part pays to the source, a share of 1.",
    }
    regressed = (
        "A value is how much the logit of a part's probability rises with the source, in nats, averaged over prompts "
        "that hold some of the others."
    )
    limits = {
        "leave_one_out": "Two sources that say the same each get almost nothing, because the other one stays.",
        "relevance": "It reads one run of the model and takes nothing out; what the model would say without the source "
        "was not tried.",
        "attention": "Attention is not importance: what the model reads there, and whether it matters, is not in it.",
    }
    regressed_limit = (
        "It is a linear picture: sources that only count together, or replace each other, are shared between them, and "
        "the standard error knows the draw of the ablations alone. A source that made the answer likelier need not "
        "make it true."
    )
    other = "A value is what the method gives to the tokens of the source for the log-probability of a part."
    fallback = regressed if made.scale == "logit" else other
    limit = regressed_limit if made.scale == "logit" else "Nothing was taken out of the prompt to see what changes."
    return means.get(made.method, fallback), limits.get(made.method, limit)


def _groups(texts: Sequence[str], parts: str) -> list[Range]:
    """The tokens of each part of an answer; a token belongs to the part in which its first letter is."""
    if parts == "answer":
        return [(0, len(texts))]
    whole = "".join(texts)
    ranges = None if parts == "token" else (sentences if parts == "sentence" else words)(whole)
    owner: list[int] = []
    place = last = 0
    for number, text in enumerate(texts):
        first = place + len(text) - len(text.lstrip())
        place += len(text)
        if ranges is None:
            last = number if text or not number else last
        elif text.strip():
            last = max((k for k, (start, _) in enumerate(ranges) if start <= first), default=0)
        else:  # white space is of the part after it, and a part of a character of that before
            last = owner[-1] if not text and owner else -1
        owner.append(last)
    for number in reversed(range(len(owner))):
        if owner[number] < 0:
            owner[number] = owner[number + 1] if number + 1 < len(owner) else max(owner[-2] if number else 0, 0)
    starts = [number for number in range(len(owner)) if not number or owner[number] != owner[number - 1]]
    return list(zip(starts, [*starts[1:], len(owner)], strict=True))


def _listed(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether one was given.

    Raises:
        InputError: when they are neither texts nor chats.
    """

    def is_chat(one: Any) -> bool:
        return isinstance(one, (list, tuple)) and bool(one) and all(isinstance(part, dict) for part in one)

    if isinstance(prompt, str) or is_chat(prompt):
        return [prompt], True
    if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(one, str) or is_chat(one) for one in prompt):
        return list(prompt), False
    raise InputError(
        f"a prompt is a text, or the messages of a chat, [{{'role': 'user', 'content': '...'}}], or a list of those; "
        f"got {str(prompt)[:80]!r}."
    )


def _one_each(given: Any, count: int, single: bool, name: str) -> list[str | None]:
    """An answer or a context for each prompt.

    Raises:
        InputError: when they are not texts, or of another number.
    """
    if given is None:
        return [None] * count
    if single and isinstance(given, str):
        return [given]
    if single or isinstance(given, str) or len(given) != count or not all(isinstance(one, str) for one in given):
        wanted = "a text" if single else f"a list of {count} texts, one for each prompt"
        raise InputError(f"{name}= is {wanted}, got {str(given)[:80]!r}.")
    return list(given)


def _check(by: str, parts: str, passes: int, until: float | None, batch_size: BatchSize, most: int, seed: int) -> None:
    choose("by", by, (*OWN, *(name for name, row in METHODS.items() if row.family in FAMILIES)))
    choose("parts", parts, PARTS)
    check_count("passes", passes, least=2)
    check_count("max_new_tokens", most)
    check_seed(seed)
    if batch_size != "auto":
        check_count("batch_size", batch_size, also="'auto'")
    if until is not None and (isinstance(until, bool) or not math.isfinite(until) or until <= 0):
        raise OptionError(f"until= is a standard error above 0, got {until!r}.")
