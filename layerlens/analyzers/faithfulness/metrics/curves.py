"""The score while places are removed in the order of a map: what insertion, deletion and their kin share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec, features_of
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import OptionError, TargetError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import FaithfulnessCurve
from layerlens.targets.probability import probability
from layerlens.targets.target import Spec

from .input_places import Given, by_place, ranks


@dataclasses.dataclass
class Removal:
    """A model on an input of which the places of a map can be removed, with one fill.

    Attributes:
        scorer: of the borrowed model.
        coalitions: scores with parts of the input replaced by the fill.
        features: what is removed at a time.
        ends: the scores `(batch,)` of the input as it is, and of the fill alone.
        units: of the scores.
    """

    scorer: Scorer
    coalitions: Coalitions
    features: Features
    ends: tuple[torch.Tensor, torch.Tensor]
    units: str

    def ranks(self, given: Given, seed: int, name: str = "the map") -> torch.Tensor:
        """The rank of every feature by a map, `(batch, features)`, 0 first."""
        return ranks(by_place(self.scorer, self.features, given, name), seed)

    def scores(self, rank: torch.Tensor, shares: torch.Tensor, *, keep: bool, label: str) -> torch.Tensor:
        """The scores `(batch, shares)` with that share of the features, first ranks first, removed or alone kept."""
        batch, count = rank.shape
        full, empty = self.ends
        numbers = (shares * count).round().long()
        found = torch.empty(batch, len(shares), dtype=full.dtype, device=full.device)
        found[:, numbers == 0] = (empty if keep else full).unsqueeze(1)
        found[:, numbers == count] = (full if keep else empty).unsqueeze(1)
        inner = ((numbers > 0) & (numbers < count)).nonzero().flatten()
        step = max(1, self.coalitions.batch_size // batch)
        rows = self.scorer.rows
        for part in track(torch.split(inner, step), label):
            first = rank.unsqueeze(0) < numbers[part].to(rank.device)[:, None, None]
            kept = (first if keep else ~first).flatten(0, 1).to(full.dtype)
            places = rows.repeat(len(part))
            own = self.coalitions(self.features.masks(kept, places), places)
            found[:, part.to(found.device)] = own.reshape(len(part), batch).T
        return found


@contextlib.contextmanager
def removal(
    model: nn.Module,
    x: Input,
    target: Spec,
    fill: Any,
    *,
    features: FeatureSpec = "places",
    measure: str = "score",
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Iterator[Removal]:
    """A `Removal` on a model that is borrowed for the block."""
    if measure not in ("auto", "score", "probability"):
        raise OptionError(f"measure is 'auto', 'score' or 'probability', got {measure!r}.")
    with borrowed(model, grad=False):
        scorer, units = Scorer(model, x, target, forward=forward), "score"
        if measure != "score":
            scorer, units = _probability(scorer, measure, forward)
        coalitions = Coalitions(scorer, fill, batch_size)
        ends = (coalitions.score, coalitions.bottom())
        yield Removal(scorer, coalitions, features_of(scorer, features), ends, units)


def _probability(scorer: Scorer, measure: str, forward: Forward | None) -> tuple[Scorer, str]:
    """A scorer of the probability; for `"auto"` the same one where the output holds no classes."""
    if scorer.target.at is not None:
        return scorer, "score"
    wanted = probability(scorer.target)
    own = Scorer(scorer.model, scorer.inputs, wanted, forward=forward)
    try:
        with torch.no_grad():
            own({name: leaf.value for name, leaf in own.leaves.items()})
    except TargetError:
        if measure == "probability":
            raise
        return scorer, "score"
    return Scorer(scorer.model, scorer.inputs, wanted, forward=forward), "probability"


def curve(
    name: str,
    model: nn.Module,
    x: Input,
    attribution: Given,
    target: Spec,
    *,
    keep: bool,
    fill: Any,
    steps: int,
    measure: str,
    features: FeatureSpec,
    seed: int,
    batch_size: BatchSize,
    forward: Forward | None,
) -> FaithfulnessCurve:
    """The curve of one map with one fill."""
    check_count("steps", steps)
    check_seed(seed)
    shares = torch.arange(steps + 1).double() / steps
    with removal(
        model, x, target, fill, features=features, measure=measure, batch_size=batch_size, forward=forward
    ) as own:
        scores = own.scores(own.ranks(attribution, seed), shares, keep=keep, label=name)
        return FaithfulnessCurve(
            name=name,
            shares=shares,
            scores=scores.double(),
            fill=own.coalitions.label,
            units=own.units,
            target=own.scorer.target.label,
            settings={"steps": steps, "seed": seed, "batch_size": own.coalitions.batch_size},
        )
