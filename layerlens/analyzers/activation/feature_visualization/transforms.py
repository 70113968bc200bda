"""Random shifts, rotations, zooms and noise, which a feature must survive to be more than a pattern of pixels."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F

from layerlens.errors import OptionError


@dataclasses.dataclass(frozen=True)
class Transforms:
    """How inputs are transformed before each pass.

    Attributes:
        shift: largest shift along each axis of places, as a fraction of its length.
        rotate: largest rotation of an image, in degrees.
        zoom: smallest and largest magnification.
        noise: standard deviation of the noise, as a fraction of the range of values.
    """

    shift: float = 0.1
    rotate: float = 20.0
    zoom: tuple[float, float] = (0.6, 1.2)
    noise: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= 1 or not 0 <= self.rotate <= 180 or not self.noise >= 0:
            raise OptionError(
                f"shift={self.shift!r} is a fraction of the length (0 to 1), rotate={self.rotate!r} degrees (0 to "
                f"180), noise={self.noise!r} a fraction of the range (0 or above)."
            )
        low, high = self.zoom
        if not 0 < low <= high:
            raise OptionError(f"zoom={self.zoom!r}; give the smallest and the largest magnification, both above 0.")

    def random_map(self, places: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the affine map of one input from places of the output to those of the input, `(places, places + 1)`."""
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
        """Transform each input by its own random map; outside, the input is mirrored.

        Args:
            values: `(n, *others, *places)`.
            generators: generator of each input.
            places: number of axes of places.
            span: range of the values, for the noise.
        """
        if 1 <= places <= 3:
            maps = torch.stack([self.random_map(places, generator) for generator in generators])
            values = sample_through(values, maps.to(values), places)
        if self.noise:
            draws = [torch.randn(values.shape[1:], generator=g, dtype=torch.float32) for g in generators]
            values = values + self.noise * span * torch.stack(draws).to(values)
        return values


def sample_through(values: torch.Tensor, maps: torch.Tensor, places: int) -> torch.Tensor:
    """Sample inputs `(n, *others, *places)` through affine maps `(n, places, places + 1)`, sampled bilinearly."""
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
