"""Parts of a value exchanged for new ones, copy by copy of the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.model.trees import map_tensors

from .hook_points import Key
from .intervention_sites import Seam
from .parts import Cut, narrow
from .replacements import Misfit, Source


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of one seam.

    Attributes:
        seam: where.
        number: of the part in the seam's grids.
    """

    seam: Seam
    number: int


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is changed in one copy of the batch.

    Attributes:
        parts: all at once.
        draw: of the new values.
    """

    parts: tuple[Part, ...]
    draw: int = 0


class Exchange:
    """Puts new values in the place of parts, copy by copy, in new tensors: what a layer keeps is not written to."""

    def __init__(self, changes: dict[Key, list[tuple[int, Part, int]]], source: Source, copies: int) -> None:
        self._changes, self._source, self._copies = changes, source, copies
        self.fired: set[Key] = set()
        self.misfits: dict[tuple[int, Key], str] = {}

    def __call__(self, key: Key, value: Any) -> Any:
        """The value with its parts exchanged."""
        if key not in self._changes:
            return value
        self.fired.add(key)
        places = iter(range(1 << 62))
        done: dict[int, torch.Tensor] = {}

        def change(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            place = next(places)
            if id(tensor) not in done:
                done[id(tensor)] = self._changed(key, tensor, place)
            return done[id(tensor)]

        return map_tensors(value, change)

    def _changed(self, key: Key, tensor: torch.Tensor, place: int) -> torch.Tensor:
        new = tensor.clone()
        for copy, part, draw in self._changes[key]:
            seam = part.seam
            if place >= len(seam.grids):
                self.misfits[copy, key] = "returned other tensors than in a clean run"
                continue
            axis, parts = seam.axes[place], seam.grids[place]
            if parts is None:
                continue
            cut = parts.cut(part.number)
            if not _fits(new, axis, self._copies, cut):
                self.misfits[copy, key] = f"returned another shape than in a clean run: {tuple(tensor.shape)}"
                continue
            old = narrow(new if self._copies == 1 else _copy(new, axis, self._copies, copy), cut)
            try:
                old.copy_(self._source(seam, place, cut, old, draw).expand_as(old))
            except Misfit as error:
                self.misfits[copy, key] = str(error)
        return new


def _fits(tensor: torch.Tensor, axis: int | None, copies: int, cut: Cut) -> bool:
    """Whether the tensor has the rows of all copies, and the part."""
    if any(place >= tensor.ndim or start + length > tensor.shape[place] for place, start, length in cut):
        return False
    return axis is None or (axis < tensor.ndim and tensor.shape[axis] % copies == 0)


def _copy(tensor: torch.Tensor, axis: int | None, copies: int, copy: int) -> torch.Tensor:
    """A view of the rows of one copy of the batch."""
    if axis is None:
        return tensor
    width = tensor.shape[axis] // copies
    return tensor.narrow(axis, copy * width, width)
