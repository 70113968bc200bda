"""A constant that an operation adds to a signal, and its relevance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .graph import Graph

if TYPE_CHECKING:
    from .recorder import Notes

Place = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Constant:
    """Something that was added to a signal, as it appears in the result.

    Attributes:
        value: number or tensor; `value` times the multiplier of the result is its relevance.
        source: what it is, for the ledger.
        kind: `"additive"`, or `"absorbed"` for a value that comes from the input by way of a stop.
        place: the part of the result's multiplier that belongs to it; None for all of it.
        mask: whether the value may be infinite, as those of attention masks are.
    """

    value: float | torch.Tensor
    source: str
    kind: str = "additive"
    place: Place | None = None
    mask: bool = True

    def relevance(self, gradient: torch.Tensor, sums: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
        """Value times multiplier, `(batch, ...)`, with the axes along which the value is constant summed already.

        It is 0 where the multiplier is 0, also beside an infinite value, as masks are.

        Args:
            gradient: the multiplier of the result.
            sums: sums of `gradient` over axes, shared by the constants of one operation.
        """
        part = gradient if self.place is None else self.place(gradient)
        if not isinstance(self.value, torch.Tensor):
            product = part * self.value
            return product if math.isfinite(self.value) else product.nan_to_num_(nan=0.0)
        if self.place is None and self.value.ndim < part.ndim:
            shape = (1,) * (part.ndim - self.value.ndim) + tuple(self.value.shape)
            axes = tuple(axis for axis in range(2, part.ndim) if shape[axis] == 1 and part.shape[axis] > 1)
            if axes:
                if axes not in sums:
                    sums[axes] = part.sum(dim=axes, keepdim=True)
                part = sums[axes]
        product = part * self.value
        if not self.mask:
            return product
        return torch.where(part == 0, torch.zeros((), dtype=product.dtype, device=product.device), product)


def put(
    notes: Notes, number: int, graph: Graph, value: Any, factor: float, source: str, place: Place | None = None
) -> None:
    """Note `factor * value` unless it carries relevance itself, or is nothing."""
    if value is None or isinstance(value, bool):
        return
    kind = "additive"
    if isinstance(value, torch.Tensor):
        if value.numel() == 0 or graph.carries(value):
            return
        if id(value) in notes.detached:
            notes.cuts.append(number)
        kind, source = ("absorbed", "stop") if graph.depends(value) else ("additive", source)
        value = value.detach() if factor == 1 else value.detach() * factor
        if factor == 1 and notes.copying:
            value = value.clone()
    else:
        value = float(value) * factor
        if value == 0:
            return
    notes.constants.setdefault(number, []).append(
        Constant(value, source, kind, place, mask=source.startswith("constant") or kind == "absorbed")
    )


def channels(value: torch.Tensor | None, places: int) -> torch.Tensor | None:
    """A value per channel, shaped to fit a result whose last `places` axes are places."""
    return None if value is None else value.reshape(-1, *[1] * places)
