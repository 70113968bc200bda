"""Guided integrated gradients: a path from the baseline that avoids large gradients."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, gradients, scoring, warn_of_zeros
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .completeness import Steps, completeness_gap, scores_at, warn_of_gap


@method(
    family="path",
    passes="100 gradients (steps), one after the other",
    needs="a baseline",
    source="Kapishnikov et al. 2021",
    by_lengths=True,
)
def guided_ig(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline = "zero",
    fraction: float = 0.25,
    max_dist: float = 0.02,
    steps: int = 100,
    tolerance: float = 0.5,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Integrate the gradient on a path that moves the values with the smallest gradients first.

    At every step the quarter of the values whose |dS/dx| is smallest moves towards the input, until an equal part of
    the whole L1 distance is covered; no value may be more than `max_dist` ahead of the straight path or behind it
    (Kapishnikov et al. 2021, algorithm 1): the path avoids the large gradients that leave noise in the map. A step
    counts by the mean of the gradients at its two ends; published is the gradient at its start, which the choice of
    the path makes small: on EfficientNet-Lite0 the sum then misses S(x) - S(x') by .7 to 2.2 of it with 200 steps,
    with both ends by .2 to .4. `integrated_gradients` and `blur_ig` come closer.

    Args:
        fraction: share of the values that move together.
        max_dist: 0 for the straight path; 1 lets every value move at any time.
        steps: number of gradients along the path.
        tolerance: largest |sum - (S(x) - S(x'))| / |S(x) - S(x')| without a warning.

    Returns:
        ... Its check is the relative `"completeness gap"`.

    Raises:
        OptionError: when an option is out of range, or the baseline does not fit the input.

    Warns:
        UserWarning: when the tolerance is not reached, or the values of a sample are zero everywhere.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> bool(torch.allclose(guided_ig(net, torch.ones(1, 2), steps=4).tensor, net.weight))
        True
    """
    Steps(steps, tolerance, steps)  # which checks them
    if not 0 < fraction <= 1:
        raise OptionError(f"fraction must be above 0 and at most 1, got {fraction!r}.")
    if not 0 <= max_dist <= 1:
        raise OptionError(f"max_dist must be between 0 and 1, got {max_dist!r}.")
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        starts, label = baselines(scorer, baseline)
        baseline_score = scores_at(scorer, starts, batch)

        values: Leaves = {name: torch.zeros_like(end) for name, end in ends.items()}
        for rows in torch.split(scorer.rows, batch):
            paths = [GuidedPath(_flat(starts, row), _flat(ends, row), fraction, max_dist) for row in rows.tolist()]
            for index in track(range(steps + 1), "guided_ig"):
                points = _folded(torch.stack([path.at for path in paths]), ends)
                slopes = gradients(scorer, points, rows)[1]
                flat = torch.cat([slope.double().flatten(1) for slope in slopes.values()], dim=1)
                for path, slope in zip(paths, flat, strict=True):
                    if index < steps:
                        path.step(slope, (index + 1) / steps)
                    else:
                        path.gather(slope)
            for name, part in _folded(torch.stack([path.total for path in paths]), ends).items():
                values[name][rows] = part
        gap = completeness_gap(values, score, baseline_score)
        warn_of_gap("guided_ig:", gap, tolerance, "Take more steps, a smaller max_dist, or integrated_gradients.")
        warn_of_zeros(values, "guided_ig")
        return scorer.attribution(
            values,
            method="guided_ig",
            settings={
                "baseline": label,
                "fraction": fraction,
                "max_dist": max_dist,
                "steps": steps,
                "tolerance": tolerance,
                "batch_size": batch,
            },
            score=score,
            checks={"completeness gap": gap},
        )


def _flat(values: Leaves, row: int) -> torch.Tensor:
    """All values of one sample in a row, in float64."""
    return torch.cat([value[row].double().flatten() for value in values.values()])


def _folded(flat: torch.Tensor, like: Leaves) -> Leaves:
    """Rows of values, `(n, values)`, by leaf and in its shape and dtype."""
    parts = torch.split(flat, [value[0].numel() for value in like.values()], dim=1)
    return {
        name: part.reshape(-1, *value.shape[1:]).to(value.dtype)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


@dataclasses.dataclass
class GuidedPath:
    """The path of one sample from a baseline to the input.

    Attributes:
        start: the baseline, `(values,)`.
        end: the input, `(values,)`.
        fraction: share of the values, those with the smallest gradients, that move together.
        max_dist: largest distance of a value ahead of the straight path or behind it, as a share of it.
    """

    start: torch.Tensor
    end: torch.Tensor
    fraction: float
    max_dist: float

    def __post_init__(self) -> None:
        self.at = self.start.clone()
        self.total = torch.zeros_like(self.start)
        self._move: torch.Tensor | None = None
        self._delta = self.end - self.start
        self._rises = self._delta > 0
        self._length = float(self._delta.abs().sum())

    def step(self, slope: torch.Tensor, alpha: float) -> None:
        """Continue until the share `alpha` of the length is covered.

        Args:
            slope: dS/dx at `at`, `(values,)`.
            alpha: share, 0..1.
        """
        self.gather(slope)
        low, high = max(alpha - self.max_dist, 0.0), min(alpha + self.max_dist, 1.0)
        lowest, highest = self.start + low * self._delta, self.start + high * self._delta
        if high == 1.0:
            highest = self.end
        goal, size = self._length * (1 - alpha), slope.nan_to_num(nan=torch.inf).abs()  # what has no slope moves last
        before = self.at
        now = torch.where(self._rises, before.maximum(lowest), before.minimum(lowest))
        while True:
            left = float((now - self.end).abs().sum())
            free = now != highest
            if left - goal <= 1e-9 * self._length or not bool(free.any()):
                break
            ranked = torch.where(free, size, torch.inf)
            threshold = ranked.kthvalue(int(self.fraction * (len(ranked) - 1)) + 1).values
            chosen = (ranked <= threshold) & free
            room = float(((now - highest).abs() * chosen).sum())
            gamma = (left - goal) / room if room > 0 else 1.0
            if gamma >= 1:
                now = torch.where(chosen, highest, now)
            else:
                now = torch.where(chosen, torch.lerp(now, highest, gamma), now)
                break
        self._move = now - before
        self.total += self._move * slope / 2
        self.at = now

    def gather(self, slope: torch.Tensor) -> None:
        """Add the effect of the last move by the gradient at its end; `step` added it by the gradient at its start."""
        if self._move is not None:
            self.total += self._move * slope / 2
            self._move = None
