"""Sobol indices of places: the share of the score's variance under random masks that each takes part in."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import warn_of_zeros
from layerlens.errors import check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .game import Game, Solution, feature_game


@method(
    family="perturbation",
    passes="32 forward passes a feature (draws x (features + 2))",
    needs="a baseline",
    source="Fel et al. 2021; Jansen 1999",
)
def sobol(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    baseline: Baseline = "zero",
    draws: int = 32,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Estimate the total Sobol index of each feature: its share in the variance of the score under random masks.

    Masks have a number from 0 (baseline) to 1 (input) for each feature, uniform and independent, from a scrambled Sobol
    sequence; S_T(j) = E[(S(A) - S(A with j of B))^2] / (2 Var S) (Jansen 1999; for images Fel et al. 2021, eq. 5).
    Interactions count, so the indices sum to 1 or more. They have no sign.

    Args:
        draws: number of rows of the designs A and B; a power of 2 keeps the sequence balanced.

    Returns:
        An `Attribution` shaped like the input, shares of the variance, with standard errors over draws. Draws of one
        sequence are not independent, so intervals of few draws (32) are rather narrow, and those of many wide.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
        >>> sobol(net, torch.ones(1, 2), target=0, draws=64).tensor.round(decimals=1)
        tensor([[1., 0.]])
    """
    check_count("draws", draws)
    check_seed(seed)
    with feature_game(model, x, target, where, features, baseline, batch_size, forward) as game:
        found = game.solve(lambda part: _indices(part, draws, seed))
        warn_of_zeros({"": found.values}, "sobol")
        return game.attribution(
            found.values,
            method="sobol",
            settings={"draws": draws, "seed": seed},
            error=found.error if draws > 1 else None,
            degrees=draws - 1,
            signed=False,
            units="share of the variance",
        )


def _indices(game: Game, draws: int, seed: int) -> Solution:
    """Estimate the indices of samples that have the same features."""
    count = game.count
    engine = torch.quasirandom.SobolEngine(2 * count, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    one, other = engine.draw(draws).tensor_split(2, dim=1)
    mixed = one.repeat(count, 1, 1)  # (features, draws, features)
    index = torch.arange(count)
    mixed[index, :, index] = other.T
    every = torch.cat([one, other, mixed.flatten(0, 1)])
    scores = game.scores(every, "Sobol indices").double()
    a, b, rest = scores[:draws], scores[draws : 2 * draws], scores[2 * draws :].reshape(count, draws, -1)
    variance = torch.cat([a, b]).var(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    squares = (a - rest).square() / 2  # (features, draws, batch)
    values = squares.mean(dim=1) / variance
    middle = torch.cat([a, b]).mean(dim=0)
    spread = ((a - middle).square() + (b - middle).square()) / 2
    linear = squares - values.unsqueeze(1) * spread  # first order of a ratio of two means
    error = linear.std(dim=1) / draws**0.5 / variance if draws > 1 else None
    return Solution(values.T, None if error is None else error.T)
