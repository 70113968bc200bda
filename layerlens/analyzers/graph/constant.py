"""A constant that was added to a signal, and its relevance."""

from __future__ import annotations

import cmath
import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from .operation import relevance_of

Part: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant that was added to a signal, as it appears in the result.

    Attributes:
        value: number or tensor; `value` times the multiplier of the result is its relevance.
        source: its name in the ledger.
        kind: `"additive"`, or `"absorbed"` for a value that comes from the input by way of a stop.
        part: selects the part of the result's multiplier that belongs to it; None for all of it.
        masking: whether the value may be infinite, as in attention masks.
    """

    value: complex | torch.Tensor
    source: str
    kind: str = "additive"
    part: Part | None = None
    masking: bool = True

    def relevance(self, gradient: torch.Tensor, sums: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
        """Return value times multiplier, `(batch, ...)`, summed already over axes along which the value is constant.

        It is 0 where the multiplier is 0, even if the value is infinite, as in masks.

        Args:
            gradient: multiplier of the result.
            sums: sums of `gradient` over axes, shared by the constants of one operation.
        """
        multiplier = gradient if self.part is None else self.part(gradient)
        if not isinstance(self.value, torch.Tensor):
            product = relevance_of(self.value, multiplier)
            return product if cmath.isfinite(self.value) else product.nan_to_num_(nan=0.0)
        if self.part is None and self.value.ndim < multiplier.ndim:
            shape = (1,) * (multiplier.ndim - self.value.ndim) + tuple(self.value.shape)
            axes = tuple(axis for axis in range(2, multiplier.ndim) if shape[axis] == 1 and multiplier.shape[axis] > 1)
            if axes:
                if axes not in sums:
                    sums[axes] = multiplier.sum(dim=axes, keepdim=True)
                multiplier = sums[axes]
            elif not self.masking and shape[-1] > 1 == math.prod(shape[:-1]) and _in_one_pass(self.value, multiplier):
                return (multiplier @ self.value.reshape(-1)).unsqueeze(-1)  # summed over the units
        product = relevance_of(self.value, multiplier)
        if not self.masking:
            return product
        return torch.where(multiplier == 0, torch.zeros((), dtype=product.dtype, device=product.device), product)


def _in_one_pass(value: torch.Tensor, multiplier: torch.Tensor) -> bool:
    """Whether their product over the last axis is exact enough, and needs no copy."""
    real = value.dtype is multiplier.dtype and value.dtype in (torch.float32, torch.float64)
    return real and multiplier.ndim > 1 and multiplier.is_contiguous()
