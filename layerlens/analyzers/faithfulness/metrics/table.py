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

from ..explaining import Explain
from ..randomization import efficient_mprt, smooth_mprt
from .axioms import completeness, monotonicity, non_sensitivity
from .correlations import faithfulness_correlation, faithfulness_estimate, monotonicity_correlation, sensitivity_n
from .infidelity import infidelity, max_sensitivity
from .insertion_deletion import Measure, comprehensiveness, deletion, insertion, sufficiency
from .localization import pointing_game, relevance_mass, relevance_rank
from .place_ranks import Map
from .random_logit import random_logit
from .regions import irof, region_perturbation
from .road import road
from .sparsity import complexity, sparsity
from .stability import (
    local_lipschitz_estimate,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)


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


def _infidelity(setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
    if not isinstance(attribution, Attribution) and name in setting.functions:  # a control has a value for each place
        attribution = setting.functions[name](
            setting.model, setting.inputs, target=setting.target, forward=setting.forward
        )
    return [setting.run(infidelity, attribution)]


def _located(metric: Callable[..., torch.Tensor]) -> Columns:
    return lambda setting, attribution, name: [metric(attribution, setting.masks)]


def _explained(metric: Callable[..., torch.Tensor], higher: bool = False, again: str = "changed inputs") -> Metric:
    """Return a metric of what a method makes of something else: `again` says of what."""

    def values(setting: Setting, attribution: Map, name: str) -> list[torch.Tensor]:
        label = metric.__name__
        if name not in setting.functions:
            raise OptionError(f"{label} explains {again}: give {name!r} as a method and not as a map.")
        shared = {"target": setting.target, "seed": setting.seed, "forward": setting.forward}
        return [metric(setting.model, setting.inputs, setting.functions[name], **shared)]

    return Metric(values, higher, "functions")


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
    "infidelity": Metric(_infidelity, False),
    "max_sensitivity": _explained(max_sensitivity),
    "local_lipschitz_estimate": _explained(local_lipschitz_estimate),
    "relative_input_stability": _explained(relative_input_stability),
    "relative_output_stability": _explained(relative_output_stability),
    "relative_representation_stability": _explained(relative_representation_stability),
    "random_logit": _explained(random_logit, again="another class"),
    "smooth_mprt": _explained(smooth_mprt, again="other parameters"),
    "efficient_mprt": _explained(efficient_mprt, True, again="other parameters"),
    "sparsity": Metric(lambda setting, attribution, name: [sparsity(attribution)], True),
    "complexity": Metric(lambda setting, attribution, name: [complexity(attribution)], False),
    "pointing_game": Metric(_located(pointing_game), True, "masks"),
    "relevance_mass": Metric(_located(relevance_mass), True, "masks"),
    "relevance_rank": Metric(_located(relevance_rank), True, "masks"),
}
