"""Shapley values: by sampling orders of the features, and as a weighted least squares fit (KernelSHAP)."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.features.references import Baselines
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .game import Game, Solution, efficiency_gap, feature_game, mean_and_error, until_of


@method(
    family="perturbation",
    passes="26 forward passes a feature (permutations)",
    needs="a baseline",
    source="Castro, Gomez & Tejada 2009; Strumbelj & Kononenko 2010",
)
def shapley_sampling(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    baseline: Baseline = "zero",
    baselines: Baselines = None,
    permutations: int = 26,
    until: float | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Sample Shapley values: the mean contribution of a feature when features join one by one in random order.

    phi_j = mean over orders of S(those before j and j) - S(those before j) (Castro et al. 2009, eq. 4). Orders are
    drawn in pairs, one the reverse of the other, which cancels part of the noise (Mitchell et al. 2022, sec. 4.1). The
    values of each order sum to S(x) - S(baseline) exactly.

    Args:
        permutations: number of orders; the same for all samples.
        tolerance: deprecated: `until` of standard errors instead of intervals.

    Returns:
        ... It has its standard error over pairs of orders; every value of a feature gets the feature's number. Its
        check is the relative `"efficiency gap"`.

    Raises:
        OptionError: when an option is out of range, or features or baseline do not fit the input.

    Example:
        >>> class Product(nn.Module):
        ...     def forward(self, x):
        ...         return x.prod(dim=1, keepdim=True)
        >>> shapley_sampling(Product(), torch.tensor([[2.0, 3.0]]), target=0).tensor
        tensor([[3., 3.]])
    """
    check_count("permutations", permutations)
    check_seed(seed)
    until = until_of(until, tolerance)
    with feature_game(model, x, target, where, features, baseline, batch_size, forward, baselines) as game:
        found = game.solve(lambda part: _sampled(part, permutations, until, seed))
        warn_of_zeros({"": found.values}, "shapley_sampling")
        return game.attribution(
            found.values,
            method="shapley_sampling",
            settings={**found.settings, "seed": seed},
            error=found.error,
            degrees=found.degrees,
            checks=found.checks,
        )


def _sampled(game: Game, permutations: int, until: float | None, seed: int) -> Solution:
    """Sample the values of samples that have the same features."""
    generator = torch.Generator().manual_seed(seed)
    baseline_score = game.coalitions.baseline_scores()
    pair_means: list[torch.Tensor] = []  # one (batch, features) for each pair of orders
    values, error = torch.zeros(0), None
    rounds = Rounds("shapley_sampling", "permutations", permutations, until, first=20, step=2)
    for most in rounds:
        for used in track(range(2 * len(pair_means), most, 2), "Shapley sampling"):
            order = torch.randperm(game.count, generator=generator)
            orders = [order, order.flip(0)][: most - used]
            one = torch.stack([_marginals(game, order, baseline_score) for order in orders])
            pair_means.append(one.mean(dim=0))
        values, error = mean_and_error(torch.stack(pair_means))
        rounds.look({"": values}, None if error is None else {"": error}, len(pair_means) - 1)
    checks = {"efficiency gap": efficiency_gap(values, game.coalitions.score, baseline_score)}
    return Solution(values, error, len(pair_means) - 1, rounds.checks(checks), rounds.settings)


def _marginals(game: Game, order: torch.Tensor, baseline_score: torch.Tensor) -> torch.Tensor:
    """What each feature adds in one order, `(batch, features)`."""
    count = len(order)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    keep = (rank[None] <= torch.arange(count - 1)[:, None]).float()  # coalition k holds the first k + 1 features
    inner = game.coalitions.features(game.features, keep, "", progress=False) if count > 1 else baseline_score[None][:0]
    path = torch.cat([baseline_score[None], inner, game.coalitions.score[None]])  # (features + 1, batch)
    steps = (path[1:] - path[:-1]).double()
    return steps[rank.to(steps.device)].T


