"""The places that a class activation map covers: of an image, a volume, a video, a series or a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import Seen
from layerlens.analyzers.common.scorer import Scorer
from layerlens.axes.names import Axes
from layerlens.axes.series import time_axis
from layerlens.model.layers import Layers

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclasses.dataclass(frozen=True)
class Extent:
    """The places of one input.

    Attributes:
        name: name of the input.
        size: how many places along each axis.
        where: the axes of the leaf along which they lie, in ascending order.
        axes: their names.
    """

    name: str
    size: tuple[int, ...]
    where: tuple[int, ...]
    axes: Axes

    def enlarge(self, maps: torch.Tensor) -> torch.Tensor:
        """Enlarge maps `(n, *grid)` to the places, `(n, *size)`, by linear interpolation."""
        if tuple(maps.shape[1:]) == self.size:
            return maps
        mode = MODES[len(self.size)]
        return nn.functional.interpolate(maps.unsqueeze(1), size=self.size, mode=mode, align_corners=False).squeeze(1)

    def spread(self, maps: torch.Tensor, ndim: int) -> torch.Tensor:
        """Maps `(n, *size)` with axes of length 1, so that they multiply a leaf of `ndim` axes."""
        shape = [len(maps), *[1] * (ndim - 1)]
        for axis, size in zip(self.where, self.size, strict=True):
            shape[axis] = size
        return maps.reshape(shape)


def extents(scorer: Scorer, calls: Sequence[Seen]) -> list[Extent]:
    """Find every input with places, images first, then volumes and videos, texts, series and rows of numbers."""
    ranked: list[tuple[int, Extent]] = []
    for name, leaf in scorer.leaves.items():
        shape = tuple(leaf.value.shape)
        if leaf.layer is not None:
            if len(shape) == 3 and shape[1] > 1:
                ranked.append((2, Extent(name, (shape[1],), (1,), ("token",))))
        elif len(shape) == 4 and shape[2] * shape[3] > 1:
            ranked.append((0, Extent(name, shape[2:], (2, 3), ("height", "width"))))
        elif len(shape) == 5:
            video = _is_video(scorer, calls, shape)
            where = (1, 3, 4) if video else (2, 3, 4)
            axes = ("time" if video else "depth", "height", "width")
            ranked.append((1, Extent(name, tuple(shape[axis] for axis in where), where, axes)))
            if video:
                ranked.append((5, Extent(name, shape[1:2], (1,), ("time",))))
        elif len(shape) == 3:
            layers = Layers(scorer.model)
            axis = time_axis((layers[one.path] for one in calls), shape) or 1
            ranked.append((3, Extent(name, (shape[axis],), (axis,), ("time",))))
        elif len(shape) == 2 and shape[1] > 1:
            ranked.append((4, Extent(name, (shape[1],), (1,), ("time",))))
    return [extent for _, extent in sorted(ranked, key=lambda pair: pair[0])]


def _is_video(scorer: Scorer, calls: Iterable[Seen], shape: tuple[int, ...]) -> bool:
    """Whether the input is `(batch, time, channel, height, width)`, not `(batch, channel, depth, height, width)`."""
    layers = Layers(scorer.model)
    for one in calls:
        module = layers[one.path]
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            return isinstance(module, nn.Conv2d) or (shape[1] != module.in_channels == shape[2])
    return shape[2] <= 4 < shape[1]
