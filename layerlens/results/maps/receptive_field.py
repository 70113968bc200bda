"""Which part of the input each place of a layer can see, and which it does see."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from layerlens.model.trees import as_array

from ..base import Result

EDGE = 0.0455
"""1 - 95.45 %: places with a smaller part of the largest gradient lie outside of two standard deviations."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ReceptiveField(Result):
    """The receptive field of a layer: in theory for every place, and in effect for one.

    Attributes:
        layer: path of the layer.
        call: which of its calls.
        boxes: the part of the input that each place can depend on, `(*places, axis, 2)`: start and stop along each
            axis of places of the input, stop excluded; both 0 where there is none.
        input_size: size of the input along these axes.
        place: the place whose effective field was measured.
        effective: how strongly the units at that place answer to each place of the input, `(batch, *input_size)`: the
            root mean square over units and input channels of the gradient.
        settings: every option as used.
        inputs: the input.
    """

    layer: str
    call: int
    boxes: torch.Tensor
    input_size: tuple[int, ...]
    place: tuple[int, ...]
    effective: torch.Tensor
    settings: dict[str, Any]
    inputs: torch.Tensor | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The largest extent along each axis; at least the theoretical size, unless every box meets an edge."""
        extents = self.boxes[..., 1] - self.boxes[..., 0]
        return tuple(extents.reshape(-1, len(self.input_size)).amax(dim=0).tolist())

    @property
    def stride(self) -> tuple[int, ...]:
        """How far the boxes of neighboring places lie apart along each axis; 0 where all see the same."""
        places = self.boxes.ndim - 2
        found = []
        for axis in range(min(places, len(self.input_size))):
            if self.boxes.shape[axis] < 2:
                found.append(0)
                continue
            steps = self.boxes.diff(dim=axis)[..., axis, :]
            found.append(int(steps.max()))
        return tuple(found)

    @property
    def box(self) -> torch.Tensor:
        """The box of `place`, `(axis, 2)`."""
        return self.boxes[self.place]

    @property
    def clipped(self) -> bool:
        """Whether the box of `place` meets an edge of the input, so that the field may reach beyond it."""
        sizes = torch.tensor(self.input_size)
        return bool(((self.box[:, 0] == 0) | (self.box[:, 1] == sizes)).any())

    @property
    def effective_size(self) -> torch.Tensor:
        """The extent of the effective field of each sample, in input places, `(batch,)`.

        The number of places with more than 4.55 % of the largest gradient, to the power 1 / axes (Luo et al. 2016).
        """
        flat = self.effective.double().flatten(1)
        inside = (flat > EDGE * flat.amax(dim=1, keepdim=True)).sum(dim=1)
        return inside.double().pow(1 / len(self.input_size))

    @property
    def share(self) -> torch.Tensor:
        """The effective extent as a part of the theoretical one, `(batch,)`."""
        extents = (self.box[:, 1] - self.box[:, 0]).tolist()
        extent: float = max(math.prod(extents), 1) ** (1 / len(extents))
        return self.effective_size / extent

    def numpy(self) -> Any:
        """The effective field, `(batch, *input_size)`, as a numpy array."""
        return as_array(self.effective)

    def summary(self) -> list[tuple[str, str]]:
        """Layer, theoretical and effective size."""
        name = f"{self.layer} #{self.call}" if self.call else self.layer
        times = " x "
        rows = [("layer", name), ("places", times.join(map(str, self.boxes.shape[:-2])) or "one")]
        rows.append(("field", f"{times.join(map(str, self.size))} of {times.join(map(str, self.input_size))}"))
        rows.append(("stride", times.join(map(str, self.stride)) or "none"))
        effective = ", ".join(f"{one:.1f}" for one in self.effective_size.tolist()[:3])
        return [*rows, (f"effective size at {self.place}", effective)]
