"""The score while places are removed, or put in, in the order of a map: insertion, deletion, erasure."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec, features_of
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import OptionError, TargetError, check_count, check_seed, choose
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import FaithfulnessCurve
from layerlens.signatures import Function, documented, public, with_section
from layerlens.targets.base import Target, joined
from layerlens.targets.outputs import class_scores
from layerlens.targets.probability import probability
from layerlens.targets.target import Spec

from .place_ranks import Map, by_place, ranks

Measure: TypeAlias = Literal["auto", "score", "probability"]

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the places: the bins of DeYoung et al. 2020, sec. 4."""


_ARGS = {
    "steps": "number of parts in which the places are put in or removed.",
    "shares": "shares of the places, each above 0 and below 1; at least one place is removed or kept.",
    "features": 'what is put in or removed at a time: `"places"` (pixels, tokens, steps, columns), or as in '
    "`feature_ablation`.",
}
_RAISES = {
    "InputError": "when the map does not fit the input, or holds NaN or infinity.",
    "OptionError": "when an option is out of range, or the fill does not fit.",
    "TargetError": "when the target does not fit the output.",
}


def removal_metric(function: Function) -> Function:
    """Make a metric that removes places public, with the texts that all of them share."""
    text = documented(function.__doc__ or "", inspect.signature(function).parameters, _ARGS)
    function.__doc__ = with_section(text, "Raises", _RAISES)
    return public(function)


@removal_metric
def insertion(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    steps: int = 32,
    measure: Measure = "auto",
    features: FeatureSpec = "places",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Measure the score while places are put into the fill in the order of a map; a larger area is better.

    Petsiuk, Das & Saenko 2018, sec. 3.3, who insert into a blurred image (`fill="blur"`).

    Returns:
        A `FaithfulnessCurve` of `steps + 1` points; `.area` is `(batch,)`.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 1, bias=False)
        >>> x = torch.rand(2, 4)
        >>> insertion(model, x, x * model.weight.detach(), target=0).area.shape
        torch.Size([2])
    """
    check_count("steps", steps)
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        return removed.curve("insertion", attribution, steps, keep=True)


@removal_metric
def deletion(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    steps: int = 32,
    measure: Measure = "auto",
    features: FeatureSpec = "places",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Measure the score while places are replaced by the fill in the order of a map; a smaller area is better.

    Petsiuk, Das & Saenko 2018, sec. 3.3. With few places at a time it is pixel flipping (Bach et al. 2015), whose area
    over the curve, the mean fall of the score (Samek et al. 2017, eq. 12), is the score of x less `.area`.

    Returns:
        A `FaithfulnessCurve` of `steps + 1` points; `.area` is `(batch,)`.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 1, bias=False)
        >>> x = torch.rand(2, 4)
        >>> deletion(model, x, x * model.weight.detach(), target=0).scores.shape
        torch.Size([2, 33])
    """
    check_count("steps", steps)
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        return removed.curve("deletion", attribution, steps, keep=False)


