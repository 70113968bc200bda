"""Generation step by step: what a model considered at each step, and what each step came from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.activation import attention
from layerlens.analyzers.dynamics import logit_lens
from layerlens.analyzers.relevance import Rulebook, relevance_by_target
from layerlens.errors import OptionError, check_count, check_seed, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.inputs.sequences import sequences
from layerlens.inputs.token_texts import decoded_texts, labels, token_names
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.probes.made_edits import Edits
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import AttentionWeights, Generation, LogitLens, Relevance
from layerlens.signatures import public
from layerlens.targets.base import Target
from layerlens.targets.outputs import log_probabilities, main_output

from .written import Written, all_scores, follow, write

Recorded: TypeAlias = Literal["logit_lens", "attention", "relevance"]
RECORDED: tuple[Recorded, ...] = ("logit_lens", "attention", "relevance")

CLOSE = 1e-3
"""Largest difference, in nats, of log p in one forward pass from that of the steps with a cache, in float32."""

SWEEPS = 16
"""Steps whose relevance is computed from one forward pass: more take more memory."""

Tokenizer: TypeAlias = Callable[..., Any] | None


@public
def generate(
    model: nn.Module,
    prompt: Input,
    *,
    max_new_tokens: int = 32,
    record: Recorded | Sequence[Recorded] = (),
    layers: Selection = None,
    answer: str | torch.Tensor | None = None,
    top: int = 5,
    rules: str | Rulebook = "auto",
    edits: Edits | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool | None = None,
    tokenizer: Tokenizer = None,
    forward: Forward | None = None,
) -> Generation:
    """Generate a text, and record what the model considered at each step and what each step came from.

    The model's own `generate` of transformers writes the text (greedily unless `options` say otherwise); other models,
    and those called by `forward=`, are run token by token, without a cache. One forward pass over the prompt and the
    text then has the scores of every step: a step of a causal model does not see later tokens. That both agree is
    measured, see `Generation.checks`. So every step is explained from that pass, in bounded memory:

    - `"logit_lens"`: what each layer would have emitted, see `logit_lens`; one more forward pass and a few to prepare.
    - `"attention"`: the weights of each head, from the place that emitted a token to all before it; one forward pass.
    - `"relevance"`: of log p of each emitted token, for every earlier token (and every picture, sound or source), with
      its ledger, see `relevance`; a forward pass for 16 steps, and a backward sweep for each.

    Args:
        prompt: one prompt: a text, token ids `(1, tokens)`, or an encoding, which may hold pictures or sounds too.
        max_new_tokens: largest number of tokens; the model's token for the end is one of them.
        record: what to record at each step besides probabilities: one of the above, or a list of those.
        layers: ... Of the logit lens and of attention.
        answer: text, or token ids, to follow instead of generating one.
        top: number of the likeliest tokens kept at each step.
        rules: ... For `record="relevance"`.
        edits: layer selection -> an edit, as in `Probe`, made in every step and in all that is recorded:
            `{"model.layers.9.self_attn": zero(heads=2)}`, `{"model.layers.9": add(vector)}`. An edit of some positions,
            or of one call, is not the same in one forward pass as in the steps; a warning then says by how much.
        options: options of the model's `generate`, such as `{"do_sample": True, "temperature": 0.7}` or
            `{"num_beams": 4}`; of other models `do_sample` and `temperature`.
        tokenizer: names the tokens.

    Returns:
        A `Generation`. `log_p` is the model's own log-probability, before temperature, top-k or penalties.

    Raises:
        InputError: when the prompt is not one row of tokens, or ends with padding.
        OptionError: when an option is unknown, the text is empty, or there is no tokenizer to read an answer.
        TargetError: when the output has no scores of tokens at each place.

    Warns:
        UserWarning: when one forward pass gives other probabilities than the steps did.

    Example:
        `lens.generate("The capital of France is", max_new_tokens=8, record="relevance").sources()`
    """
    check_count("max_new_tokens", max_new_tokens)
    check_count("top", top)
    check_seed(seed)
    recorded = [record] if isinstance(record, str) else list(record)
    for one in recorded:
        choose("record", one, RECORDED)
    given = as_inputs(prompt).named_for(model, forward)

    def edited() -> contextlib.AbstractContextManager[Any]:
        return Probe(model, (), edits=edits) if edits else contextlib.nullcontext()

    with borrowed(model, grad=False):
        with edited() as made:
            if answer is None:
                ends = getattr(tokenizer, "eos_token_id", None)
                text = write(model, given, max_new_tokens, options or {}, seed, forward, ends)
            else:
                text = follow(model, given, _read(answer, tokenizer))
        if made is not None and answer is None and made.unedited:
            raise OptionError(f"these edits were never made: {', '.join(made.unedited)} did not run.")
        with edited():
            scores = all_scores(text, model, forward)
    log_p = scores.gather(1, text.ids.to(scores.device).unsqueeze(1)).squeeze(1)
    likeliest = scores.topk(min(top, scores.shape[1]), dim=1)
    names = _names(tokenizer, [*text.ids.tolist(), *likeliest.indices.flatten().tolist()])
    checks = {} if text.log_p is None else {"log p of the run": _difference(text.log_p, log_p)}
    _warn_if_other(model, checks, edits)
    prompt_texts, texts = _texts(tokenizer, text)
    found = Generation(
        _whole(tokenizer, text.ids.tolist(), texts),
        tuple(texts),
        text.ids.cpu(),
        tuple(prompt_texts),
        log_p.cpu(),
        likeliest.indices.cpu(),
        likeliest.values.cpu(),
        names,
        {name: tensor.detach().cpu() for name, tensor in text.inputs.tensors().items()},
        text.sequence,
        text.method,
        {"max_new_tokens": max_new_tokens, "record": recorded, "seed": seed, "options": dict(options or {}),
         "edits": [str(one) for one in edits or ()]},
        checks,
        (
            "Probabilities are the model's own, given the prompt and the tokens before, before temperature or top-k.",
            "What a step came from explains the token that was emitted, right or wrong; it does not say that the text "
            "is true.",
        ),
    )  # fmt: skip
    new: dict[str, Any] = {}
    if "logit_lens" in recorded:
        with edited():
            lens = _lens_of_steps(model, text, layers, found.columns, top, seed, progress, forward)
        named = _names(tokenizer, sorted({*lens.top.flatten().tolist(), *lens.targets}))
        new["logit_lens"] = dataclasses.replace(lens, names=named)
    if "attention" in recorded:
        with edited():
            new["attention"] = _attention_of_steps(model, text, layers, tokenizer, forward)
    if "relevance" in recorded:
        new["relevance"] = _relevance_of_steps(model, text, rules, texts, tokenizer, edited, progress, forward)
    return dataclasses.replace(found, **new)


def _read(answer: str | torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """The ids of a text that is given.

    Raises:
        OptionError: when it is empty, or there is no tokenizer.
    """
    if isinstance(answer, str):
        if tokenizer is None:
            raise OptionError("answer= is a text, and there is no tokenizer: Lens(model, tokenizer=...), or give ids.")
        answer = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if not isinstance(answer, torch.Tensor) or answer.is_floating_point() or not answer.numel():
        raise OptionError(f"answer= is a text, or a tensor of token ids (steps,) with one or more; got {answer!r:.80}.")
    return answer.flatten()


def _difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.cpu() - other.cpu()).abs().max()


def _warn_if_other(model: nn.Module, checks: Mapping[str, torch.Tensor], edits: Edits | None) -> None:
    difference = float(checks.get("log p of the run", torch.tensor(0.0)))
    half = any(one.dtype.itemsize < 4 for one in model.parameters() if one.is_floating_point())
    if difference > (0.1 if half else CLOSE):
        why = "some edits are of positions or calls, which are others in the steps" if edits else (
            "its steps depend on more than the tokens before (another mask, position or cache)"
        )  # fmt: skip
        warn(
            f"generate: one forward pass over the text gives log-probabilities that differ by up to {difference:.2g} "
            f"nats from those of the steps: {why}. What is recorded is of that pass, not of the steps."
        )


def _names(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[int, str]:
    decode = getattr(tokenizer, "decode", None)
    return {} if decode is None else {int(one): str(decode([one])) for one in dict.fromkeys(ids)}


def _whole(tokenizer: Tokenizer, ids: list[int], texts: Sequence[str]) -> str:
    """The text without its special tokens, or its ids."""
    decode = getattr(tokenizer, "decode", None)
    if decode is None:
        return " ".join(texts)
    try:
        return str(decode(ids, skip_special_tokens=True))
    except TypeError:
        return str(decode(ids))


def _texts(tokenizer: Tokenizer, text: Written) -> tuple[list[str], list[str]]:
    """What each token of the prompt, and of the text, reads; their ids where that is unknown."""
    ids = torch.cat([text.prompt.cpu(), text.ids.cpu()])
    known = None if tokenizer is None else decoded_texts(tokenizer, ids.clamp_min(0).unsqueeze(0))
    every = [str(one) for one in ids.tolist()] if known is None else labels(known[0])
    return every[: len(text.prompt)], every[len(text.prompt) :]


def _lens_of_steps(
    model: nn.Module,
    text: Written,
    layers: Selection,
    columns: tuple[str, ...],
    top: int,
    seed: int,
    progress: bool | None,
    forward: Forward | None,
) -> LogitLens:
    """The logit lens at the places that emitted the text.

    Raises:
        OptionError: when it has other places than the text.
    """
    places = text.inputs.tensors()[text.sequence].shape[1]
    steps = slice(text.first, text.first + len(text.ids))
    targets = torch.zeros(places, dtype=torch.long)
    targets[steps] = text.ids.cpu()
    found = logit_lens(
        model, text.inputs, layers, target=targets, top=top, seed=seed, progress=progress, forward=forward
    )
    if len(found.columns) != places:  # such as places of a picture in front of the tokens
        raise OptionError(f"the logit lens has {len(found.columns)} places, and the text {places}: leave it out.")
    return dataclasses.replace(
        found,
        columns=columns,
        axes=("layer", "step"),
        values=found.values[:, steps],
        null=None,
        checks={**found.checks, "kl": found.checks["kl"][:, steps]},
        targets=found.targets[steps],
        top=found.top[:, steps],
        scores=found.scores[:, steps],
    )


def _attention_of_steps(
    model: nn.Module, text: Written, layers: Selection, tokenizer: Tokenizer, forward: Forward | None
) -> AttentionWeights:
    """The attention from the places that emitted the text; attentions along other inputs, such as pictures, in full."""
    inputs = text.until(len(text.ids) - 1)
    steps = tuple(range(text.first, text.first + len(text.ids)))
    ids = inputs.tensors()[text.sequence].clamp_min(0)
    (own,) = (one for one in sequences(inputs) if text.sequence in one.names)
    if not inputs.tensors().keys() - set(own.names):
        found = attention(model, inputs, layers, queries=steps, forward=forward)
    else:
        found = attention(model, inputs, layers, forward=forward)
        of_text = [
            layer
            for layer, weights in found.weights.items()
            if weights.shape[2] == ids.shape[1] and found.inputs.get(layer, (text.sequence,))[0] == text.sequence
        ]
        cut = {layer: found.weights[layer][:, :, list(steps)] for layer in of_text}
        found = dataclasses.replace(found, weights=found.weights | cut, queries=dict.fromkeys(of_text, steps))
    if tokenizer is None or found.inputs:
        return found
    return dataclasses.replace(found, tokens=token_names(tokenizer, ids), texts=decoded_texts(tokenizer, ids))


def _relevance_of_steps(
    model: nn.Module,
    text: Written,
    rules: str | Rulebook,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    edited: Callable[[], contextlib.AbstractContextManager[Any]],
    progress: bool | None,
    forward: Forward | None,
) -> tuple[Relevance, ...]:
    """The relevance of each emitted token; of some steps at a time, which end the input that is run."""
    found: list[Relevance] = []
    starts = range(0, len(text.ids), SWEEPS)
    for start in track(starts, "relevance of steps", enabled=progress):
        steps = range(start, min(start + SWEEPS, len(text.ids)))
        inputs = text.until(steps[-1])
        targets = [_of_step(text.first + step, int(text.ids[step]), texts[step]) for step in steps]
        with edited():
            found += relevance_by_target(model, inputs, targets=targets, rules=rules, forward=forward)
    return tuple(_with_tokens(one, tokenizer, inputs, text.sequence) for one in found) if tokenizer else tuple(found)


def _with_tokens(one: Relevance, tokenizer: Tokenizer, inputs: Inputs, sequence: str) -> Relevance:
    """Add the tokens of the text."""
    values = one.values.get(sequence) if isinstance(one.values, dict) else one.values
    if values is None or values.ndim != 2 or tokenizer is None:
        return one
    ids = inputs.tensors()[sequence].clamp_min(0)[:, : values.shape[1]]
    tokens, read = token_names(tokenizer, ids), decoded_texts(tokenizer, ids)
    if not isinstance(one.values, dict):
        return dataclasses.replace(one, tokens=tokens, texts=read)
    return dataclasses.replace(one, tokens=tokens and {sequence: tokens}, texts=read and {sequence: read})


def _of_step(place: int, token: int, text: str) -> Target:
    """The log-probability of a token at a place of the output."""
    return Target(lambda output, rows: log_probabilities(main_output(output)[:, place])[:, token], f"log p({text!r})")
