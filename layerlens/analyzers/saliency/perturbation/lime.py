"""LIME: the linear model that fits the scores near the input best."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .game import Game, Solution, feature_game


@method(
    family="perturbation", passes="512 forward passes (samples)", needs="a baseline",
    source="Ribeiro, Singh & Guestrin 2016",
)  # fmt: skip
def lime(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    baseline: Baseline = "zero",
    samples: int = 512,
    until: float | None = None,
    width: float = 0.25,
    ridge: float = 1.0,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Fit a linear model of which features are present near the input; the values are its coefficients.

    min over b of sum over z of exp(-d(z)^2 / width^2) (S(z) - b_0 - z . b)^2 + ridge |b|^2 (Ribeiro et al. 2016, eq. 1
    and alg. 1), z with each feature kept by a fair coin and d(z) = 1 - sqrt(share of features kept), the cosine
    distance to the input, as in the authors' package. Coefficients do not sum to the score.

    Args:
        features: ... Published for images: `"superpixels"`.
        samples: number of points drawn around the input, the same for all samples of the batch.
        width: width of the kernel.
        ridge: strength of the penalty.

    Returns:
        An `Attribution` shaped like the input, in units of the score per feature, with the standard error of the
        coefficients under the penalty; its check `"fit"` is the weighted R^2 of the linear model, `(batch,)`: a low one
        says that the score is not linear in these features, and the coefficients mean little.

    Raises:
        OptionError: when an option is out of range, or features or baseline do not fit the input.

    Example:
        >>> net = nn.Linear(3, 1)
        >>> result = lime(net, torch.ones(1, 3), target=0, ridge=1e-9)
        >>> bool(torch.allclose(result.tensor, net.weight, atol=1e-4))
        True
    """
    check_count("samples", samples)
    check_seed(seed)
    if not width > 0 or not ridge >= 0:
        raise OptionError(f"width must be above 0 and ridge at least 0, got {width!r} and {ridge!r}.")
    with feature_game(model, x, target, where, features, baseline, batch_size, forward) as game:
        found = game.solve(lambda part: _fit(part, samples, until, width, ridge, seed))
        warn_of_zeros({"": found.values}, "lime")
        return game.attribution(
            found.values,
            method="lime",
            settings={**found.settings, "width": width, "ridge": ridge, "seed": seed},
            error=found.error,
            degrees=found.degrees,
            checks=found.checks,
            units="score per feature",
        )


def _fit(game: Game, samples: int, until: float | None, width: float, ridge: float, seed: int) -> Solution:
    """Fit the linear model of samples that have the same features."""
    generator = torch.Generator().manual_seed(seed)
    keep, scores = torch.zeros(0, game.count), torch.zeros(0, game.coalitions.batch)
    rounds = Rounds("lime", "samples", samples, until, first=max(64, 4 * game.count))
    for most in rounds:
        more = (torch.rand(most - len(keep), game.count, generator=generator) < 0.5).float()
        if not len(keep):
            more[0] = 1  # the input itself
        keep, scores = torch.cat([keep, more]), torch.cat([scores.double(), game.scores(more, "LIME").double()])
        found = _solved(keep.to(scores), scores, width, ridge)
        rounds.look({"": found.values}, None if found.error is None else {"": found.error}, found.degrees)
    return dataclasses.replace(found, checks=rounds.checks(found.checks), settings=rounds.settings)


def _solved(keep: torch.Tensor, scores: torch.Tensor, width: float, ridge: float) -> Solution:
    """Fit the scores `(samples, batch)` of the points `(samples, features)`."""
    samples, count = keep.shape
    weight = torch.exp(-((1 - keep.mean(dim=1).sqrt()) ** 2) / width**2)[:, None]
    center = (weight * keep).sum(dim=0) / weight.sum()
    middle = (weight * scores).sum(dim=0) / weight.sum()
    design, answer = keep - center, scores - middle
    gram = design.T @ (weight * design)
    inverse = torch.linalg.inv(gram + ridge * torch.eye(count).to(gram))
    values = inverse @ (design.T @ (weight * answer))  # (features, batch)
    residual = answer - design @ values
    fit = 1 - (weight * residual**2).sum(dim=0) / (weight * answer**2).sum(dim=0).clamp_min(1e-300)
    meat = torch.einsum("sf,sb,sg->bfg", design, (weight * residual) ** 2, design)
    freedom = max(1, samples - count - 1)
    error = torch.stack([(inverse @ one @ inverse).diagonal() for one in meat]).clamp_min(0).sqrt()
    return Solution(values.T, error * (samples / freedom) ** 0.5, freedom, {"fit": fit})
