"""Random shifts, turns, zooms and noise: what a feature must survive to be more than a pattern of pixels."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F

from layerlens.errors import OptionError


@dataclasses.dataclass(frozen=True)
class Transforms:
    """How far inputs are moved before each pass.

    Attributes:
        shift: largest shift along each axis of places, as a part of its length.
        rotate: largest turn of an image, in degrees.
        zoom: smallest and largest magnification.
        noise: standard deviation of the noise, as a part of the range of values.
    """

    shift: float = 0.1
    rotate: float = 20.0
    zoom: tuple[float, float] = (0.6, 1.2)
    noise: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1 or not 0 <= self.rotate <= 180 or not self.noise >= 0:
            raise OptionError(
                f"shift={self.shift!r} is a part of the length (0 to 1), rotate={self.rotate!r} degrees (0 to 180), "
                f"noise={self.noise!r} a part of the range (0 or above)."
            )
        low, high = self.zoom
        if not 0 < low <= high:
            raise OptionError(f"zoom={self.zoom!r}; give the smallest and the largest magnification, both above 0.")

    def drawn(self, places: int, generator: torch.Generator) -> torch.Tensor:
        """The affine map of one input from places of the output to those of the input, `(places, places + 1)`."""
        draw = 2 * torch.rand(places + 2, generator=generator, dtype=torch.float64) - 1
        low, high = self.zoom
        zoom = math.exp(math.log(low) + (math.log(high) - math.log(low)) * (float(draw[0]) + 1) / 2)
        matrix = torch.eye(places, dtype=torch.float64)
        if places == 2:
            angle = math.radians(self.rotate) * float(draw[1])
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
        return torch.cat([matrix / zoom, 2 * self.shift * draw[2:, None]], dim=1)

    def __call__(
        self, values: torch.Tensor, generators: list[torch.Generator], places: int, span: float
    ) -> torch.Tensor:
        """Move each input by its own random map; what comes in from outside is its mirror image.

        Args:
            values: `(n, *others, *places)`.
            generators: of each input.
            places: how many axes of places there are.
            span: range of the values, for the noise.
        """
        if 1 <= places <= 3:
            maps = torch.stack([self.drawn(places, generator) for generator in generators])
            values = moved(values, maps.to(values), places)
        if self.noise:
            draws = [torch.randn(values.shape[1:], generator=g, dtype=torch.float32) for g in generators]
            values = values + self.noise * span * torch.stack(draws).to(values)
        return values


def moved(values: torch.Tensor, maps: torch.Tensor, places: int) -> torch.Tensor:
    """Inputs `(n, *others, *places)` seen through affine maps `(n, places, places + 1)`, sampled bilinearly."""
    sizes = values.shape[-places:]
    flat = values.flatten(1, -places - 1) if values.ndim - places > 1 else values.unsqueeze(1)
    if places == 1:  # as an image of one row
        flat = flat.unsqueeze(-2)  # (n, c, 1, length)
        rows = torch.zeros(len(maps), 2, 3).to(maps)
        rows[:, 0, 0], rows[:, 0, 2], rows[:, 1, 1] = maps[:, 0, 0], maps[:, 0, 1], 1
        maps = rows
    grid = F.affine_grid(maps, list(flat.shape), align_corners=False)
    seen = F.grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
    return seen.reshape(*values.shape[:-places], *sizes)
