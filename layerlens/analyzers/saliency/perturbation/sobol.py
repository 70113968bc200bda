"""Sobol indices of places: the share of the score's variance under random masks that each takes part in."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import warn_of_zeros
from layerlens.analyzers.common.statistics import error_and_skewness
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
    until: float | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Estimate the total Sobol index of each feature: its share in the variance of the score under random masks.

    Masks have a number from 0 (baseline) to 1 (input) for each feature, uniform and independent;
    S_T(j) = E[(S(A) - S(A with j of B))^2] / (2 Var S) (Jansen 1999; for images Fel et al. 2021, eq. 5).
    Interactions count, so the indices sum to 1 or more. They have no sign.

    The published masks are a Sobol sequence. Its rows are not independent, so that intervals do not hold (97 % with 128
    draws of 10 features), and it pays late: errors of 32 draws are the same, of 128 draws of 10 features 0.6 times.

    Args:
        draws: number of rows of the designs A and B.

    Returns:
        An `Attribution` shaped like the input, shares of the variance, with standard errors over draws.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
        >>> sobol(net, torch.ones(1, 2), target=0, draws=1024).tensor.round(decimals=1)
        tensor([[1., 0.]])
    """
    check_count("draws", draws)
    check_seed(seed)
    with feature_game(model, x, target, where, features, baseline, batch_size, forward) as game:
        found = game.solve(lambda part: _indices(part, draws, until, seed))
        warn_of_zeros({"": found.values}, "sobol")
        return game.attribution(
            found.values,
            method="sobol",
            settings={**found.settings, "seed": seed},
            error=found.error,
            degrees=found.degrees,
            skewness=found.skewness,
            checks=found.checks,
            signed=False,
            units="share of the variance",
        )


def _indices(game: Game, draws: int, until: float | None, seed: int) -> Solution:
    """Estimate the indices of samples that have the same features."""
    count, batch = game.count, game.coalitions.batch
    generator, index = torch.Generator().manual_seed(seed), torch.arange(game.count)
    a, b = torch.zeros(2, 0, batch, dtype=torch.float64)
    rest = torch.zeros(count, 0, batch, dtype=torch.float64)
    rounds = Rounds("sobol", "draws", draws, until, first=32)
    for most in rounds:
        more = most - len(a)
        one, other = torch.rand(more, 2 * count, generator=generator).tensor_split(2, dim=1)
        mixed = one.repeat(count, 1, 1)  # (features, more, features)
        mixed[index, :, index] = other.T
        scores = game.scores(torch.cat([one, other, mixed.flatten(0, 1)]), "Sobol indices").double()
        a, b = torch.cat([a.to(scores), scores[:more]]), torch.cat([b.to(scores), scores[more : 2 * more]])
        rest = torch.cat([rest.to(scores), scores[2 * more :].reshape(count, more, batch)], dim=1)
        values, error, skewness = _estimated(a, b, rest)
        rounds.look({"": values}, {"": error}, most - 1, {"": skewness})
    known = draws > 1
    return Solution(
        values,
        error if known else None,
        max(1, rounds.count - 1),
        rounds.checks(),
        rounds.settings,
        skewness=skewness if known else None,
    )


def _estimated(a: torch.Tensor, b: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return indices, their standard errors and their skewness, each `(batch, features)`."""
    variance = torch.cat([a, b]).var(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    squares = (a - rest).square() / 2  # (features, draws, batch)
    values = squares.mean(dim=1) / variance
    middle = torch.cat([a, b]).mean(dim=0)
    spread = ((a - middle).square() + (b - middle).square()) / 2
    linear = squares - values.unsqueeze(1) * spread  # first order of a ratio of two means
    linear = (linear - linear.mean(dim=1, keepdim=True)).movedim(1, 0) / variance  # (draws, features, batch)
    error, skewness = error_and_skewness(linear.square().mean(dim=0), linear.pow(3).mean(dim=0), len(a))
    return values.T, error.T, skewness.T
