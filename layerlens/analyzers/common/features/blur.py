"""A Gaussian blur along any axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

REACH = 3
"""Standard deviations that the kernel reaches to each side."""

WIDE, LONGEST = 16, 2048
"""A kernel above a sixteenth of such a side, for as many lines, is a matrix: a third to a tenth of the convolution."""


def gaussian_blur(value: torch.Tensor, sigmas: Mapping[int, float]) -> torch.Tensor:
    """`value` under a Gaussian along some of its axes; beyond an end its last value goes on.

    Args:
        value: of any shape.
        sigmas: the standard deviation along each axis, in steps of that axis; 0 leaves it as it is.
    """
    blurred = value.to(torch.promote_types(value.dtype, torch.float32))
    for axis, sigma in sigmas.items():
        size = value.shape[axis]
        if sigma <= 0 or size < 2:
            continue
        radius = max(1, round(REACH * sigma))
        places = torch.arange(-radius, radius + 1, device=value.device, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (places / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(blurred.dtype)
        lines = blurred.movedim(axis, -1)
        if WIDE * min(len(kernel), lines.numel() // size) > size and size <= LONGEST:
            found = lines @ _matrix(kernel, size)
        else:
            flat = torch.nn.functional.pad(lines.reshape(-1, 1, size), (radius, radius), mode="replicate")
            found = torch.nn.functional.conv1d(flat, kernel.reshape(1, 1, -1)).reshape(lines.shape)
        blurred = found.movedim(-1, axis)
    return blurred.to(value.dtype)


def _matrix(kernel: torch.Tensor, size: int) -> torch.Tensor:
    """From a line of `size` places to the same line under the kernel, `(from, to)`; ends go on beyond."""
    radius = len(kernel) // 2
    to = torch.arange(size, device=kernel.device).unsqueeze(1)
    start = (to + torch.arange(-radius, radius + 1, device=kernel.device)).clamp(0, size - 1)  # (to, kernel)
    matrix = torch.zeros(size, size, dtype=kernel.dtype, device=kernel.device)
    return matrix.scatter_add_(1, start, kernel.expand_as(start)).T
