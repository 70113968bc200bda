"""ROAD: deletion and insertion where a removed pixel is guessed from its neighbours, so that its mask tells nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.results import FaithfulnessCurve
from layerlens.targets.target import Spec

from .curves import removal
from .input_places import Given

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
STRAIGHT, DIAGONAL = 1 / 6, 1 / 12
"""Weights of the neighbours of a pixel (Rong et al. 2022, sec. 4.2)."""


def road(
    model: nn.Module,
    x: Input,
    attribution: Given,
    *,
    target: Spec = None,
    keep: bool = False,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    measure: str = "auto",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> FaithfulnessCurve:
    """The score while pixels are replaced by what their neighbours predict (Rong et al. 2022).

    Each removed pixel becomes the weighted mean of its eight neighbours, removed ones included: a sparse linear system,
    solved by conjugate gradients; noise is added, so that a model cannot see which pixels were smooth.

    Args:
        model: any module; no gradient is needed.
        x: images `(batch, channel, height, width)`.
        attribution: a map of x, as in `insertion`.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        keep: False removes the most important pixels first (a low area is better), True the least important first, so
            that the share counts what is left (a high area is better).
        shares: of the pixels, each above 0 and below 1.
        noise: standard deviation, as a part of the standard deviation of each image.
        measure: as in `insertion`.
        seed: of the noise and of the order of equal values.
        batch_size: rows in one forward pass.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `FaithfulnessCurve`; `.area` is `(batch,)`.

    Raises:
        InputError: when x is no batch of images, or the map does not fit it.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> road(model, torch.rand(1, 1, 8, 8), torch.rand(1, 8, 8), target=0).area.shape
        torch.Size([1])
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError(f"shares lie above 0 and below 1, got {shares!r}.")
    if not noise >= 0:
        raise OptionError(f"noise must not be negative, got {noise!r}.")
    points = torch.tensor(sorted(shares)).double()
    with (
        borrowed(model, grad=False),
        removal(model, x, target, "zero", measure=measure, batch_size=batch_size, forward=forward) as own,
    ):
        (name,) = own.scorer.leaves if len(own.scorer.leaves) == 1 else (None,)
        images = None if name is None else own.scorer.leaves[name].value
        if name is None or images is None or images.ndim != 4:
            raise InputError(
                "road is for one batch of images (batch, channel, height, width); got "
                f"{', '.join(describe(leaf.value) for leaf in own.scorer.leaves.values())}. Try insertion and deletion."
            )
        rank = own.ranks(attribution, seed)
        generator = torch.Generator().manual_seed(seed)
        grain = torch.randn(images.shape[1:], generator=generator).to(images)
        grain = noise * grain * images.flatten(1).std(dim=1)[:, None, None, None]
        columns = []
        for share in track(points.tolist(), "road"):
            first = rank < round(share * rank.shape[1])
            removed = (~first if keep else first).reshape(len(images), 1, *images.shape[2:])
            filled = torch.where(removed, impute(images, removed) + grain, images)
            scores = [
                own.scorer({name: filled[part]}, own.scorer.rows[part]).double()
                for part in torch.split(own.scorer.rows, own.coalitions.batch_size)
            ]
            columns.append(torch.cat(scores))
        return FaithfulnessCurve(
            name="road, least important first" if keep else "road",
            shares=points,
            scores=torch.stack(columns, dim=1),
            fill="imputed",
            units=own.units,
            target=own.scorer.target.label,
            settings={"keep": keep, "noise": noise, "seed": seed, "batch_size": own.coalitions.batch_size},
        )


def impute(images: torch.Tensor, removed: torch.Tensor, *, tolerance: float = 1e-5, most: int = 1000) -> torch.Tensor:
    """The images with each removed pixel as the weighted mean of its neighbours.

    Solves (D - W) u = W x over removed pixels, D the sum of the weights of the neighbours inside of the image.

    Args:
        images: `(batch, channel, height, width)`.
        removed: bool, `(batch, 1, height, width)`; not all pixels of an image.
        tolerance: relative residual at which conjugate gradients stop.
        most: steps they take at most.
    """
    gone = removed.to(images)
    kernel = torch.full((3, 3), DIAGONAL, dtype=images.dtype, device=images.device)
    kernel[1], kernel[:, 1], kernel[1, 1] = STRAIGHT, STRAIGHT, 0
    kernel = kernel.expand(images.shape[1], 1, 3, 3)

    def neighbours(values: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(values, kernel, padding=1, groups=values.shape[1])

    weight = neighbours(torch.ones_like(images))
    right = gone * neighbours(images * (1 - gone))
    solved = torch.zeros_like(images)
    residual, direction = right.clone(), right.clone()
    size = residual.square().sum(dim=(1, 2, 3), keepdim=True)
    enough = tolerance**2 * size.clamp_min(torch.finfo(images.dtype).tiny)
    for _ in range(most):
        if bool((size <= enough).all()):
            break
        moved = gone * (weight * direction - neighbours(direction))
        step = size / (direction * moved).sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
        solved = solved + step * direction
        residual = residual - step * moved
        new = residual.square().sum(dim=(1, 2, 3), keepdim=True)
        direction = residual + new / size.clamp_min(torch.finfo(images.dtype).tiny) * direction
        size = new
    return images * (1 - gone) + solved
