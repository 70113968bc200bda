"""ROAD: deletion where a removed pixel is guessed from its neighbors, so that the mask itself carries no evidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.results import FaithfulnessCurve
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .insertion_deletion import Measure, check_shares, removal
from .place_ranks import Map

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
STRAIGHT, DIAGONAL = 1 / 6, 1 / 12
"""Weights of the neighbors of a pixel (Rong et al. 2022, sec. 4.2)."""


@public
def road(
    model: nn.Module,
    x: Input,
    attribution: Map,
    *,
    target: Spec = None,
    keep: bool = False,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    measure: Measure = "auto",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Measure the score while pixels are replaced by what their neighbors predict (Rong et al. 2022).

    Each removed pixel becomes the weighted mean of its eight neighbors, removed ones included: a sparse linear system,
    solved by conjugate gradients; noise is added, so that a model cannot see which pixels were smooth.

    Args:
        x: images `(batch, channel, height, width)`.
        keep: False removes the most important pixels first (a low area is better), True the least important first, so
            that the share counts what is left (a high area is better).
        shares: shares of the pixels, each above 0 and below 1.
        noise: standard deviation, as a share of the standard deviation of each image.

    Returns:
        A `FaithfulnessCurve`; `.area` is `(batch,)`.

    Raises:
        InputError: when x is not a batch of images, or the map does not fit it.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> road(model, torch.rand(1, 1, 8, 8), torch.rand(1, 8, 8), target=0).area.shape
        torch.Size([1])
    """
    check_shares(shares)
    if not noise >= 0:
        raise OptionError(f"noise must not be negative, got {noise!r}.")
    points = torch.tensor(sorted(shares)).double()
    with removal(model, x, target, "zero", "places", measure, seed, batch_size, forward) as removed:
        leaves = removed.scorer.leaves
        name, images = next((name, leaf.value) for name, leaf in leaves.items())
        if len(leaves) != 1 or images.ndim != 4:
            raise InputError(
                "road is for one batch of images (batch, channel, height, width); got "
                f"{', '.join(describe(leaf.value) for leaf in leaves.values())}. Try insertion and deletion."
            )
        rank = removed.ranks(attribution)
        generator = torch.Generator().manual_seed(seed)
        grain = torch.randn(images.shape[1:], generator=generator).to(images)
        grain = noise * grain * images.flatten(1).std(dim=1)[:, None, None, None]
        columns = []
        for share in track(points.tolist(), "road"):
            first = rank < round(share * rank.shape[1])
            mask = (~first if keep else first).reshape(len(images), 1, *images.shape[2:])
            filled = torch.where(mask, impute(images, mask) + grain, images)
            scores = [
                removed.scorer({name: filled[part]}, removed.scorer.rows[part]).double()
                for part in torch.split(removed.scorer.rows, removed.coalitions.batch_size)
            ]
            columns.append(torch.cat(scores))
        label = "road, least important first" if keep else "road"
        return removed.as_curve(label, points, torch.stack(columns, dim=1), "imputed", keep=keep, noise=noise)


def impute(
    images: torch.Tensor, removed: torch.Tensor, *, tolerance: float = 1e-5, max_steps: int = 1000
) -> torch.Tensor:
    """Replace each removed pixel of some images by the weighted mean of its neighbors.

    Solves (D - W) u = W x over removed pixels, D the sum of the weights of the neighbors inside the image.

    Args:
        images: `(batch, channel, height, width)`.
        removed: bool, `(batch, 1, height, width)`; not all pixels of an image.
        tolerance: relative residual at which conjugate gradients stop.
        max_steps: number of steps they take at most.
    """
    gone = removed.to(images)
    kernel = torch.full((3, 3), DIAGONAL, dtype=images.dtype, device=images.device)
    kernel[1], kernel[:, 1], kernel[1, 1] = STRAIGHT, STRAIGHT, 0
    kernel = kernel.expand(images.shape[1], 1, 3, 3)

    def neighbors(values: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(values, kernel, padding=1, groups=values.shape[1])

    weight = neighbors(torch.ones_like(images))
    right = gone * neighbors(images * (1 - gone))
    solved = torch.zeros_like(images)
    residual, direction = right.clone(), right.clone()
    size = residual.square().sum(dim=(1, 2, 3), keepdim=True)
    enough = tolerance**2 * size.clamp_min(torch.finfo(images.dtype).tiny)
    for _ in range(max_steps):
        if bool((size <= enough).all()):
            break
        moved = gone * (weight * direction - neighbors(direction))
        step = size / (direction * moved).sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
        solved = solved + step * direction
        residual = residual - step * moved
        new = residual.square().sum(dim=(1, 2, 3), keepdim=True)
        direction = residual + new / size.clamp_min(torch.finfo(images.dtype).tiny) * direction
        size = new
    return images * (1 - gone) + solved
