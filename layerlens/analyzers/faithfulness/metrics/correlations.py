"""Correlation of what a map gives to parts of an input with what the score loses without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.features.references import references
from layerlens.analyzers.common.statistics import pearson, spearman
from layerlens.errors import InputError, OptionError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.results import FaithfulnessCurve
from layerlens.targets.target import Spec

from .insertion_deletion import Measure, Removal, check_shares, removal, removal_metric
from .place_ranks import Map, ranks

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the features, up to four fifths (Ancona et al. 2018, fig. 3)."""


@removal_metric
def faithfulness_correlation(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    subset_size: int | None = None,
    samples: int = 100,
    fill: Baseline = "zero",
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Correlate the map, summed over random subsets, with the fall of the score without them; higher is better.

    Pearson's correlation over subsets of one size (Bhatt et al. 2020, definition 2; `FaithfulnessCorrelation` in
    Quantus), `(batch,)`; 0 where map or fall is the same for all. `sensitivity_n` takes subsets of several sizes.

    Args:
        subset_size: number of features in a subset; None takes a fifth of them.
        samples: number of subsets.
        features: what is removed at a time, as in `feature_ablation`: None for about 64 cells of an image, and each
            token, step or column.

    Raises:
        OptionError: when an option is out of range, or the fill does not fit.

    Example:
        >>> model = nn.Linear(6, 1, bias=False).double()
        >>> x = torch.rand(2, 6).double()
        >>> faithfulness_correlation(model, x, x * model.weight.detach(), target=0).round(decimals=6)
        tensor([1., 1.], dtype=torch.float64)
    """
    check_count("samples", samples)
    if subset_size is not None:
        check_count("subset_size", subset_size)
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        counts = _counts(removed, "faithfulness_correlation")
        if subset_size is not None and subset_size >= int(counts.min()):
            raise OptionError(
                f"subset_size must be below the number of features, got {subset_size} of {int(counts.min())}."
            )
        size = (0.2 * counts).round().clamp_min(1) if subset_size is None else torch.full_like(counts, subset_size)
        return _of_subsets(removed, removed.sums(attribution), size, samples, "faithfulness_correlation")


@removal_metric
def sensitivity_n(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    shares: Sequence[float] = SHARES,
    samples: int = 100,
    fill: Baseline = "zero",
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Correlate map and fall of the score over random subsets of n features, for several n; a higher curve is better.

    Pearson's correlation over subsets drawn at random, for each n (Ancona et al. 2018, sec. 3.3). `SensitivityN` in
    Quantus removes the features in the order of the map instead.

    Args:
        shares: sizes n, as shares of the features, each above 0 and below 1; n is at least 1.
        samples: number of subsets of each size.
        features: what is removed at a time, as in `feature_ablation`: None for about 64 cells of an image, and each
            token, step or column.

    Returns:
        A `FaithfulnessCurve` of correlations; `.area`, their mean over shares, is `(batch,)`.

    Example:
        >>> model = nn.Linear(6, 1, bias=False).double()
        >>> x = torch.rand(2, 6).double()
        >>> sensitivity_n(model, x, x * model.weight.detach(), target=0).area.round(decimals=6)
        tensor([1., 1.], dtype=torch.float64)
    """
    check_count("samples", samples)
    check_shares(shares)
    points = torch.tensor(sorted(shares), dtype=torch.float64)
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        counts, values = _counts(removed, "sensitivity_n"), removed.sums(attribution)
        sizes = [(share * counts).round().clamp_min(1).minimum(counts - 1) for share in points.tolist()]
        found = torch.stack([_of_subsets(removed, values, size, samples, "sensitivity_n") for size in sizes], dim=1)
        removed.units = "correlation"
        return removed.as_curve("sensitivity-n", points, found, samples=samples)


@removal_metric
def faithfulness_estimate(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline = "zero",
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Correlate the map with the fall of the score without each feature alone; higher is better.

    Pearson's correlation over features (Alvarez-Melis & Jaakkola 2018, sec. 5.1; `FaithfulnessEstimate` in Quantus),
    `(batch,)`; 0 where map or fall is the same for all.

    Args:
        features: what is removed at a time, as in `feature_ablation`: None for about 64 cells of an image, and each
            token, step or column.

    Example:
        >>> model = nn.Linear(6, 1, bias=False).double()
        >>> x = torch.rand(2, 6).double()
        >>> faithfulness_estimate(model, x, x * model.weight.detach(), target=0).round(decimals=6)
        tensor([1., 1.], dtype=torch.float64)
    """
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        _counts(removed, "faithfulness_estimate")
        falls = removed.alone("faithfulness_estimate")
        return _by_sample(pearson, removed, removed.sums(attribution), falls)


@removal_metric
def monotonicity_correlation(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Rank-correlate the size of the map with how uncertain the score is without each feature; higher is better.

    Spearman's correlation over features of |phi_i| with E (S(x) - S(x with i drawn again))^2 (Nguyen & Martinez 2020,
    sec. 3; `MonotonicityCorrelation` in Quantus), `(batch,)`. Eight draws, normal with mean and deviation of each
    sample, as for `baselines=None`.

    Args:
        features: what is drawn again at a time, as in `feature_ablation`: None for about 64 cells of an image, and each
            token, step or column.

    Example:
        >>> model = nn.Linear(6, 1, bias=False)
        >>> monotonicity_correlation(model, torch.rand(2, 6), torch.rand(2, 6), target=0).shape
        torch.Size([2])
    """
    with removal(model, x, target, "zero", features, measure, seed, batch_size, forward) as removed:
        _counts(removed, "monotonicity_correlation")
        effect = squared_effects(removed, seed, "monotonicity_correlation")
        return _by_sample(spearman, removed, removed.sums(attribution).abs(), effect)


def squared_effects(removed: Removal, seed: int, label: str) -> torch.Tensor:
    """Return the mean squared change of the score when each feature alone is drawn again, `(batch, features)`."""
    total = torch.zeros(removed.own.shape, dtype=torch.float64, device=removed.own.device)
    drawn, _ = references(removed.scorer, None, seed)
    for starts in drawn:
        removed.coalitions.starts = starts
        total += removed.alone(label).square() / len(drawn)
    return total


def _counts(removed: Removal, name: str) -> torch.Tensor:
    """Return the number of features of each sample, `(batch, 1)`.

    Raises:
        InputError: when a sample has one alone.
    """
    counts = removed.own.sum(dim=1, keepdim=True)
    if int(counts.min()) < 2:
        raise InputError(
            f"{name} compares features, and sample {int(counts.argmin())} has {int(counts.min())}. Give smaller "
            'features, such as features="values".'
        )
    return counts


def _of_subsets(removed: Removal, values: torch.Tensor, size: torch.Tensor, samples: int, label: str) -> torch.Tensor:
    """Correlate the sums of `values` over random subsets of `size` features, `(batch, 1)`, with the falls."""
    own, sums = removed.own, []

    def subsets() -> Iterator[torch.Tensor]:
        for draw in range(samples):
            subset = ranks(torch.zeros_like(values), removed.seed + 7919 * draw, own) < size
            sums.append((values * subset).sum(dim=1))
            yield subset

    falls = removed.falls(subsets(), label)
    return pearson(torch.stack(sums, dim=1), falls)


def _by_sample(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    removed: Removal,
    first: torch.Tensor,
    second: torch.Tensor,
) -> torch.Tensor:
    """Return a correlation over the features that each sample has, `(batch,)`."""
    rows = zip(first, second, removed.own, strict=True)
    return torch.cat([function(one[own].unsqueeze(0), other[own].unsqueeze(0)) for one, other, own in rows])