@removal_metric
def comprehensiveness(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    shares: Sequence[float] = SHARES,
    measure: Measure = "auto",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how far the score falls without the most important places, `(batch,)`; higher is better.

    The mean over shares k of S(x) - S(x without the first k) (DeYoung et al. 2020, eq. 1 and 3).

    Example:
        >>> model = nn.Linear(10, 1, bias=False)
        >>> comprehensiveness(model, torch.ones(2, 10), torch.rand(2, 10), target=0).shape
        torch.Size([2])
    """
    with removal(model, x, target, fill, "places", measure, seed, batch_size, forward) as removed:
        return removed.mean_fall("comprehensiveness", attribution, shares, keep=False)


@removal_metric
def sufficiency(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    shares: Sequence[float] = SHARES,
    measure: Measure = "auto",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how far the score falls when only the most important places are kept, `(batch,)`; lower is better.

    The mean over shares k of S(x) - S(the first k alone) (DeYoung et al. 2020, eq. 2 and 3).

    Example:
        >>> model = nn.Linear(10, 1, bias=False)
        >>> sufficiency(model, torch.ones(2, 10), torch.rand(2, 10), target=0).shape
        torch.Size([2])
    """
    with removal(model, x, target, fill, "places", measure, seed, batch_size, forward) as removed:
        return removed.mean_fall("sufficiency", attribution, shares, keep=True)


@dataclasses.dataclass
class Removal:
    """A model on an input of which the places of a map can be removed, with one fill.

    Attributes:
        scorer: scorer of the borrowed model.
        coalitions: scores with parts of the input replaced by the fill.
        features: what is removed at a time.
        ends: scores `(batch,)` of the input as it is, and of the fill alone.
        units: units of the scores.
        seed: seed of the order of equal values.
    """

    scorer: Scorer
    coalitions: Coalitions
    features: Features
    ends: tuple[torch.Tensor, torch.Tensor]
    units: str
    seed: int

    @property
    def own(self) -> torch.Tensor:
        """Which features each sample has, bool `(batch, features)`."""
        return self.features.present(len(self.scorer.rows)).to(self.scorer.rows.device)

    def ranks(self, attribution: Map) -> torch.Tensor:
        """Rank every feature by a map, `(batch, features)`, 0 first; those that a sample does not have are last."""
        return ranks(by_place(self.scorer, self.features, attribution), self.seed, self.own)

    def scores(self, label: str, rank: torch.Tensor, shares: torch.Tensor, *, keep: bool) -> torch.Tensor:
        """Return the scores `(batch, shares)` with a share of the features, by rank, removed or alone kept.

        Shares are `(shares,)`, or `(batch, shares)`, of the features that each sample has.
        """
        batch, (full, empty) = len(rank), self.ends
        counts = self.own.sum(dim=1, keepdim=True)
        numbers = (shares.to(rank.device) * counts).round().long()
        none, every = (empty, full) if keep else (full, empty)
        found = torch.where(numbers == 0, none.unsqueeze(1), every.unsqueeze(1))
        inner = ((numbers > 0) & (numbers < counts)).T.nonzero()  # (share, sample)
        parts = torch.split(inner, max(1, self.coalitions.batch_size // batch) * batch) if len(inner) else ()
        for part in track(parts, label):
            share, rows = part.unbind(dim=1)
            first = rank[rows] < numbers[rows, share].unsqueeze(1)
            kept = (first if keep else ~first).to(full.dtype)
            found[rows, share] = self.coalitions(self.features.masks(kept, rows), rows)
        return found

    def sums(self, attribution: Map) -> torch.Tensor:
        """Sum a map over each feature, `(batch, features)`, in float64."""
        return by_place(self.scorer, self.features, attribution)

    def falls(self, gone: Iterable[torch.Tensor], label: str) -> torch.Tensor:
        """Return how far the score falls without some features, `(batch, draws)`; a draw is `(batch, features)`."""
        found = []
        step = max(1, self.coalitions.batch_size // len(self.own))
        draws = iter(track(gone, label))
        while part := list(itertools.islice(draws, step)):
            rows = self.scorer.rows.repeat(len(part))
            kept = (~torch.cat(part)).to(self.ends[0].dtype)
            scores = self.coalitions(self.features.masks(kept, rows), rows).double()
            found.append(self.ends[0].double() - scores.reshape(len(part), -1))
        return torch.cat(found).T

    def alone(self, label: str) -> torch.Tensor:
        """Return how far the score falls without each feature, `(batch, features)`."""
        every = torch.eye(self.features.count, dtype=torch.bool, device=self.own.device)
        return self.falls([row.expand(len(self.own), -1) for row in every], label)

    def one_by_one(
        self, label: str, rank: torch.Tensor, *, keep: bool, most: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores with 0, 1, ... features removed, or alone kept, and their shares, `(batch, steps)` each."""
        counts = self.own.sum(dim=1, keepdim=True)
        last = self.features.count if most is None else min(most, self.features.count)
        shares = torch.arange(last + 1).to(counts).minimum(counts).double() / counts
        return shares, self.scores(label, rank, shares, keep=keep)

    def curve(self, name: str, attribution: Map, steps: int, *, keep: bool) -> FaithfulnessCurve:
        """Return the scores with more and more features removed, or kept."""
        shares = torch.arange(steps + 1).double() / steps
        return self.as_curve(
            name, shares, self.scores(name, self.ranks(attribution), shares, keep=keep).double(), steps=steps
        )

    def as_curve(
        self, name: str, shares: torch.Tensor, scores: torch.Tensor, fill: str | None = None, **settings: float
    ) -> FaithfulnessCurve:
        """Return scores as a result; `settings` are those of the metric."""
        return FaithfulnessCurve(
            name=name,
            shares=shares,
            scores=scores,
            fill=fill or self.coalitions.label,
            units=self.units,
            target=self.scorer.target.label,
            settings={
                **settings,
                "seed": self.seed,
                "batch_size": self.coalitions.batch_size,
                **self.scorer.passes,
            },
        )

    def mean_fall(self, name: str, attribution: Map, shares: Sequence[float], *, keep: bool) -> torch.Tensor:
        """Return the mean over shares of the score less that with the features removed, or alone kept."""
        check_shares(shares)
        least = torch.tensor(shares).double().to(self.own.device).maximum(1 / self.own.sum(dim=1, keepdim=True))
        scores = self.scores(name, self.ranks(attribution), least, keep=keep)
        return (self.ends[0].unsqueeze(1) - scores).double().mean(dim=1)


def check_shares(shares: Sequence[float]) -> None:
    """Check shares of places.

    Raises:
        OptionError: when one is not above 0 and below 1.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError(f"shares lie above 0 and below 1, got {shares!r}.")


@contextlib.contextmanager
def removal(
    model: nn.Module,
    x: Input,
    target: Spec,
    fill: Baseline,
    features: FeatureSpec,
    measure: Measure,
    seed: int,
    batch_size: BatchSize,
    forward: Forward | None,
) -> Iterator[Removal]:
    """Borrow a model to remove places of an input; arguments as in `insertion`.

    Yields:
        The `Removal`.

    Raises:
        OptionError: when the measure is unknown.
    """
    choose("measure", measure, ("auto", "score", "probability"))
    check_seed(seed)
    with borrowed(model, grad=False):
        scorer, units = Scorer(model, x, target, forward=forward), "score"
        if measure != "score":
            scorer, units = _probability(scorer, measure, forward)
        coalitions = Coalitions(scorer, fill, batch_size)
        ends = (coalitions.score, coalitions.baseline_scores())
        yield Removal(scorer, coalitions, features_of(scorer, features), ends, units, seed)


def _probability(scorer: Scorer, measure: Measure, forward: Forward | None) -> tuple[Scorer, str]:
    """Return a scorer of the probability; for `"auto"` the given one where the output holds no classes.

    Raises:
        TargetError: when a probability was asked for, and the output holds no classes.
    """
    if scorer.target.at is not None:
        return scorer, "score"
    wanted = joined(_class_probability if measure == "auto" else probability, scorer.target)
    own = Scorer(scorer.model, scorer.inputs, wanted, forward=forward)
    try:
        with torch.no_grad():
            own({name: leaf.value for name, leaf in own.leaves.items()})
    except TargetError:
        if measure == "probability":
            raise
        return scorer, "score"
    return Scorer(scorer.model, scorer.inputs, wanted, forward=forward), "probability"


def _class_probability(target: Target) -> Target:
    """The probability of a class of an output (batch, classes), or of the next token."""
    score = probability(target)

    def read(output: object, rows: torch.Tensor) -> torch.Tensor:
        if target.logit is None:
            class_scores(output)
        return score(output, rows)

    return Target(read, score.label)
