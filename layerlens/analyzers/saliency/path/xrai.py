"""XRAI: whole regions of an image, in the order of the attribution that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.superpixels import superpixels
from layerlens.analyzers.common.registry import method, method_named
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .integrated_gradients import integrated_gradients

SCALES = (16, 32, 64, 128, 256)
"""Superpixels of an image, from coarse to fine; a region may be of any."""

GROWN = 0.02
"""How far a region reaches over its border, as a share of the shorter side: edges belong to what they bound."""

SMALLEST = 1e-3
"""Share of the image that a region must add."""

LARGEST = 256
"""Pixels per side on which regions are ranked; larger images are reduced."""


@method(
    family="path",
    passes="100 gradients (two integrated gradients, black and white), or one map of `base`",
    needs="an image",
    source="Kapishnikov et al. 2019",
)
def xrai(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    base: str | None = None,
    scales: Sequence[int] = SCALES,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Attribution:
    """Rank regions of an image by the attribution that they hold per pixel.

    The image is cut into superpixels at several scales; again and again the region whose new pixels have the highest
    mean attribution is taken, and its new pixels get that mean (Kapishnikov et al. 2019, algorithm 1). Attribution is
    the mean of integrated gradients from black and from white, of each pixel the largest of its channels, as published.

    Args:
        x: input of the model: an image batch `(batch, channel, height, width)`.
        base: method of the attribution instead of integrated gradients, such as `"relevance"`; its values are summed
            over channels.
        scales: about how many superpixels each scale has.
        **options: options of the base method.

    Returns:
        An `Attribution` `(batch, height, width)`, in units of the score per pixel: constant in each region.

    Raises:
        InputError: when the input is not a batch of images.
        OptionError: when an option is unknown or out of range.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
        >>> xrai(net, torch.randn(1, 1, 8, 8), target=1, scales=[4, 9], tolerance=1.0).tensor.shape
        torch.Size([1, 8, 8])
    """
    given = as_inputs(x).named_for(model, forward)
    tensors = {name: tensor for name, tensor in given.tensors().items() if name not in given.held}
    images = next(iter(tensors.values()))
    if len(tensors) != 1 or images.ndim != 4 or not images.is_floating_point():
        listed = ", ".join(f"{name} {describe(tensor)}" for name, tensor in tensors.items())
        others = [name for name, tensor in tensors.items() if tensor.ndim != 4 or not tensor.is_floating_point()]
        one = f" For the image alone, hold={others}." if 0 < len(others) == len(tensors) - 1 else ""
        raise InputError(f"xrai needs one image batch (batch, channel, height, width), got {listed}.{one}")
    if not scales or any(isinstance(scale, bool) or not isinstance(scale, int) or scale < 1 for scale in scales):
        raise OptionError(f"scales must be whole numbers of at least 1, got {scales!r}.")
    if base is None:
        ends = [
            integrated_gradients(model, x, target=target, baseline=name, forward=forward, **options)
            for name in ("black", "white")
        ]
        base_result = ends[0]
        pixels = ((ends[0].tensor + ends[1].tensor) / 2).amax(dim=1)
    else:
        function = method_named(base, "base method").function
        base_result = function(model, x, target=target, forward=forward, **options)
        pixels = base_result.tensor.sum(dim=1) if base_result.tensor.ndim == 4 else base_result.tensor
    if pixels.shape != images[:, 0].shape:
        raise OptionError(f"base {base!r} gives {describe(base_result.tensor)}, not a value for every pixel.")
    values = torch.stack([_ranked(pixel, image, scales) for pixel, image in zip(pixels, images, strict=True)])
    return Attribution(
        values=values.to(pixels),
        axes=("batch", "height", "width"),
        signed=True,
        units="score per pixel",
        target=base_result.target,
        targets=base_result.targets,
        method="xrai",
        settings={
            "base": base or "integrated_gradients, black and white",
            "scales": list(scales),
            **options,
            **({"hold": ", ".join(given.held)} if given.held else {}),
        },
        score=base_result.score,
        checks=dict(base_result.checks),
        inputs=images.detach().clone(),
    )


def _ranked(pixels: torch.Tensor, image: torch.Tensor, scales: Sequence[int]) -> torch.Tensor:
    """The mean attribution that each pixel's region added, `(height, width)`."""
    pixels, image = pixels.detach().float().cpu(), image.detach().float().cpu()
    height, width = pixels.shape
    small = (min(LARGEST, height), min(LARGEST, width))
    fewer = torch.nn.functional.adaptive_avg_pool2d(pixels[None], small)[0]
    regions = _regions(torch.nn.functional.adaptive_avg_pool2d(image, small), scales)
    ranked = _take_regions(fewer, regions)
    return torch.nn.functional.interpolate(ranked[None, None], size=(height, width), mode="nearest-exact")[0, 0]


def _regions(image: torch.Tensor, scales: Sequence[int]) -> torch.Tensor:
    """Superpixels of all scales, grown over their borders, `(regions, height, width)`: 1 inside."""
    reach = max(1, round(GROWN * min(image.shape[1:])))
    regions = []
    for scale in scales:
        labels = superpixels(image[None], scale)[0]
        masks = torch.nn.functional.one_hot(labels).movedim(-1, 0).to(torch.float32)
        regions.append(torch.nn.functional.max_pool2d(masks[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0])
    return torch.cat(regions)


def _take_regions(pixels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Regions taken one by one, each for its new pixels; pixels in no region that was taken get their own mean."""
    values, inside = pixels.flatten(), regions.flatten(1)
    new, result = torch.ones_like(values), torch.zeros_like(values)
    floor = max(1.0, SMALLEST * len(values))
    left = torch.ones(len(inside), dtype=torch.bool)
    while True:
        sizes = inside @ new
        left &= sizes >= floor
        if not bool(left.any()):
            break
        gain = torch.where(left, (inside @ (new * values)) / sizes.clamp_min(1), -torch.inf)
        best = int(gain.argmax())
        added = inside[best] * new
        result = torch.where(added > 0, gain[best], result)
        new = new - added
        left[best] = False
    rest = new > 0
    if bool(rest.any()):
        result[rest] = values[rest].mean()
    return result.reshape(pixels.shape)
