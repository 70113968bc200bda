"""The slope of numbers along a direction by finite differences, with an estimate of their own error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

STEPS = {torch.float64: (1e-5, 1e-6, 1e-4, 1e-7, 1e-3)}
"""Lengths of the steps by data type, in units of the direction, in the order in which they are tried."""

LONG_STEPS = (1e-2, 3e-3, 3e-2, 1e-3)
"""The same for shorter numbers, whose rounding hides shorter steps."""

SMALL = 1e-4
"""A slope whose error is below this, relative to its size, needs no further step."""

NOISE = 1e-3
"""How far, relative to its own value, each number is moved from where ties and kinks may lie."""


class Slope(NamedTuple):
    """A slope, `(n,)`, and the estimated error of each of its numbers."""

    value: torch.Tensor
    error: torch.Tensor


def slope_of(function: Callable[[float], torch.Tensor], dtype: torch.dtype) -> Slope:
    """Return central differences (f(s) - f(-s)) / 2s, each number by the step with the smallest error.

    Half of the distance between the slopes to both sides bounds what a kink closer than s does; it shrinks with s where
    f is smooth. Rounding adds the step size of the data type over s.

    Args:
        function: from a step to numbers `(n,)`.
        dtype: data type in which they are computed.
    """
    middle = function(0.0).detach().double()
    found: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    for step in STEPS.get(dtype, LONG_STEPS):
        above, below = function(step).detach().double(), function(-step).detach().double()
        found.append((above - below) / (2 * step))
        rounding = torch.finfo(dtype).eps * (above.abs() + below.abs()) / step
        errors.append((above + below - 2 * middle).abs() / (2 * step) + rounding)
        if bool((errors[-1] <= SMALL * found[-1].abs()).all()):
            break
    slopes, error = torch.stack(found), torch.stack(errors).nan_to_num(nan=torch.inf)  # (steps, n)
    best = error.argmin(dim=0, keepdim=True)
    return Slope(slopes.gather(0, best)[0], error.gather(0, best)[0])


def moved_from_kinks(value: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a point near `value` without ties, and a random direction; numbers that are 0 stay 0 in both.

    A maximum of equal numbers and a ReLU at 0 have no derivative, so that autograd and differences may differ there.

    Args:
        value: any tensor of floating-point numbers.
        generator: draws the noise, on the CPU.
    """
    noise, step = (torch.randn(value.shape, generator=generator).to(value) for _ in range(2))
    if not bool(value.any()):
        return NOISE * noise, step
    size = value.double().square().mean().sqrt().to(value.dtype)
    return replica(value.detach()).mul_(1 + NOISE * noise), torch.where(value == 0, 0, step * size)


def replica(value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a copy with the same strides, on which the kernels that run depend; autograd follows it.

    Args:
        value: any tensor.
        dtype: another data type; None keeps its own.
    """
    dtype = dtype or value.dtype
    if value.layout is not torch.strided or 0 in value.stride():
        return value.to(dtype, copy=True)
    return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device).copy_(value)


def along(values: dict[str, torch.Tensor], directions: dict[str, torch.Tensor], step: float) -> dict[str, torch.Tensor]:
    """Return `values` plus `step` times `directions`, in the data type of the values."""
    return {name: replica(value).add_(directions[name].to(value), alpha=step) for name, value in values.items()}
