"""Which part of a layer's input makes one place of its output: windows of convolutions, poolings and blocks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import nn

SPATIAL = ("height", "width", "depth", "time")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclasses.dataclass(frozen=True)
class Window:
    """How the places of an output lie over those of the input, along each axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def index(self, places: torch.Tensor, given: Sequence[int], made: Sequence[int]) -> torch.Tensor:
        """Return the flat places of the input under each of some places of the output, `(places, window)`.

        Places outside the input, which hold zeros, have the number after the last.
        """
        steps = torch.tensor(list(itertools.product(*(range(size) for size in self.size))))  # (window, axes)
        where = torch.stack(torch.unravel_index(places, tuple(made)), dim=1)  # (places, axes)
        sizes, stride = torch.tensor(given), torch.tensor(self.stride)
        at = (where * stride - torch.tensor(self.padding)).unsqueeze(1) + steps * torch.tensor(self.dilation)
        inside = ((at >= 0) & (at < sizes)).all(dim=2)
        flat = torch.zeros(at.shape[:2], dtype=torch.int64)
        for axis in range(len(given)):
            flat = flat * sizes[axis] + at[:, :, axis].clamp(0)
        return flat.masked_fill(~inside, int(sizes.prod()))


def window_of(
    module: nn.Module, axes: Sequence[str], given: Sequence[int], made: Sequence[int], max_size: int
) -> Window | None:
    """Return the window of a layer whose input has the places `given` and its output `made`; None if it has none.

    Exact for convolutions. Other layers without children work place by place, poolings in their kernel, and blocks in
    the reach of the convolutions in them, at most `max_size` places in each direction.
    """
    rank = len(made)
    if not rank or len(given) != rank:
        return None
    spatial = any(name in SPATIAL for name in axes)
    if isinstance(module, CONVOLUTIONS) and spatial:
        return _convolution_window(module) if len(module.kernel_size) == rank else None
    if tuple(given) != tuple(made) and not spatial:
        return None
    stride = []
    for here, there in zip(given, made, strict=True):
        step = -(-here // there)
        if there > here or there not in (here // step, -(-here // step)):
            return None
        stride.append(step)
    size = 1
    if spatial:
        size = min(max_size, _reach(module)) if any(module.children()) else _kernel(module)
        size = max(size, min(max(stride), max_size))
        size += size % 2 == 0  # an even kernel lies within the next odd one
    if max(stride) > size:
        return None
    same = (size,) * rank
    return Window(same, tuple(stride), (size // 2,) * rank, (1,) * rank)


def _convolution_window(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Window | None:
    if module.padding_mode != "zeros":
        return None
    size, dilation = tuple(module.kernel_size), tuple(module.dilation)
    padding = module.padding
    if isinstance(padding, str):
        same = padding == "same"
        padding = tuple(d * (k - 1) // 2 if same else 0 for d, k in zip(dilation, size, strict=True))
    return Window(size, tuple(module.stride), tuple(padding), dilation)


def _kernel(module: nn.Module) -> int:
    """Return the reach of a layer by itself."""
    size = getattr(module, "kernel_size", 1)
    dilation = getattr(module, "dilation", 1)
    sizes = size if isinstance(size, (tuple, list)) else (size,)
    spacing = dilation if isinstance(dilation, (tuple, list)) else (dilation,)
    if not all(isinstance(one, int) for one in (*sizes, *spacing)):
        return 1
    return int((max(sizes) - 1) * max(spacing) + 1)


def _reach(module: nn.Module) -> int:
    reach: int = 1 + sum(_kernel(part) - 1 for part in module.modules() if not any(part.children()))
    return reach
