"""A game of features: the score of any coalition of the features of an input, and the result from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec, features_of
from layerlens.analyzers.common.features.references import Baselines
from layerlens.analyzers.common.scorer import Scorer, scoring
from layerlens.errors import OptionError, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a method finds for each feature.

    Attributes:
        values: numbers by feature, `(batch, features)`.
        error: their standard errors; None for none.
        degrees: degrees of freedom of the errors.
        skewness: skewness of the values over seeds, `(batch, features)`; None for none.
        checks: each `(batch,)`.
        settings: options as used.
    """

    values: torch.Tensor
    error: torch.Tensor | None = None
    degrees: float | None = None
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    skewness: torch.Tensor | None = None

    def to(self, device: torch.device) -> Solution:
        """Return the solution on a device."""
        checks = {name: check.to(device) for name, check in self.checks.items()}
        error, skewness = (None if part is None else part.to(device) for part in (self.error, self.skewness))
        return dataclasses.replace(self, values=self.values.to(device), error=error, skewness=skewness, checks=checks)


@dataclasses.dataclass
class Game:
    """A model, its input cut into features, and the score of any coalition of them.

    Attributes:
        scorer: scorer of the borrowed model.
        coalitions: scores of inputs of which parts are removed.
        features: features of the input.
    """

    scorer: Scorer
    coalitions: Coalitions
    features: Features

    @property
    def count(self) -> int:
        """The number of features."""
        return self.features.count

    def scores(self, keep: torch.Tensor, label: str) -> torch.Tensor:
        """Return the scores `(m, batch)` with the features `(m, features)` kept."""
        return self.coalitions.features(self.features, keep, label)

    def solve(self, solver: Callable[[Game], Solution]) -> Solution:
        """Return a solution for all samples, those with the same features together (padding has none).

        Where the solutions of groups have other settings, each value is the list of theirs.
        """
        groups = self.features.groups(self.coalitions.batch)
        if len(groups) == 1:
            return solver(self)
        batch, count = self.coalitions.batch, self.count
        values, errors, skewed = torch.zeros(3, batch, count, dtype=torch.float64)
        whole = Solution(values, errors)
        settings: dict[str, list[Any]] = {}
        degrees: list[float] = []
        for rows, own, features in groups:
            coalitions = self.coalitions.of(rows.to(self.coalitions.rows.device))
            part = solver(Game(self.scorer, coalitions, features))
            place = rows.unsqueeze(1), own
            whole.values[place] = part.values.cpu().double()
            if part.error is not None and whole.error is not None:
                whole.error[place] = part.error.cpu().double()
            if part.skewness is not None:
                skewed[place] = part.skewness.cpu().double()
            degrees += [] if part.degrees is None else [part.degrees]
            for name, check in part.checks.items():
                whole.checks.setdefault(name, torch.zeros(batch, dtype=torch.float64))[rows] = check.cpu().double()
            for name, value in part.settings.items():
                settings.setdefault(name, []).append(value)
        same = {name: values[0] if len(set(values)) == 1 else values for name, values in settings.items()}
        fewest = min(degrees, default=None)
        skewness = skewed if bool(skewed.any()) else None
        whole = dataclasses.replace(whole, settings=same, degrees=fewest, skewness=skewness)
        return whole.to(self.coalitions.score.device)

    def attribution(
        self,
        values: torch.Tensor,
        *,
        method: str,
        settings: Mapping[str, Any],
        error: torch.Tensor | None = None,
        degrees: float | None = None,
        skewness: torch.Tensor | None = None,
        checks: Mapping[str, torch.Tensor] | None = None,
        signed: bool = True,
        units: str = "score",
    ) -> Attribution:
        """Return the result from numbers by feature, `(batch, features)`: every value of a feature gets its number."""
        leaves = self.scorer.leaves

        def by_place(numbers: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
            if numbers is None:
                return None
            spread = self.features.spread(numbers.to(self.coalitions.score), leaves)
            return {name: one if leaves[name].layer is None else one.sum(dim=-1) for name, one in spread.items()}

        spread = self.features.spread(values.to(self.coalitions.score), leaves)
        return self.scorer.attribution(
            {
                name: one.to(leaves[name].value.dtype) if leaves[name].value.is_floating_point() else one
                for name, one in spread.items()
            },
            method=method,
            settings={
                **settings,
                **self.coalitions.reference(),
                "features": self.count,
                "batch_size": self.coalitions.batch_size,
            },
            score=self.coalitions.score,
            signed=signed,
            units=units,
            checks=checks,
            standard_error=by_place(error),
            degrees=degrees,
            skewness=by_place(skewness),
        )


@contextlib.contextmanager
def feature_game(
    model: nn.Module,
    x: Input,
    target: Spec,
    where: Selection,
    features: FeatureSpec,
    baseline: Baseline,
    batch_size: BatchSize,
    forward: Forward | None,
    baselines: Baselines = None,
) -> Iterator[Game]:
    """Borrow the model for a game, without gradients.

    Yields:
        The game.
    """
    with scoring(model, x, target, where=where, forward=forward, grad=False) as scorer:
        coalitions = Coalitions(scorer, baseline, batch_size, baselines)
        yield Game(scorer, coalitions, features_of(scorer, features))


def efficiency_gap(values: torch.Tensor, score: torch.Tensor, baseline_score: torch.Tensor) -> torch.Tensor:
    """Return |sum of values - (S(x) - S(x'))| over |S(x) - S(x')|, `(batch,)`."""
    change = score.double() - baseline_score.double()
    gap = (values.double().sum(dim=1) - change).abs()
    return gap / torch.maximum(change.abs(), 1e-6 * score.double().abs()).clamp_min(torch.finfo(torch.float64).tiny)


def until_of(until: float | None, tolerance: float | None) -> float | None:
    """Return `until`, or what the deprecated `tolerance` of standard errors is as a half width.

    Raises:
        OptionError: when the tolerance is not above 0.

    Warns:
        DeprecationWarning: when a tolerance is given.
    """
    if tolerance is None:
        return until
    if not tolerance > 0:
        raise OptionError(f"tolerance must be above 0 or None, got {tolerance!r}.")
    warn(
        f"tolerance= of standard errors is now until= of 90 % intervals: until={1.645 * tolerance:.3g}.",
        DeprecationWarning,
    )
    return 1.645 * tolerance if until is None else until


def mean_and_error(draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the mean over the first axis and its standard error; None for one draw."""
    count = len(draws)
    return draws.mean(dim=0), draws.std(dim=0) / count**0.5 if count > 1 else None
