"""The metrics of a leaderboard by name: which columns each makes, and what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.results import Attribution
from layerlens.targets.target import Target

from .deletion import deletion
from .erasure import comprehensiveness, sufficiency
from .infidelity import infidelity, max_sensitivity
from .insertion import insertion
from .localization import pointing_game, relevance_mass, relevance_rank
from .road import road
from .sparsity import sparsity


@dataclasses.dataclass(frozen=True)
class Trial:
    """What every metric is computed with; see `evaluate`."""

    model: nn.Module
    inputs: Inputs
    target: Target
    fills: tuple[Any, ...]
    masks: torch.Tensor | None
    steps: int
    measure: str
    seed: int
    batch_size: BatchSize
    forward: Forward | None
    functions: dict[str, Callable[..., Attribution]]

    @property
    def common(self) -> dict[str, Any]:
        """Options that the metrics which run the model share."""
        return {"target": self.target, "seed": self.seed, "batch_size": self.batch_size, "forward": self.forward}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        values: `(trial, map, name of the method) -> [(batch,), ...]`, one for each column.
        higher: whether a larger value is better.
        needs: `"masks"`, `"functions"` or nothing.
        per_fill: whether it has a column for each fill.
    """

    values: Callable[[Trial, Any, str], list[torch.Tensor]]
    higher: bool
    needs: str = ""
    per_fill: bool = False

    def columns(self, name: str, trial: Trial) -> list[str]:
        """The names of its columns."""
        return [f"{name} ({_short(fill)})" for fill in trial.fills] if self.per_fill else [name]


def _short(fill: Any) -> str:
    return fill if isinstance(fill, str) else f"{float(fill):g}" if isinstance(fill, (int, float)) else "given"


def _area(function: Callable[..., Any]) -> Callable[[Trial, Any, str], list[torch.Tensor]]:
    def areas(trial: Trial, given: Any, name: str) -> list[torch.Tensor]:
        options = {"steps": trial.steps, "measure": trial.measure, **trial.common}
        return [function(trial.model, trial.inputs, given, fill=fill, **options).area for fill in trial.fills]

    return areas


def _fall(function: Callable[..., torch.Tensor]) -> Callable[[Trial, Any, str], list[torch.Tensor]]:
    def falls(trial: Trial, given: Any, name: str) -> list[torch.Tensor]:
        options = {"measure": trial.measure, **trial.common}
        return [function(trial.model, trial.inputs, given, fill=fill, **options) for fill in trial.fills]

    return falls


def _located(function: Callable[..., torch.Tensor]) -> Callable[[Trial, Any, str], list[torch.Tensor]]:
    return lambda trial, given, name: [function(given, trial.masks)]


def _road(trial: Trial, given: Any, name: str) -> list[torch.Tensor]:
    return [road(trial.model, trial.inputs, given, measure=trial.measure, **trial.common).area]


def _steadiness(trial: Trial, given: Any, name: str) -> list[torch.Tensor]:
    if name not in trial.functions:
        raise OptionError(f"max_sensitivity explains changed inputs: give {name!r} as a method and not as a map.")
    return [
        max_sensitivity(
            trial.model, trial.inputs, trial.functions[name], target=trial.target, seed=trial.seed,
            forward=trial.forward,
        )
    ]  # fmt: skip


METRICS: dict[str, Metric] = {
    "insertion": Metric(_area(insertion), True, per_fill=True),
    "deletion": Metric(_area(deletion), False, per_fill=True),
    "comprehensiveness": Metric(_fall(comprehensiveness), True, per_fill=True),
    "sufficiency": Metric(_fall(sufficiency), False, per_fill=True),
    "road": Metric(_road, False),
    "infidelity": Metric(
        lambda trial, given, name: [infidelity(trial.model, trial.inputs, given, **trial.common)], False
    ),
    "max_sensitivity": Metric(_steadiness, False, "functions"),
    "sparsity": Metric(lambda trial, given, name: [sparsity(given)], True),
    "pointing_game": Metric(_located(pointing_game), True, "masks"),
    "relevance_mass": Metric(_located(relevance_mass), True, "masks"),
    "relevance_rank": Metric(_located(relevance_rank), True, "masks"),
}
