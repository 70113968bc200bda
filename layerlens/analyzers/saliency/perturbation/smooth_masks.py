"""Random masks that keep cells of a coarse grid, enlarged linearly and shifted."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from layerlens.errors import choose

Sampling = Literal["balanced", "random"]

FINE = 4
"""Places of the pooled masks in each cell, along each axis."""

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SmoothMasks:
    """Masks over places, made when asked for by index.

    Args:
        places: sizes of the axes of places, at most three.
        cells: of the grid along the shortest axis; 0 for a cell at every place, without shifts.
        count: of masks.
        probability: that a cell is kept.
        sampling: `"random"`: each cell by itself; `"balanced"`: from a scrambled Sobol sequence, each mask followed by
            its complement under the same shift.
        seed: of cells and shifts.
    """

    def __init__(
        self, places: list[int], cells: int, count: int, probability: float, sampling: Sampling, seed: int
    ) -> None:
        choose("sampling", sampling, ("balanced", "random"))
        self.places = places
        cell = min(places) / cells if cells else 1.0
        self._grid = [max(1, round(size / cell)) if cells else size for size in places]
        self._smooth = bool(cells) and max(self._grid) > 1 and len(places) in MODES
        grid = [size + 1 for size in self._grid] if self._smooth else self._grid
        generator = torch.Generator().manual_seed(seed)
        wide = torch.Size(grid).numel()
        if sampling == "random":
            kept = torch.rand(count, wide, generator=generator) < probability
            shifts = torch.rand(count, len(places), generator=generator)
        else:
            half = (count + 1) // 2
            engine = torch.quasirandom.SobolEngine(wide, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
            one = engine.draw(half) < 0.5
            kept = torch.stack([one, ~one], dim=1).flatten(0, 1)[:count]
            shifts = torch.rand(half, len(places), generator=generator).repeat_interleave(2, dim=0)[:count]
        self._kept = kept.float().reshape(count, *grid)
        self._shifts = shifts
        self._pool = [
            min(size, FINE * cells_) if self._smooth else size for size, cells_ in zip(places, self._grid, strict=True)
        ]

    @property
    def coarse(self) -> int:
        """Numbers in a pooled mask."""
        return torch.Size(self._pool).numel()

    def __call__(self, chosen: torch.Tensor) -> torch.Tensor:
        """The masks `(m, *places)`, from 0 to 1."""
        if not self._smooth:
            return self._kept[chosen].reshape(len(chosen), *self.places)
        steps = [-(-size // cells) for size, cells in zip(self.places, self._grid, strict=True)]
        large = F.interpolate(
            self._kept[chosen].unsqueeze(1),
            size=[step * (cells + 1) for step, cells in zip(steps, self._grid, strict=True)],
            mode=MODES[len(self.places)],
            align_corners=False,
        ).squeeze(1)
        offsets = (self._shifts[chosen] * torch.tensor(steps)).long().tolist()
        cut = [
            mask[tuple(slice(start, start + size) for start, size in zip(offset, self.places, strict=True))]
            for mask, offset in zip(large, offsets, strict=True)
        ]
        return torch.stack(cut)

    def pooled(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks at a few places in each cell, `(m, coarse)`."""
        if not self._smooth:
            return masks.flatten(1)
        return _resized(masks, self._pool, "area").flatten(1)

    def enlarged(self, values: torch.Tensor) -> torch.Tensor:
        """Numbers by pooled place, `(batch, coarse)`, at every place, `(batch, *places)`."""
        if not self._smooth:
            return values.reshape(len(values), *self.places)
        return _resized(values.reshape(len(values), *self._pool), self.places, MODES[len(self.places)])


def _resized(values: torch.Tensor, size: list[int], mode: str) -> torch.Tensor:
    corners = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(values.unsqueeze(1), size=size, mode=mode, **corners).squeeze(1)
