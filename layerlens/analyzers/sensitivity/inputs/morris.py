"""Elementary effects: how far the score moves when one feature steps, from many points."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import OptionError, check_count, warn
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.progress import track
from layerlens.results import Ranking
from layerlens.targets.target import Spec

from .distribution import Study, StudyOptions, study
from .feature_names import Names, Ranges

SERIES = ("mu*", "sigma")


@measure(
    question="responds_to_input",
    cost="r (D + 1) F for D features, r = 20 trajectories",
    needs="ranges, rows of data or a baseline",
    source="Morris 1991; Campolongo et al. 2007",
)
def morris(
    model: nn.Module,
    x: Input,
    *,
    ranges: Ranges | None = None,
    baseline: Baseline | None = None,
    features: FeatureSpec = None,
    names: Names = None,
    target: Spec = None,
    trajectories: int = 20,
    levels: int = 4,
    null: bool = False,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> Ranking:
    """Measure how far the score moves when one feature at a time takes a step, from points all over the distribution.

    Every feature runs over its range as u from 0 to 1 on a grid of p levels. A trajectory starts at a random point of
    the grid and steps each feature once, in random order, by D = p / (2 (p - 1)) up or down (Morris 1991). With the
    elementary effects e = (y(u + D) - y(u)) / D of r trajectories:

    - mu* = mean |e|: how much the feature matters (Campolongo et al. 2007); |weight| x range for a linear model;
    - sigma = standard deviation of e: how much that varies over the distribution, by curvature or by interactions; 0
      for a linear model.

    A screening: far cheaper than `sobol`, without shares of a variance. Of several outputs (`target=None`) |e| is the
    Euclidean length, and sigma the root of the summed variances.

    Args:
        x: ... Without `ranges` and `baseline` each value runs from the smallest to the largest that it has in the rows
            of x.
        ranges: as in `sobol`.
        baseline: as in `sobol`: the feature goes from there to its value in x; the mean over the samples of x.
        features: as in `sobol`; all values of a feature step together.
        names: as in `sobol`.
        target: what to score, see `as_target`; None for all outputs together.
        trajectories: number of trajectories, r; 10 to 50 are usual.
        levels: levels of the grid, p; an even number.

    Returns:
        A `Ranking` with values `(features, 2)`, mu* and sigma, in units of the score over the full range of the
        feature, with standard errors over trajectories (jackknife). Check `"mu"`: the mean of e, whose sign is the
        direction, `(features,)`, or `(features, outputs)`.

    Raises:
        InputError: when the input cannot be read or nothing in it can vary.
        OptionError: when an option is out of range, or does not fit the input.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when there is only one trajectory, or x has few rows.

    Example:
        >>> net = nn.Linear(2, 1).requires_grad_(False)
        >>> _ = net.weight.copy_(torch.tensor([[3.0, -1.0]]))
        >>> effects = morris(net, torch.zeros(1, 2), ranges=[(0, 1), (0, 4)])
        >>> effects.values.round(decimals=3).tolist()  # |weight| x range, no curvature
        [[3.0, 0.0], [4.0, 0.0]]
    """
    check_count("trajectories", trajectories)
    check_count("levels", levels)
    if levels % 2:
        raise OptionError(f"levels must be an even number, for steps of half the grid; got {levels}.")
    options = StudyOptions(ranges, baseline, features, names, target, batch_size, seed, spread=True)
    with borrowed(model, grad=False), layers_called():
        measured = study(model, held_input(model, x, hold, forward), forward, options)
        design = Design(measured.features.count, trajectories, levels, seed)
        values, error, mu = _effects(measured, design, progress)
        null_values = None
        if null:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the same warnings as above
                null_study = study(model, x, shuffled(model, forward, seed), options)
            null_values = _effects(null_study, design, progress)[0]
    if trajectories == 1:
        warn("morris: one trajectory gives no sigma and no standard error. Use trajectories=20.")
    passes = trajectories * (measured.features.count + 1) * measured.bases
    return Ranking(
        quantity="elementary effect",
        items=measured.names,
        values=values,
        units="units of the score over the range of the feature",
        signed=False,
        method=f"elementary effects, {trajectories} trajectories, {passes} rows run, {measured.distribution}",
        settings={
            "trajectories": trajectories,
            "levels": levels,
            "forwards": passes,
            "features": measured.features.count,
            "distribution": measured.distribution,
            "target": measured.label,
            "batch_size": measured.batch_size,
            **measured.passes,
            "seed": seed,
        },
        series=SERIES,
        error=error,
        degrees=None if error is None else trajectories - 1,
        null=null_values,
        checks={"mu": mu},
        explanation=(
            "mu* is how far the score moves, on average and without sign, when a feature crosses its range, and sigma "
            "how much that varies over the distribution, by curvature or by other features.",
            "It screens features on a coarse grid and is not a share of a variance, and a large sigma does not "
            "distinguish curvature from interaction: sobol does.",
        ),
    )


class Design:
    """Trajectories on the grid.

    Attributes:
        points: points from 0 to 1, `(trajectories, features + 1, features)`.
        order: the feature of each step, `(trajectories, features)`.
        steps: size of each step with its sign, `(trajectories, features)`.
    """

    def __init__(self, features: int, trajectories: int, levels: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        half, step = levels // 2, levels / (2 * (levels - 1))
        start = torch.randint(half, (trajectories, features), generator=generator)
        up = torch.randint(2, (trajectories, features), generator=generator).bool()
        low = start.double() / (levels - 1)
        here = torch.where(up, low, low + step)
        self.order = torch.stack([torch.randperm(features, generator=generator) for _ in range(trajectories)])
        signed = torch.where(up, step, -step).double()
        self.steps = signed.gather(1, self.order)
        after = torch.where(up, low + step, low)
        turn = torch.argsort(self.order, dim=1)  # (trajectories, features): when each feature steps
        moved = torch.arange(features + 1).reshape(1, -1, 1) > turn.unsqueeze(1)
        self.points = torch.where(moved, after.unsqueeze(1), here.unsqueeze(1))


def _effects(
    measured: Study, design: Design, progress: bool | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return mu* and sigma `(features, 2)`, their errors, and mu."""
    count, length, _ = design.points.shape
    parts = torch.split(torch.arange(count), min(count, measured.batch_size))
    jobs = [
        (base, part, turn) for base in range(measured.bases) for part in range(len(parts)) for turn in range(length)
    ]
    scores: list[list[torch.Tensor]] = [[] for _ in range(measured.bases)]
    for base, part, turn in track(jobs, "elementary effects", enabled=progress):
        scores[base].append(measured(design.points[parts[part], turn], base, part))
    by_base = []
    for one in scores:
        runs = [torch.stack(one[first : first + length], dim=1) for first in range(0, len(one), length)]
        y = torch.cat(runs)  # (trajectories, features + 1, outputs)
        effects = (y[:, 1:] - y[:, :-1]) / design.steps.unsqueeze(2)  # in the order of the steps
        index = design.order.unsqueeze(2).expand_as(effects)
        by_base.append(torch.empty_like(effects).scatter_(1, index, effects))
    stacked = torch.stack(by_base)  # (bases, trajectories, features, outputs)
    mu = stacked.mean(dim=(0, 1))
    values = _summary(stacked)
    if count < 3:
        return values, None, mu.squeeze(1) if mu.shape[1] == 1 else mu
    keep = ~torch.eye(count, dtype=torch.bool)
    left = torch.stack([_summary(stacked[:, rows]) for rows in keep])
    error = ((left - left.mean(dim=0)).square().sum(dim=0) * (count - 1) / count).sqrt()
    return values, error, mu.squeeze(1) if mu.shape[1] == 1 else mu


def _summary(effects: torch.Tensor) -> torch.Tensor:
    """Return mu* and sigma, `(features, 2)`, mean over bases, of `(bases, trajectories, features, outputs)`."""
    star = effects.norm(dim=3).mean(dim=1)
    if effects.shape[1] < 2:
        return torch.stack([star, torch.full_like(star, float("nan"))], dim=2).mean(dim=0)
    sigma = effects.var(dim=1).sum(dim=2).sqrt()
    return torch.stack([star, sigma], dim=2).mean(dim=0)
