"""Controls: maps made from the input, or from nothing, and never from the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from layerlens.analyzers.common.leaves.leaves import Leaf, place_axes, spread_axes

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def random(leaf: Leaf, seed: int) -> torch.Tensor:
    """Rank the places at random, differently for each sample."""
    return torch.rand(_places(leaf), generator=torch.Generator().manual_seed(seed)).to(leaf.value.device)


def sobel(leaf: Leaf, seed: int) -> torch.Tensor:
    """Return the strength of edges of each image: the norm of the Sobel gradient of its mean over channels."""
    (unit,) = {1, 2, 3} - set(spread_axes(leaf))
    image = leaf.value.float().mean(dim=unit).unsqueeze(1)
    kernel = torch.tensor(SOBEL, device=image.device)
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    across, down = nn.functional.conv2d(padded, torch.stack([kernel, kernel.T]).unsqueeze(1)).unbind(dim=1)
    return torch.hypot(across, down)


def center(leaf: Leaf, seed: int) -> torch.Tensor:
    """Return a Gaussian in the middle of each image, a quarter of its sides wide."""
    _, height, width = _places(leaf)
    down, across = (torch.linspace(-2, 2, size, device=leaf.value.device) for size in (height, width))
    bell = torch.outer((-0.5 * down**2).exp(), (-0.5 * across**2).exp())
    return bell.expand(len(leaf.value), height, width)


def magnitude(leaf: Leaf, seed: int) -> torch.Tensor:
    """Return the size of the value at each place."""
    if leaf.layer is not None:
        return leaf.value.float().square().sum(dim=-1).sqrt()
    return leaf.value.float().abs()


def later(leaf: Leaf, seed: int) -> torch.Tensor:
    """Rank later places higher."""
    shape = _places(leaf)
    return torch.arange(shape[1], device=leaf.value.device).float().expand(shape)


def controls_for(leaf: Leaf) -> dict[str, Callable[[Leaf, int], torch.Tensor]]:
    """Return the controls that fit a leaf, by name."""
    if leaf.layer is not None and leaf.value.ndim == 3:
        return {"random": random, "later": later}
    if leaf.value.ndim == 4 and len(spread_axes(leaf)) == 2 and min(_places(leaf)[1:]) > 2:
        return {"random": random, "sobel": sobel, "center": center}
    return {"random": random, "magnitude": magnitude}


def control_maps(leaves: Mapping[str, Leaf], seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the controls of all leaves by name, each a map by leaf; random alone for several leaves."""
    if len(leaves) == 1:
        ((name, leaf),) = leaves.items()
        return {control: {name: make(leaf, seed)} for control, make in controls_for(leaf).items()}
    return {"random": {name: random(leaf, seed + place) for place, (name, leaf) in enumerate(leaves.items())}}


def _places(leaf: Leaf) -> list[int]:
    shape = leaf.value.shape
    if leaf.layer is not None:
        return list(shape[:-1])
    return [shape[0], *(shape[axis + 1] for axis in place_axes(leaf))]
