"""The metrics of a leaderboard by name: which columns each makes, and what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.results import Attribution
from layerlens.targets.target import Target

from .axioms import completeness, monotonicity, non_sensitivity
from .correlations import faithfulness_correlation, faithfulness_estimate, monotonicity_correlation, sensitivity_n
from .infidelity import infidelity, max_sensitivity
from .insertion_deletion import Measure, comprehensiveness, deletion, insertion, sufficiency
from .localization import pointing_game, relevance_mass, relevance_rank
from .place_ranks import Map
from .regions import irof, region_perturbation
from .road import road
from .sparsity import complexity, sparsity

Explain = Callable[..., Attribution]
"""`(model, x, target=..., forward=...) -> Attribution`."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What every metric is computed with; see `evaluate`."""

    model: nn.Module
    inputs: Inputs
    target: Target
    fills: tuple[Baseline, ...]
    masks: torch.Tensor | None
    steps: int
    measure: Measure
    seed: int
    batch_size: BatchSize
    forward: Forward | None
    functions: dict[str, Explain]

    def run(self, metric: Callable[..., Any], attribution: Map, **options: Any) -> Any:
        """Compute a metric that runs the model."""
        shared = {"target": self.target, "seed": self.seed, "batch_size": self.batch_size, "forward": self.forward}
        return metric(self.model, self.inputs, attribution, **shared, **options)


class Columns(Protocol):
    """Computes the columns of a metric for one map."""

    def __call__(self, setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
        """Return one `(batch,)` per column; `name` is that of the method."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a leaderboard.

    Attributes:
        values: computes its columns.
        higher: whether a larger value is better.
        needs: `"masks"`, `"functions"` or nothing.
        per_fill: whether it has a column for each fill.
    """

    values: Columns
    higher: bool
    needs: str = ""
    per_fill: bool = False

    def columns(self, name: str, setting: Setting) -> list[str]:
        """Name its columns."""
        return [f"{name} ({_short(fill)})" for fill in setting.fills] if self.per_fill else [name]


def _short(fill: Baseline) -> str:
    return fill if isinstance(fill, str) else f"{float(fill):g}" if isinstance(fill, (int, float)) else "given"


def _areas(metric: Callable[..., Any], *, stepped: bool = True) -> Columns:
    def values(setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
        options = {"measure": setting.measure} | ({"steps": setting.steps} if stepped else {})
        return [setting.run(metric, attribution, fill=fill, **options).area for fill in setting.fills]

    return values


def _falls(metric: Callable[..., torch.Tensor]) -> Columns:
    def values(setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
        return [setting.run(metric, attribution, fill=fill, measure=setting.measure) for fill in setting.fills]

    return values


def _measured(metric: Callable[..., torch.Tensor]) -> Columns:
    return lambda setting, attribution, name: [setting.run(metric, attribution, measure=setting.measure)]


def _complete(setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
    return [setting.run(completeness, attribution, fill=fill) for fill in setting.fills]


def _located(metric: Callable[..., torch.Tensor]) -> Columns:
    return lambda setting, attribution, name: [metric(attribution, setting.masks)]


def _max_sensitivity(setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
    """Explain changed inputs.

    Raises:
        OptionError: when the map was given, and not made by a method.
    """
    if name not in setting.functions:
        raise OptionError(f"max_sensitivity explains changed inputs: give {name!r} as a method and not as a map.")
    explain, seed = setting.functions[name], setting.seed
    return [
        max_sensitivity(
            setting.model, setting.inputs, explain, target=setting.target, seed=seed, forward=setting.forward
        )
    ]


METRICS: dict[str, Metric] = {
    "insertion": Metric(_areas(insertion), True, per_fill=True),
    "deletion": Metric(_areas(deletion), False, per_fill=True),
    "comprehensiveness": Metric(_falls(comprehensiveness), True, per_fill=True),
    "sufficiency": Metric(_falls(sufficiency), False, per_fill=True),
    "road": Metric(
        lambda setting, attribution, name: [setting.run(road, attribution, measure=setting.measure).area], False
    ),
    "region_perturbation": Metric(_falls(region_perturbation), True, per_fill=True),
    "irof": Metric(_falls(irof), True, per_fill=True),
    "faithfulness_correlation": Metric(_falls(faithfulness_correlation), True, per_fill=True),
    "faithfulness_estimate": Metric(_falls(faithfulness_estimate), True, per_fill=True),
    "sensitivity_n": Metric(_areas(sensitivity_n, stepped=False), True, per_fill=True),
    "monotonicity": Metric(_falls(monotonicity), True, per_fill=True),
    "monotonicity_correlation": Metric(_measured(monotonicity_correlation), True),
    "completeness": Metric(_complete, False, per_fill=True),
    "non_sensitivity": Metric(_measured(non_sensitivity), False),
    "infidelity": Metric(lambda setting, attribution, name: [setting.run(infidelity, attribution)], False),
    "max_sensitivity": Metric(_max_sensitivity, False, "functions"),
    "sparsity": Metric(lambda setting, attribution, name: [sparsity(attribution)], True),
    "complexity": Metric(lambda setting, attribution, name: [complexity(attribution)], False),
    "pointing_game": Metric(_located(pointing_game), True, "masks"),
    "relevance_mass": Metric(_located(relevance_mass), True, "masks"),
    "relevance_rank": Metric(_located(relevance_rank), True, "masks"),
}
