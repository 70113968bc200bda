"""Corruptions of images, and of anything else, by kind and severity.

Kinds and strengths of images are those of Hendrycks & Dietterich 2019, app. B, whose pictures are 224 pixels high, in
0..1; lengths are scaled to the picture, and strengths between the five levels interpolated. Occlusion is not theirs
(Zeiler & Fergus 2014, sec. 4.2), nor are the kinds for series, tables and embeddings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

Change = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
"""(one sample, strength, generator) -> the changed sample. Of an image, values are in 0..1, `(..., height, width)`."""

SIDE = 224
"""Height of the pictures that strengths are for."""


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        change: changes a sample.
        strengths: strengths at severities 0 (no change) to 5.
        image: whether it is for images only, rather than for other inputs only.
        random: whether it draws numbers.
    """

    change: Change
    strengths: tuple[float, ...]
    image: bool = True
    random: bool = False

    def strength(self, severity: float) -> float:
        """Return the strength at a severity from 0 to 5."""
        low = min(math.floor(severity), len(self.strengths) - 2)
        share = severity - low
        return (1 - share) * self.strengths[low] + share * self.strengths[low + 1]


def _normal(sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(sample.shape, generator=generator).to(sample)


def _uniform(shape: torch.Size | tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator).to(like)


def gaussian_noise(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Add normal noise of this standard deviation."""
    return sample + strength * _normal(sample, generator)


def shot_noise(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Draw counts of photons, 1 / strength of them at the brightest."""
    counts = torch.poisson(sample.clamp(0, 1).double().cpu() / strength, generator=generator)
    return (counts * strength).to(sample)


def impulse_noise(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Set this share of the values to black or white."""
    drawn = _uniform(sample.shape, sample, generator)
    return torch.where(drawn < strength / 2, 0.0, torch.where(drawn < strength, 1.0, sample))


def speckle_noise(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Add normal noise in proportion to the value."""
    return sample + strength * sample * _normal(sample, generator)


def gaussian_blur(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Blur with a Gaussian of this width, in pixels of a picture 224 high; edges are mirrored."""
    width = strength * sample.shape[-2] / SIDE
    reach = min(math.ceil(3 * width), min(sample.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-places.square() / (2 * width**2))
    kernel = (kernel / kernel.sum()).to(sample)
    planes = sample.reshape(-1, 1, *sample.shape[-2:])
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), "reflect"), kernel.reshape(1, 1, -1, 1))
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), "reflect"), kernel.reshape(1, 1, 1, -1))
    return planes.reshape(sample.shape)


def contrast(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Scale the distance of values from the mean of their channel."""
    mean = sample.mean(dim=(-2, -1), keepdim=True)
    return mean + strength * (sample - mean)


def brightness(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Raise all values."""
    return sample + strength


def pixelate(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Shrink to this share by averaging, and enlarge with hard pixels."""
    high, wide = sample.shape[-2:]
    planes = sample.reshape(-1, 1, high, wide)
    small = F.adaptive_avg_pool2d(planes, (max(1, round(high * strength)), max(1, round(wide * strength))))
    return F.interpolate(small, (high, wide), mode="nearest-exact").reshape(sample.shape)


def occlusion(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Cover this share of the picture with a gray square at a random place."""
    high, wide = sample.shape[-2:]
    tall, broad = max(1, round(high * strength**0.5)), max(1, round(wide * strength**0.5))
    down, right = torch.rand(2, generator=generator).tolist()  # a larger square holds the smaller ones
    top, left = int(down * (high - tall + 1)), int(right * (wide - broad + 1))
    changed = sample.clone()
    changed[..., top : top + tall, left : left + broad] = 0.5
    return changed


def relative_noise(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Add normal noise of this many times the sample's own root mean square."""
    return sample + strength * sample.double().square().mean().sqrt().to(sample) * _normal(sample, generator)


def masking(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Set this share of the values to zero."""
    return torch.where(_uniform(sample.shape, sample, generator) < strength, 0.0, sample)


def scaling(sample: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Multiply the whole sample by exp(strength e), e ~ N(0, 1): a wrong gain."""
    return sample * math.exp(strength * float(torch.randn((), generator=generator)))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0, 0.08, 0.12, 0.18, 0.26, 0.38), random=True),
    "shot_noise": Corruption(shot_noise, (0, 1 / 60, 1 / 25, 1 / 12, 1 / 5, 1 / 3), random=True),
    "impulse_noise": Corruption(impulse_noise, (0, 0.03, 0.06, 0.09, 0.17, 0.27), random=True),
    "speckle_noise": Corruption(speckle_noise, (0, 0.15, 0.2, 0.35, 0.45, 0.6), random=True),
    "gaussian_blur": Corruption(gaussian_blur, (0, 1, 2, 3, 4, 6)),
    "contrast": Corruption(contrast, (1, 0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": Corruption(brightness, (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    "pixelate": Corruption(pixelate, (1, 0.6, 0.5, 0.4, 0.3, 0.25)),
    "occlusion": Corruption(occlusion, (0, 0.05, 0.1, 0.2, 0.3, 0.4), random=True),
    "noise": Corruption(relative_noise, (0, 0.1, 0.2, 0.4, 0.7, 1.0), image=False, random=True),
    "masking": Corruption(masking, (0, 0.05, 0.1, 0.2, 0.35, 0.5), image=False, random=True),
    "scaling": Corruption(scaling, (0, 0.1, 0.2, 0.4, 0.7, 1.0), image=False, random=True),
}
"""Name -> kind."""


def corrupted(
    sample: torch.Tensor, kind: Corruption, severity: float, low: float, high: float, seed: int
) -> torch.Tensor:
    """Corrupt one sample; values of images stay in low..high."""
    if severity == 0:
        return sample
    generator = torch.Generator().manual_seed(seed)
    if not kind.image:
        return kind.change(sample, kind.strength(severity), generator)
    unit = (sample - low) / (high - low)
    changed = kind.change(unit, kind.strength(severity), generator).clamp(0, 1)
    return low + (high - low) * changed
