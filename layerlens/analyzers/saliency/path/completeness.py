"""Steps along a path until the values add up to the difference of the scores at its ends."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import torch

from layerlens.analyzers.common.messages import check_baseline, of_samples, sample_numbers
from layerlens.analyzers.common.scorer import Leaves, Scorer
from layerlens.errors import OptionError, check_count, choose, warn
from layerlens.progress import counting

Done = Callable[[int], object]
"""What is called with the number of points whose gradients are made."""

Integrate = Callable[[torch.Tensor, int, Done], Mapping[str, torch.Tensor]]
"""From samples `(n,)` and a number of steps to their values by leaf, `(n, ...)`."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """The number of steps of a path: doubled until the values are complete.

    Attributes:
        steps: number of steps at first.
        tolerance: largest relative gap that is accepted.
        max_steps: most steps.

    Raises:
        OptionError: when one is out of range.
    """

    steps: int
    tolerance: float
    max_steps: int

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("max_steps", self.max_steps)
        if not self.tolerance > 0:
            raise OptionError(f"tolerance must be above 0, got {self.tolerance!r}; math.inf accepts any gap.")


Riemann = Literal["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]
"""Riemann sums by their names in captum."""

Quadrature = Literal["gausslegendre", Riemann]
"""Rules of integration by their names in captum."""


@functools.cache
def quadrature(steps: int, rule: Quadrature = "gausslegendre") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points of a rule on 0..1 and their weights, `(steps,)` float64, whose sum is 1.

    Raises:
        OptionError: when the rule is unknown, or a trapezoid has one point.
    """
    choose("quadrature", rule, get_args(Quadrature))
    if rule == "gausslegendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return torch.as_tensor((1 + places) / 2), torch.as_tensor(weights / 2)
    counts = torch.arange(steps, dtype=torch.float64)
    if rule != "riemann_trapezoid":
        shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[rule]
        return (counts + shift) / steps, torch.full_like(counts, 1 / steps)
    if steps < 2:
        raise OptionError("quadrature='riemann_trapezoid' needs steps=2 or more.")
    shares = torch.full_like(counts, 1 / (steps - 1))
    shares[[0, -1]] /= 2
    return counts / (steps - 1), shares


def scores_at(scorer: Scorer, values: Leaves, batch: int) -> torch.Tensor:
    """Return the scores `(batch,)` of the samples with a baseline instead of the leaves, `batch` at once.

    Raises:
        TargetError: when one is not finite.
    """
    with torch.no_grad():
        chunks = torch.split(scorer.rows, batch)
        scores = [scorer({name: value[rows] for name, value in values.items()}, rows) for rows in chunks]
    return check_baseline(torch.cat(scores), scorer.target.label)


def until_complete(
    method: str,
    rows: torch.Tensor,
    integrate: Integrate,
    shapes: Mapping[str, torch.Tensor],
    score: torch.Tensor,
    baseline_score: torch.Tensor,
    steps: Steps,
    batch: int,
    spans: Mapping[str, torch.Tensor] | None = None,
    *,
    alone: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the values of all samples and their checks; samples that miss the tolerance get twice the steps, alone.

    Args:
        method: name of the method, for the bar and the warning.
        rows: samples, `(batch,)`.
        integrate: makes the values of some samples with some steps.
        shapes: a tensor per leaf, shaped like its values.
        score: S(x), `(batch,)`.
        baseline_score: S(x'), `(batch,)`.
        steps: number of steps, and the gap that is accepted.
        batch: samples that are integrated at once.
        spans: what the values are multiplied by to be complete, by leaf; None for nothing.
        alone: whether they are complete also where those of each leaf are by themselves: layers that follow each other.

    Warns:
        UserWarning: when the tolerance is not reached.
    """
    values = {name: torch.zeros_like(like, dtype=wide(like)) for name, like in shapes.items()}
    used = torch.full_like(rows, steps.steps)
    todo = rows
    while True:
        count = int(used[todo[0]])
        with counting(f"{method}, {count} steps", count * len(todo), unit="gradients") as done:
            for some in torch.split(todo, batch):
                for name, part in integrate(some, count, done).items():
                    values[name][some] = part.to(values[name].dtype)
        gap = completeness_gap(_times(values, spans), score, baseline_score)
        if alone and len(values) > 1:
            each = [completeness_gap({name: value}, score, baseline_score) for name, value in values.items()]
            gap = gap.minimum(torch.stack(each).amax(dim=0))
        todo = (gap > steps.tolerance).nonzero().flatten()
        if not len(todo) or 2 * count > steps.max_steps:
            break
        used[todo] = 2 * count
    warn_of_gap(
        f"{method}: after {count} steps",
        gap,
        steps.tolerance,
        "Raise max_steps or take another baseline; a model that jumps or draws random numbers on the way has no such "
        "sum.",
    )
    return values, {"completeness gap": gap, "steps": used}


def _times(values: Mapping[str, torch.Tensor], spans: Mapping[str, torch.Tensor] | None) -> Mapping[str, torch.Tensor]:
    return values if spans is None else {name: value * spans[name] for name, value in values.items()}


def warn_of_gap(what: str, gap: torch.Tensor, tolerance: float, advice: str) -> None:
    """Warn of the samples whose relative gap is above the tolerance."""
    missed = (gap > tolerance).nonzero().flatten().tolist()
    if missed:
        of = (
            of_samples([f"{sample_numbers([row])[0]} ({float(gap[row]):.3g})" for row in missed], len(gap))
            or f" (gap {float(gap[0]):.3g})"
        )
        warn(
            f"{what} the values{of} miss S(x) - S(baseline) by more than the tolerance {tolerance:g} of it. {advice}",
        )


def wide(value: torch.Tensor) -> torch.dtype:
    """Return the dtype in which the values of a leaf are added up: float32, or its own if that is wider."""
    return torch.promote_types(value.dtype, torch.float32)


def completeness_gap(
    values: Mapping[str, torch.Tensor], score: torch.Tensor, baseline_score: torch.Tensor
) -> torch.Tensor:
    """|sum - (S(x) - S(x'))| over |S(x) - S(x')|, `(batch,)`; a difference within rounding of S counts as that."""
    total = torch.stack([value.double().reshape(len(value), -1).sum(dim=1) for value in values.values()]).sum(dim=0)
    change = score.double() - baseline_score.double()
    rounding = 100 * torch.finfo(score.dtype).eps * torch.maximum(score.double().abs(), baseline_score.double().abs())
    tiny = torch.finfo(torch.float64).tiny
    return (total - change).abs() / torch.maximum(change.abs(), rounding).clamp_min(tiny)
