"""A task of the benchmark by kind of input: a trained model, its samples, and the measures of a map of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.faithfulness.metrics.place_ranks import ranks
from layerlens.results import Attribution

Measure = Callable[[Attribution], torch.Tensor]
"""A map -> a number for each sample, `(batch,)`, higher is better."""

Rows = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name of a row -> a method and its options, among them `BACKGROUND` for the background of the task, or `MEAN`."""

BACKGROUND, MEAN = "the background of the task", "the mean of the background"
STEPS = 5
"""Parts in which insertion and deletion put in or remove the places."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and what is known of its samples.

    Attributes:
        model: the model.
        x: samples.
        target: class of each; None for the output of a regression.
        measures: by name, among `MEASURES`.
        quality: share of held-out samples classified rightly, or the share of the variance explained.
        groups: samples with the same number are alike, `(batch,)`; None if none are.
        background: other samples, `(rows, ...)`; None if methods get none.
    """

    model: nn.Module
    x: torch.Tensor
    target: list[int] | None
    measures: Mapping[str, Measure]
    quality: float
    groups: torch.Tensor | None = None
    background: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured once.

    Attributes:
        name: data and network.
        kind: kind of the input, and of the network where the default depends on it: tasks of a kind share a table.
        build: trains the model.
        rows: methods that are compared.
        real: whether the data are real.
    """

    name: str
    kind: str
    build: Callable[[], Subject]
    rows: Rows
    real: bool = False


def mass(mask: torch.Tensor, unit: int | None = None) -> Measure:
    """The share of the positive values that lies in a mask `(batch, *places)`; values of axis `unit` are summed."""

    def share(found: Attribution) -> torch.Tensor:
        values = _by_place(found.tensor, unit, mask.ndim + (unit is not None))
        positive = values.clamp_min(0).flatten(1)
        return (positive * mask.flatten(1)).sum(dim=1) / positive.sum(dim=1).clamp_min(1e-12)

    return share


def ordered(mask: torch.Tensor, unit: int | None = None) -> Measure:
    """How often a place in a mask has a larger value than one outside of it (the AUC); equal ones count half."""

    def auc(found: Attribution) -> torch.Tensor:
        values = _by_place(found.tensor, unit, mask.ndim + (unit is not None)).flatten(1)
        pairs = zip(values, mask.flatten(1), strict=True)
        return torch.stack([_auc(row[inside], row[~inside]) for row, inside in pairs])

    return auc


def _auc(inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    below = torch.searchsorted(outside.sort().values, inside.contiguous())
    not_above = torch.searchsorted(outside.sort().values, inside.contiguous(), right=True)
    return (below + not_above).double().mean() / (2 * len(outside))


def _by_place(values: torch.Tensor, unit: int | None, axes: int) -> torch.Tensor:
    """Sum a map over the axis `unit` of an input with so many axes; some maps have a number for each place already."""
    return values.double() if unit is None or values.ndim < axes else values.double().sum(dim=unit)


def agreement(exact: torch.Tensor, read: Callable[[Attribution], torch.Tensor]) -> Measure:
    """The correlation with exact values `(batch, features)` of what is read of a map; 0 where one is constant."""

    def correlation(found: Attribution) -> torch.Tensor:
        pairs = (torch.stack(pair) for pair in zip(read(found).double(), exact.double(), strict=True))
        return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).nan_to_num()

    return correlation


def by_segment(labels: torch.Tensor, unit: int | None = None) -> Callable[[Attribution], torch.Tensor]:
    """Read the sums of a map over the segments of its places, `(batch, segments)`, from labels `(places,)`."""

    def sums(found: Attribution) -> torch.Tensor:
        values = _by_place(found.tensor, unit, 3)
        return torch.stack([values[:, labels == label].sum(dim=1) for label in range(int(labels.max()) + 1)], dim=1)

    return sums


class Curves:
    """Insertion less deletion, the mean over fills: of the probability of the class, or of a regression's output.

    The areas are those of `layerlens.faithfulness`, with which a test compares them; here all shares and fills are one
    pass.

    Args:
        model: the model.
        x: samples.
        target: class of each; None for the output of a regression.
        fills: what replaces a place, each like x.
        unit: axis of x that is not one of places; None if there is none.
        scale: what the output of a regression is divided by.
    """

    def __init__(
        self,
        model: nn.Module,
        x: torch.Tensor,
        target: list[int] | None,
        fills: Sequence[torch.Tensor],
        unit: int | None = None,
        scale: float = 1.0,
    ) -> None:
        self.model, self.x, self.target, self.unit, self.scale = model, x, target, unit, scale
        self.fills = torch.stack([fill.expand_as(x) for fill in fills])[:, None]  # (fills, 1, batch, ...)
        self.ends = self._scores(torch.cat([x[None], self.fills[:, 0]]))  # (1 + fills, batch)

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        """The scores `(n, batch)` of `n` changed copies of all samples, `(n, batch, ...)`."""
        with torch.inference_mode():
            out = torch.cat([self.model(part) for part in x.flatten(0, 1).split(1024)]).clone()
        if self.target is None:
            return (out[:, 0] / self.scale).reshape(x.shape[:2])
        target = torch.tensor(self.target).repeat(len(x))
        return out.softmax(dim=1).gather(1, target[:, None])[:, 0].reshape(x.shape[:2])

    def __call__(self, found: Attribution) -> torch.Tensor:
        """The areas of a map, `(batch,)`."""
        values = _by_place(found.tensor, self.unit, self.x.ndim)
        rank = ranks(values.flatten(1))
        shares = torch.arange(1, STEPS)[:, None, None] / STEPS
        first = (rank < (shares * rank.shape[1]).round()).reshape(STEPS - 1, *values.shape)  # the most important
        first = first if self.unit is None else first.unsqueeze(self.unit + 1)
        gone = torch.cat([~first, first])  # inserted, then deleted
        mixed = torch.where(gone, self.fills, self.x)  # (fills, 2 x shares, batch, ...)
        scores = self._scores(mixed.flatten(0, 1)).reshape(len(self.fills), 2, STEPS - 1, -1)
        full, empty = self.ends[:1].expand(len(self.fills), -1)[:, None], self.ends[1:, None]
        inserted = torch.cat([empty, scores[:, 0], full], dim=1)
        deleted = torch.cat([full, scores[:, 1], empty], dim=1)
        return torch.trapezoid((inserted - deleted).double(), dx=1 / STEPS, dim=1).mean(dim=0)


def exact_shapley(
    score: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    at_once: int = 8192,
) -> torch.Tensor:
    """Shapley values by their definition, from the scores of all coalitions, `(batch, players)` (Shapley 1953).

    Args:
        score: mixtures `(n, ...)` of sample `i`, and `i` -> their scores `(n,)`.
        x: samples `(batch, ...)`.
        rows: what replaces a player, `(rows, ...)`: a score is the mean over them.
        labels: player of each value, broadcastable to `(1, ...)`.
        at_once: samples in a pass.
    """
    count = int(labels.max()) + 1
    coalitions = torch.tensor(list(itertools.product((False, True), repeat=count)))  # (2^count, players)
    keep = coalitions[:, labels.reshape(-1)].reshape(len(coalitions), *labels.shape[1:])  # (2^count, ...)
    sizes = coalitions.sum(dim=1)
    weight = torch.tensor(
        [math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) for size in range(count)],
        dtype=torch.float64,
    )
    values = []
    step = max(1, at_once // len(rows))
    for number, row in enumerate(x):
        parts = []
        for part in keep.split(step):
            mixed = torch.where(part[:, None], row, rows[None])  # (coalitions, rows, ...)
            parts.append(_scores(score, mixed.flatten(0, 1), number).reshape(len(part), len(rows)).double().mean(dim=1))
        scores = torch.cat(parts)
        own = []
        for player in range(count):
            bit = 1 << (count - 1 - player)  # where it is in the number of a coalition
            without = torch.arange(len(coalitions))[~coalitions[:, player]]
            own.append((weight[sizes[without]] * (scores[without + bit] - scores[without])).sum())
        values.append(torch.stack(own))
    return torch.stack(values)


def _scores(score: Callable[..., torch.Tensor], x: torch.Tensor, number: int) -> torch.Tensor:
    with torch.inference_mode():
        return score(x, number).clone()


def of_class(model: nn.Module, target: list[int] | None) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The score that is explained: the logit of the class of sample `i`, or the output of a regression."""
    return lambda x, number: model(x)[:, 0 if target is None else target[number]]
