"""A check of the gradient that torch computes, against finite differences."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.directional_slope import (
    NOISE,
    SMALL,
    along,
    moved_from_kinks,
    replica,
    slope_of,
)
from layerlens.analyzers.common.float64_twin import double_twin
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.errors import OptionError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.layers import Selection
from layerlens.results import GradientCheck
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .gradients_of_layers import Comparison, compare, layer_gradients

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Largest gap by the data type of the score; 0.1 for shorter ones."""


@public
def check_gradient(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    layers: Selection = (),
    directions: int = 2,
    tolerance: float | None = None,
    seed: int = 0,
    forward: Forward | None = None,
) -> GradientCheck:
    """Check the gradient of the score, as torch computes it, against finite differences along random directions.

    Every gradient method relies on torch's own backward passes. One that is wrong (a custom autograd function, a kernel
    with a bug), or that leaves out a part of the model (`detach`, `torch.no_grad`, numpy), gives a map that looks like
    any other, and a ledger that may close. Here g v is compared with (S(x + s v) - S(x - s v)) / 2s at a point next to
    x without ties. The differences are taken on a copy of the model in float64 where it runs in float64; else in its
    own type, where the check sees large errors only. The batch is run as it is given: a kernel may be wrong for one
    sample and right for two. Where samples influence each other, the scores of the batch are checked as one sum.

    Args:
        layers: layers whose gradients are checked one by one, each call on what it got in this run, see `Selection`;
            None for all. By default all of them if the whole gradient is wrong, else none.
        directions: number of random directions.
        tolerance: largest gap, relative to the size of the slope; None for 1e-4 in float64, 0.001 in float32 and 0.1 in
            half precision.

    Returns:
        A `GradientCheck`: `passed`, the gap of each sample and direction, and the layers that are wrong (`wrong`) with
        the operations that are.

    Raises:
        InputError, TargetError: as for `saliency`; TargetError also if no gradient reaches the input at all.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range.

    Cost:
        1 gradient, and 2 to 10 forward passes in float64 for each direction; with layers the same again for each level
        of nesting.

    Example:
        >>> class Wrong(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         return 3 * g
        >>> class Doubled(nn.Module):
        ...     def forward(self, x):
        ...         return Wrong.apply(x)
        >>> net = nn.Sequential(nn.Linear(4, 4), Doubled(), nn.Linear(4, 2))
        >>> found = check_gradient(net, torch.ones(1, 4), target=0)
        >>> found.passed, found.wrong[0].layer, found.wrong[0].cause
        (False, '1', 'the backward pass of Wrong')
    """
    check_count("directions", directions)
    if tolerance is not None and not tolerance > 0:
        raise OptionError(f"tolerance must be above 0, got {tolerance!r}.")
    draw = torch.Generator().manual_seed(seed)
    with scoring(model, x, target, forward=forward) as scorer:
        with torch.no_grad():
            scorer(scorer.values())  # a target that depends on the output is chosen at the input itself
        points = {name: moved_from_kinks(value, draw)[0] for name, value in scorer.values().items()}
        generators = generator_states()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the model cuts a signal")  # the result says so
            scorer.interacting = False  # the differences are those of the sum, if samples influence each other
            score, slopes = gradients(scorer, points)
        limit = TOLERANCES.get(score.dtype, 0.1) if tolerance is None else tolerance
        exact, reason = (scorer, "") if score.dtype is torch.float64 else double_twin(scorer)
        measured = [
            _along_one(exact or scorer, exact is not None, points, slopes, draw, generators) for _ in range(directions)
        ]
        method = "differences in float64" if exact else f"differences in {_name(score.dtype)}: {reason}"
        slope, difference, gap, error = (torch.stack(column).cpu() for column in zip(*measured, strict=True))
        found = GradientCheck(slope, difference, gap, error, limit, method, scorer.target.label)
        by_default = isinstance(layers, tuple) and not layers
        if by_default and found.passed is not False:
            return found
        chosen = layer_gradients(scorer, exact, points, None if by_default else layers, directions, limit, draw)
    return dataclasses.replace(found, layers=tuple(chosen))


def _along_one(
    exact: Scorer, double: bool, points: Leaves, slopes: Leaves, draw: torch.Generator, generators: dict[str, Any]
) -> Comparison:
    """The slope along one random direction by both ways, sample by sample; every run draws the same numbers."""
    steps = {name: moved_from_kinks(value, draw)[1] for name, value in points.items()}
    dtype = torch.float64 if double else next(iter(points.values())).dtype
    starts = {name: replica(value, dtype) for name, value in points.items()}

    def score_at(step: float) -> torch.Tensor:
        restore_generators(generators)
        with torch.no_grad():
            return exact(along(starts, steps, step))

    count = len(exact.rows)
    found = compare(slopes, steps, slope_of(score_at, dtype), batch=count)
    if count < 2 or bool((found.gap <= SMALL).all()) or not _influence(exact, starts, steps, generators):
        return found
    scores = slice(1) if exact.joint else slice(count)  # one value for the batch is the score of each
    whole = compare(slopes, steps, slope_of(lambda step: score_at(step)[scores].sum().reshape(1), dtype), batch=1)
    return Comparison(*(part.expand(count) for part in whole))


def _influence(exact: Scorer, starts: Leaves, steps: Leaves, generators: dict[str, Any]) -> bool:
    """Return whether a step of some samples moves the scores of others."""

    def scores(values: Leaves) -> torch.Tensor:
        restore_generators(generators)
        with torch.no_grad():
            return exact(values)

    still = torch.arange(len(exact.rows), device=exact.rows.device) % 2
    for kept in (still, 1 - still):
        moved = {
            name: torch.where(kept.reshape(-1, *[1] * (value.ndim - 1)).bool(), 0, steps[name].to(value))
            for name, value in starts.items()
        }
        if not nearly_equal(scores(along(starts, moved, NOISE))[kept.bool()], scores(starts)[kept.bool()]):
            return True
    return False


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
