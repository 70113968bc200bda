"""Blur integrated gradients: from a blurred input to the sharp one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import gaussian_blur
from layerlens.analyzers.common.leaves.leaves import spread_axes
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring, warn_of_zeros
from layerlens.errors import InputError, OptionError, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .completeness import Done, Steps, scores_at, until_complete


@method(
    family="path",
    passes="50 gradients or more (steps, until it is complete)",
    needs="an image or a volume or a series",
    source="Xu, Venugopalan & Sundararajan 2020",
)
def blur_ig(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    max_sigma: float = 0.25,
    steps: int = 50,
    tolerance: float = 0.05,
    max_steps: int = 200,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Integrate the gradient along ever less blurred inputs; the values sum to S(x) - S(most blurred).

    BlurIG(i) = integral over sigma from max_sigma to 0 of dS/dL(i, sigma) dL(i, sigma)/dsigma, where L is the input
    under a Gaussian of that width (Xu, Venugopalan & Sundararajan 2020, eq. 4). No baseline is made up: what the path
    starts from has the colors of the input and no edges. Widths grow with the square of the step, and each piece
    between two blurs is taken by its chord, with the gradient in its middle.

    Args:
        x: input of the model: images, volumes, video or series, `(batch, ...)`.
        where: ... The layer has places.
        max_sigma: standard deviation of the widest blur, as a share of each side.
        steps: number of gradients along the path, at first.

    Returns:
        ... Its checks are the relative `"completeness gap"` and the `"steps"` of each sample.

    Raises:
        InputError: when the input has no places next to each other (token ids, tables).
        OptionError: when an option is out of range.

    Warns:
        UserWarning: when one of several inputs cannot be blurred, the tolerance is not reached, or the values of a
            sample are zero everywhere.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
        >>> result = blur_ig(net, torch.randn(1, 1, 8, 8), target=1)
        >>> bool(result.checks["completeness gap"] < 0.01)
        True
    """
    path = Steps(steps, tolerance, max_steps)
    if not max_sigma > 0:
        raise OptionError(f"max_sigma must be above 0, got {max_sigma!r}.")
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        ends = scorer.values()
        axes = {name: spread_axes(leaf) for name, leaf in scorer.leaves.items()}
        if not any(axes.values()):
            listed = ", ".join(f"{name} {describe(end)}" for name, end in ends.items())
            raise InputError(
                f"blur_ig needs an input with places next to each other: an image, a volume, video or a series; got "
                f"{listed}. integrated_gradients takes any."
            )
        still = [name for name in ends if not axes[name]]
        if still:
            warn(
                f"blur_ig: input {', '.join(map(repr, still))} has no places next to each other, so it is not blurred "
                "and gets zeros: its part of the score is not explained. integrated_gradients explains all inputs.",
            )
        score, batch = first_score(scorer, ends, batch_size)

        def blurred(rows: torch.Tensor, part: float) -> Leaves:
            """The samples `rows` under the blur at `part` of the way: 0 is the widest, 1 the input."""
            width = max_sigma * (1 - part) ** 2
            return {
                name: gaussian_blur(end[rows], {axis: width * end.shape[axis] for axis in axes[name]})
                for name, end in ends.items()
            }

        def integrate(rows: torch.Tensor, count: int, done: Done) -> Leaves:
            return integrate_pieces(
                scorer, lambda index: blurred(rows, index / count), count, rows, max(batch, len(rows)), done
            )

        values, checks = until_complete(
            "blur_ig",
            scorer.rows,
            integrate,
            ends,
            score,
            scores_at(scorer, blurred(scorer.rows, 0.0), batch),
            path,
            batch,
        )
        warn_of_zeros(values, "blur_ig")
        return scorer.attribution(
            {name: value.to(ends[name].dtype) for name, value in values.items()},
            method="blur_ig",
            settings={"max_sigma": max_sigma, **dataclasses.asdict(path), "batch_size": batch},
            score=score,
            checks=checks,
        )


Points = Callable[[int], Leaves]
"""From an index 0..steps to the point there: a tensor `(rows, ...)` by leaf."""


def integrate_pieces(
    scorer: Scorer, point: Points, steps: int, rows: torch.Tensor, batch: int, done: Done
) -> dict[str, torch.Tensor]:
    """The sum over pieces of (end - start) dS/dx at the middle of the piece, `(rows, ...)` by leaf.

    The middle makes it exact for a score that is quadratic along each piece.

    Args:
        scorer: scorer of a borrowed model.
        point: makes the points of the line.
        steps: number of pieces of the line.
        rows: samples, `(n,)`.
        batch: rows per pass.
        done: called with the number of gradients after each pass.
    """
    total: dict[str, torch.Tensor] = {}
    together = max(1, batch // len(rows))
    last = point(0)
    for first in range(0, steps, together):
        count = min(together, steps - first)
        points = [last, *(point(first + k + 1) for k in range(count))]
        last = points[-1]
        middles, moves = {}, {}
        for name in last:
            stacked = torch.stack([one[name] for one in points]).to(_wide(last[name]))
            middles[name] = ((stacked[:-1] + stacked[1:]) / 2).flatten(0, 1).to(last[name].dtype)
            moves[name] = stacked.diff(dim=0)
        _, slopes = gradients(scorer, middles, rows.repeat(count))
        done(count * len(rows))
        for name, slope in slopes.items():
            part = (slope.reshape(moves[name].shape) * moves[name]).sum(dim=0)
            total[name] = total[name] + part if name in total else part
    return total


def _wide(value: torch.Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
