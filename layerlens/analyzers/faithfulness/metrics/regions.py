"""The fall of the score while regions of an input are removed: region perturbation and IROF."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec, features_of
from layerlens.analyzers.common.leaves.leaves import Leaf, place_axes, spread_axes
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import TargetError, check_count, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.targets.target import Spec

from .insertion_deletion import Measure, removal, removal_metric
from .place_ranks import Map, ranks


@removal_metric
def region_perturbation(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    patch_size: int | None = None,
    regions: int = 100,
    fill: Baseline = "zero",
    measure: Measure = "auto",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure the mean fall of the score while regions are removed, most important first, `(batch,)`; higher is better.

    AOPC = 1 / (L + 1) sum over k = 0 ... L of S(x) - S(x without the first k regions) (Samek et al. 2017, eq. 12, who
    fill with noise: `fill="noise"`; `RegionPerturbation` in Quantus). A region counts by the sum of its values.

    Args:
        patch_size: side of a region: pixels of an image, steps of a series; None for 8, or half of a side that is
            shorter than 16. Tokens and columns are one region each.
        regions: largest number L of regions that are removed.

    Warns:
        UserWarning: when there is one region, so that the value does not depend on the map.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
        >>> region_perturbation(model, torch.rand(1, 1, 16, 16), torch.rand(1, 16, 16), target=0, patch_size=4).shape
        torch.Size([1])
    """
    if patch_size is not None:
        check_count("patch_size", patch_size)
    check_count("regions", regions)
    with removal(model, x, target, fill, "places", measure, seed, batch_size, forward) as removed:
        labels = {name: _patches(leaf, patch_size) for name, leaf in removed.scorer.leaves.items()}
        removed = dataclasses.replace(removed, features=features_of(removed.scorer, labels))
        if int(removed.own.sum(dim=1).max()) < 2:
            warn(
                f"region_perturbation: patch_size={patch_size} makes one region of each sample, so all maps are equal."
            )
        rank = removed.ranks(attribution)
        shares, scores = removed.one_by_one("region_perturbation", rank, keep=False, most=regions)
        taken = torch.cat([torch.ones_like(shares[:, :1]), (shares.diff(dim=1) > 0).double()], dim=1)
        return ((removed.ends[0].unsqueeze(1) - scores).double() * taken).sum(dim=1) / taken.sum(dim=1)


@removal_metric
def irof(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    fill: Baseline | None = None,
    measure: Measure = "auto",
    features: FeatureSpec = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> torch.Tensor:
    """Measure how early the score is lost while segments are removed, `(batch,)`; higher is better.

    1 - the area under S(x without the first l of L segments) / S(x), over l / L (Rieger & Hansen 2020, eq. 1; `IROF` in
    Quantus, which does not divide by L). A segment counts by the mean of its values.

    Args:
        fill: ... None for the mean color of an image, and zero for anything else.
        features: what is removed at a time, as in `feature_ablation`; None for superpixels of an image, and each token,
            step or column.

    Raises:
        TargetError: when a score of x is not above 0.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
        >>> irof(model, torch.rand(1, 1, 16, 16), torch.rand(1, 16, 16), target=0).shape
        torch.Size([1])
    """
    with borrowed(model, grad=False):
        pictures = all(leaf.is_picture for leaf in Scorer(model, x, target, forward=forward).leaves.values())
    if fill is None:
        fill = "mean" if pictures else "zero"
    if features is None:
        features = "superpixels" if pictures else "places"
    with removal(model, x, target, fill, features, measure, seed, batch_size, forward) as removed:
        full = removed.ends[0].double().unsqueeze(1)
        low = (full <= 0).flatten().nonzero().flatten().tolist()
        if low:
            raise TargetError(
                f"irof divides by the score of x, and that of sample {low[0]} is {float(full[low[0]]):.4g}: give a "
                "score above 0, such as target=probability(3)."
            )
        sizes = removed.sums({name: _ones(leaf) for name, leaf in removed.scorer.leaves.items()}).clamp_min(1)
        rank = ranks(removed.sums(attribution) / sizes, seed, removed.own)
        shares, scores = removed.one_by_one("irof", rank, keep=False)
        curve = scores.double() / full
        return 1 - ((curve[:, 1:] + curve[:, :-1]) / 2 * shares.diff(dim=1)).sum(dim=1)


def _patches(leaf: Leaf, size: int | None) -> torch.Tensor:
    """Label squares of the places of a leaf, or single places where they have no order, `(1, ...)`."""
    label = torch.zeros([1] * leaf.value.ndim, dtype=torch.int64)
    for axis in place_axes(leaf):
        length = leaf.value.shape[axis + 1]
        side = min(8, max(1, length // 2)) if size is None else size
        index = torch.arange(length) // (side if axis + 1 in spread_axes(leaf) else 1)
        shape = [length if own == axis + 1 else 1 for own in range(leaf.value.ndim)]
        label = label * (int(index[-1]) + 1) + index.reshape(shape)
    return label


def _ones(leaf: Leaf) -> torch.Tensor:
    """Return a map of ones."""
    return torch.ones_like(leaf.value[..., 0] if leaf.layer is not None else leaf.value, dtype=torch.float64)
