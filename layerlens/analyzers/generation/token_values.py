"""What each source is worth to each part of an answer by the tokens of one run: relevance, gradients, attention."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Final

import torch

from layerlens.analyzers.activation import attention
from layerlens.analyzers.relevance import relevance_by_target
from layerlens.analyzers.saliency import saliency_by_target
from layerlens.analyzers.saliency.by_target import SHARING
from layerlens.errors import InputError, warn
from layerlens.inputs.inputs import Inputs
from layerlens.results import Attribution, Relevance
from layerlens.targets.base import Target

from .answer_scores import AnswerScorer
from .prompts import Prompt
from .text_parts import Range

KINDS: Final = {"constants": "additive", "absorbed": "absorbed"}
"""What relevance is booked with besides the inputs, and its name in the ledger."""
ROUNDING: Final = 1e-3
"""Largest residual of a ledger, over its largest amount, that is booked as rounding without a warning."""


@dataclasses.dataclass(frozen=True)
class Shares:
    """Values of sources, and what goes to all else.

    Attributes:
        values: `(parts, sources)`.
        scores: log-probability of each part, `(parts,)`; None where the method does not read it.
        rest: what else the score is booked with, `(parts,)` each.
        passes: forward passes, a backward pass counted as two.
    """

    values: torch.Tensor
    scores: torch.Tensor | None
    rest: dict[str, torch.Tensor]
    passes: int


def token_shares(scorer: AnswerScorer, prompt: Prompt, groups: Sequence[Range], by: str) -> Shares:
    """Attribute the log-probability of each part of an answer to the tokens of the prompt, and add those of a source.

    Args:
        scorer: with the answer.
        prompt: the prompt with its sources.
        groups: tokens of each part of the answer.
        by: `"relevance"`, `"attention"`, or a gradient or path method of saliency.
    """
    ids = scorer.encode(prompt)
    owner = owners(prompt, scorer.token_ranges(prompt))
    inputs, places = scorer.inputs([ids])
    if "logits_to_keep" in inputs.kwargs:  # one number: a tensor would count as an input
        inputs = Inputs((), {**inputs.kwargs, "logits_to_keep": len(scorer.answer)})
    if by == "attention":
        return _attention(scorer, inputs, owner, groups)
    targets = [_target(scorer, places, group) for group in groups]
    if by == "relevance":
        found: Sequence[Attribution] = _relevance(scorer, inputs, targets)
        passes = 1 + 2 * len(groups)
    else:
        found = saliency_by_target(scorer.model, inputs, targets=targets, method=by, forward=scorer.forward)
        steps = sum(int(one.settings.get("steps", 1)) for one in found)
        passes = 1 + 2 * len(groups) if by in SHARING else 3 * steps
    rows, scores, names = [], [], ("prompt outside the sources", "answer so far", *KINDS, "rounding")
    rest: dict[str, list[float]] = {name: [] for name in names}
    for one in found:
        tokens = one.values if isinstance(one.values, dict) else {"input_ids": one.values}
        every = {name: value.detach().double().cpu()[0] for name, value in tokens.items()}
        own = every.pop("input_ids")
        rows.append(_sums(own[: len(owner)], owner, len(prompt.sources)))
        rest[names[0]].append(float(own[: len(owner)][owner < 0].sum()))
        rest[names[1]].append(float(own[len(owner) :].sum()) + sum(float(value.sum()) for value in every.values()))
        scores.append(float(one.score[0]))
        if isinstance(one, Relevance):
            for name, kind in KINDS.items():
                rest[name].append(float(one.ledger.total(kind)[0]))
            rest[names[-1]].append(float(one.ledger.residual[0]))
    booked = {name: torch.tensor(row, dtype=torch.float64) for name, row in rest.items() if row}
    return Shares(torch.stack(rows), torch.tensor(scores, dtype=torch.float64), booked, passes)


def _relevance(scorer: AnswerScorer, inputs: Inputs, targets: Sequence[Target]) -> list[Relevance]:
    """The relevance of each part, whose residual is booked: what rounding leaves needs no warning.

    Warns:
        UserWarning: when it is larger than rounding makes it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "relevance: the ledger does not close")
        found = relevance_by_target(scorer.model, inputs, targets=targets, forward=scorer.forward)
    worst = max(float(one.ledger.relative[0]) for one in found)
    if not worst <= ROUNDING:
        warn(
            f"explain_answer: the relevance of a part does not add up to its score, by {worst:.1e} of the largest "
            "amount; layerlens.check(model, x) finds out why. by='ablation' does not depend on it."
        )
    return found


def owners(prompt: Prompt, tokens: Sequence[Range | None]) -> torch.Tensor:
    """Return the source that each token of the prompt belongs to, by its first character; -1 for none.

    Raises:
        InputError: when a source has no token.
    """
    ranges = prompt.ranges
    owner = torch.full((len(tokens),), -1)
    for place, one in enumerate(tokens):
        if one is not None:
            owner[place] = next((k for k, (start, stop) in enumerate(ranges) if start <= one[0] < stop), -1)
    for k, text in enumerate(prompt.texts):
        if not bool((owner == k).any()):
            raise InputError(
                f"no token of the prompt begins in source {k}, {text!r:.60}: a token holds more than it. Take larger "
                "sources=, such as 'word' or 'sentence'; by='leave_one_out' and by='ablation' take any."
            )
    return owner


def _target(scorer: AnswerScorer, places: torch.Tensor, group: Range) -> Target:
    """The log-probability of the tokens of one part of the answer."""
    own, answer = places[:, group[0] : group[1]], scorer.answer[group[0] : group[1]]

    def score(output: object, rows: torch.Tensor) -> torch.Tensor:
        return scorer.scores(output, own.expand(len(rows), -1), answer).sum(dim=1)

    return Target(score, "log p(answer)")


def _attention(scorer: AnswerScorer, inputs: Inputs, owner: torch.Tensor, groups: Sequence[Range]) -> Shares:
    """The attention from the places that predict a part to the tokens of a source, mean over heads and layers.

    The sum over the tokens of a source, as is the mean over the tokens of the part.

    Raises:
        InputError: when no attention reads the prompt.
    """
    count, length = len(scorer.answer), len(owner)
    size = inputs.tensors()["decoder_input_ids" if scorer.decoder else "input_ids"].shape[1]
    taken = slice(size - count, size)
    layers = None
    found = attention(scorer.model, inputs, layers, heads="mean", queries=taken, forward=scorer.forward)
    wanted = [
        weights[0].mean(dim=0).double().cpu()
        for name, weights in found.weights.items()
        if weights.shape[2] == count
        and (not scorer.decoder or _crosses(found.inputs.get(name)))
        and weights.shape[3] >= length
    ]
    if not wanted:
        raise InputError("no attention from the answer to the prompt was found; take another by=.")
    mean = torch.stack(wanted).mean(dim=0)[:, :length]
    values = torch.stack([_sums(mean[start:stop].mean(dim=0), owner, int(owner.max()) + 1) for start, stop in groups])
    return Shares(values, None, {}, 1)


def _crosses(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and pair[0] != pair[1]


def _sums(values: torch.Tensor, owner: torch.Tensor, count: int) -> torch.Tensor:
    """The sum over the tokens of each source, `(count,)`."""
    inside = owner >= 0
    return values.new_zeros(count).index_add_(0, owner[inside], values[inside])