@method(
    family="perturbation",
    passes="512 forward passes (samples)",
    needs="a baseline",
    source="Lundberg & Lee 2017; Covert & Lee 2021",
)
def kernel_shap(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    baseline: Baseline = "zero",
    baselines: Baselines = None,
    samples: int = 512,
    until: float | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Fit Shapley values: the additive model that fits the scores of coalitions best.

    min over phi of sum over z of pi(z) (S(z) - S(0) - z . phi)^2 with sum phi = S(x) - S(0), and the kernel pi(z) =
    (d - 1) / (C(d, |z|) |z| (d - |z|)) (Lundberg & Lee 2017, theorem 2). When all 2^d coalitions fit in `samples`
    they are all used and the values are exact. Otherwise coalitions are drawn from pi in pairs, a coalition and its
    complement, which cancels part of the noise (Covert & Lee 2021, sec. 4.2).

    Args:
        samples: number of coalitions; the same for all samples of the batch. At least twice the number of features.
        tolerance: deprecated: `until` of standard errors instead of intervals.

    Returns:
        ... Every value of a feature gets the feature's number. Its check is the relative `"efficiency gap"`. The
        standard error is from leaving out a pair at a time; exact values have none, see `settings["exact"]`.

    Raises:
        OptionError: when an option is out of range, or there are too few samples for the features.

    Example:
        >>> class Product(nn.Module):
        ...     def forward(self, x):
        ...         return x.prod(dim=1, keepdim=True)
        >>> kernel_shap(Product(), torch.tensor([[2.0, 3.0, 1.0]]), target=0).tensor
        tensor([[2., 2., 2.]])
    """
    check_count("samples", samples)
    check_seed(seed)
    until = until_of(until, tolerance)
    with feature_game(model, x, target, where, features, baseline, batch_size, forward, baselines) as game:
        found = game.solve(lambda part: _regressed(part, samples, until, seed))
        warn_of_zeros({"": found.values}, "kernel_shap")
        return game.attribution(
            found.values,
            method="kernel_shap",
            settings={**found.settings, "seed": seed},
            error=found.error,
            degrees=found.degrees,
            checks=found.checks,
        )


def _regressed(game: Game, samples: int, until: float | None, seed: int) -> Solution:
    """Fit the values of samples that have the same features.

    Raises:
        OptionError: when there are too few samples for the features.
    """
    count, score, baseline_score = (
        game.count,
        game.coalitions.score.double(),
        game.coalitions.baseline_scores().double(),
    )
    exact = count <= 20 and 2**count - 2 <= samples
    error: torch.Tensor | None = None
    checks, settings = {}, {"samples": 0}
    degrees = None
    if count == 1:
        values = (score - baseline_score)[:, None]
    elif exact:
        keep, weight = _all_coalitions(count)
        settings = {"samples": len(keep)}
        values = _fit(keep, weight, game.scores(keep.float(), "KernelSHAP").double(), score, baseline_score)
    else:
        if samples < 2 * count:
            raise OptionError(
                f"samples={samples} are too few for {count} features: give {2 * count} or more, or fewer features."
            )
        generator = torch.Generator().manual_seed(seed)
        keep, scores = torch.zeros(0, count, dtype=torch.float64), score.new_zeros(0, len(score))
        rounds = Rounds("kernel_shap", "samples", samples, until, first=max(64, 4 * count), step=2)
        for most in rounds:
            more = _drawn_coalitions(most - len(keep), count, generator)
            keep, scores = (
                torch.cat([keep, more]),
                torch.cat([scores, game.scores(more.float(), "KernelSHAP").double()]),
            )
            values = _fit(keep, torch.ones(len(keep)).double(), scores, score, baseline_score)
            error = _jackknife_error(keep, scores, values, baseline_score)
            degrees = max(1, (most + 1) // 2 - count + 1)
            rounds.look({"": values}, {"": error}, degrees)
        checks, settings = rounds.checks(), rounds.settings
    checks = {"efficiency gap": efficiency_gap(values, game.coalitions.score, baseline_score), **checks}
    return Solution(values, error, degrees, checks, {**settings, "exact": exact or count == 1})


def _all_coalitions(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All coalitions but the empty and the full one, `(2^d - 2, d)`, and their kernel."""
    keep = torch.tensor(list(itertools.product((0, 1), repeat=count))[1:-1], dtype=torch.float64)
    size = keep.sum(dim=1)
    choose = torch.exp(torch.lgamma(torch.tensor(count + 1.0).double()) - torch.lgamma(size + 1) -
                       torch.lgamma(count - size + 1))  # fmt: skip
    return keep, (count - 1) / (choose * size * (count - size))


def _drawn_coalitions(number: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Coalitions `(number, d)` drawn from the kernel, each followed by its complement; more begin with the same."""
    sizes = torch.arange(1, count).double()
    odds = (1 / (sizes * (count - sizes))).cumsum(dim=0)
    drawn = torch.rand((number + 1) // 2, count + 1, generator=generator, dtype=torch.float64)
    size = torch.searchsorted(odds, drawn[:, 0] * odds[-1], right=True).clamp(max=count - 2) + 1
    order = drawn[:, 1:].argsort(dim=1).argsort(dim=1)
    keep = (order < size[:, None]).double()
    return torch.stack([keep, 1 - keep], dim=1).flatten(0, 1)[:number]


def _fit(
    keep: torch.Tensor, weight: torch.Tensor, scores: torch.Tensor, score: torch.Tensor, baseline_score: torch.Tensor
) -> torch.Tensor:
    """The values `(batch, d)` of the weighted least squares fit whose sum is S(x) - S(0).

    With A = sum w z z^T and b = sum w z (S(z) - S(0)): phi = A^-1 (b - 1 (1^T A^-1 b - (S(x) - S(0))) / (1^T A^-1 1)).
    """
    keep, weight = keep.to(scores), weight.to(scores)
    gram = keep.T @ (weight[:, None] * keep)
    right = keep.T @ (weight[:, None] * (scores - baseline_score))  # (d, batch)
    ones = torch.ones(len(gram), 1).to(scores)
    inverse = torch.linalg.pinv(gram, hermitian=True)
    solved, unit = inverse @ right, inverse @ ones
    excess = (solved.sum(dim=0) - (score - baseline_score)) / unit.sum()
    fitted: torch.Tensor = solved - unit * excess
    return fitted.T


def _jackknife_error(
    keep: torch.Tensor, scores: torch.Tensor, values: torch.Tensor, baseline_score: torch.Tensor
) -> torch.Tensor:
    """Return the standard error of the fit, `(batch, d)`, from leaving out a pair at a time (jackknife).

    In closed form: without a pair z, 1 - z of residuals r and r' the values move by P z (r - r') / (1 - 2 z^T P z), P
    the inverse of the normal equations under the constraint, for which P (1 - z) = -P z (Bell & McCaffrey 2002, CR3).
    """
    keep = keep.to(scores)
    inverse = torch.linalg.pinv(keep.T @ keep, hermitian=True)
    unit = inverse.sum(dim=1, keepdim=True)
    reached = keep[::2] @ (inverse - unit @ unit.T / unit.sum())  # (pairs, d), P z
    residual = scores - baseline_score - keep @ values.T  # (m, batch)
    change = residual[::2].clone()
    change[: len(keep) // 2] -= residual[1::2]
    whole = 1 + (torch.arange(len(change), device=keep.device) < len(keep) // 2).to(scores)  # a last one may be alone
    left = (1 - whole * (reached * keep[::2]).sum(dim=1)).clamp_min(1e-12)
    error: torch.Tensor = (reached.square().T @ (change / left[:, None]).square()).sqrt()
    return error.T
