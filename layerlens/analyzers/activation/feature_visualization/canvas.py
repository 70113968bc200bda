"""The parameters of an input that is optimized: Fourier coefficients in decorrelated colors, or its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from layerlens.errors import OptionError, choose

Parametrization = Literal["auto", "fourier", "plain"]
SMOOTH = ("height", "width", "depth", "length", "time")
"""Axes along which neighbors are similar."""

AXES: dict[int, tuple[str, ...]] = {
    1: ("feature",),
    2: ("channel", "length"),
    3: ("channel", "height", "width"),
    4: ("channel", "depth", "height", "width"),
}

COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Principal axes of the colors of photographs (ImageNet), one column each: how red, green and blue go together.

Olah, Mordvintsev & Schubert 2017, section "Preconditioning and parameterization"; the numbers are those of Lucid.
"""


class Canvas:
    """Inputs of one shape as a function of parameters that an optimizer can change.

    Args:
        shape: shape of one input, without the batch.
        axes: names of its axes; those in `SMOOTH` with more than one entry are laid out in frequencies.
        parametrization: `"fourier"` scales each frequency f by 1/f^decay, so that a step of the optimizer changes
            coarse and fine structure as in natural images; `"plain"` moves the values themselves.
        decay: exponent of the spectrum.
        decorrelate: whether three channels are colors to be decorrelated.
        bounds: the values lie between these, by a sigmoid, of one number or one per channel; None leaves them free.
        spread: standard deviation of the values before the sigmoid, at the start.

    Raises:
        OptionError: when the axes do not fit, or none is fit for the Fourier parametrization.
    """

    def __init__(
        self,
        shape: Sequence[int],
        axes: Sequence[str] | None,
        parametrization: Parametrization,
        *,
        decay: float,
        decorrelate: bool,
        bounds: tuple[float, float] | None,
        spread: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self.bounds, self.spread = tuple(shape), bounds, spread
        self.dtype, self.device = dtype, device
        choose("parametrization", parametrization, ("auto", "fourier", "plain"))
        named = AXES.get(len(self.shape)) if axes is None else tuple(axes)
        if named is None or len(named) != len(self.shape):
            raise OptionError(
                f"axes={axes!r} does not name the axes of shape {self.shape}; give one name per axis without the "
                "batch, such as axes=('time', 'feature')."
            )
        self.axes = named
        smooth = [k for k, name in enumerate(named) if name in SMOOTH and self.shape[k] > 1]
        self.smooth = tuple(smooth)
        if parametrization == "fourier" and not smooth:
            raise OptionError(f"parametrization='fourier' needs an axis of places; shape {self.shape} is {named}.")
        self.kind = "plain" if parametrization == "plain" or not smooth else "fourier"
        rest = [k for k in range(len(named)) if k not in smooth]
        self._order = [*rest, *smooth]
        self._rest = tuple(self.shape[k] for k in rest)
        self.sizes = tuple(self.shape[k] for k in smooth)
        colors = decorrelate and "channel" in named and self.shape[named.index("channel")] == 3
        self._colors = self._matrix() if colors and self.kind == "fourier" else None
        if self.kind == "fourier":
            self._spectrum = self._amplitudes(decay)

    def start(self, generator: torch.Generator) -> torch.Tensor:
        """Draw parameters of one input, without the batch."""
        shape = (*self._rest, *self._spectrum.shape, 2) if self.kind == "fourier" else (*self._rest, *self.sizes)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
        return drawn.to(self.device, self.dtype) * self.spread

    def to_input_axes(self, values: torch.Tensor) -> torch.Tensor:
        """Permute `(n, *others, *smooth)` to the axes of the model's input."""
        inverse = [self._order.index(k) for k in range(len(self._order))]
        return values.permute(0, *(1 + k for k in inverse))

    def draw(self, parameters: torch.Tensor) -> torch.Tensor:
        """Compute the inputs of parameters `(n, ...)`, `(n, *others, *smooth)`, within the bounds."""
        values = parameters
        if self.kind == "fourier":
            spectrum = torch.view_as_complex(parameters.contiguous()) * self._spectrum
            axes = tuple(range(-len(self.sizes), 0))
            values = torch.fft.irfftn(spectrum, s=self.sizes, dim=axes, norm="forward")
            if self._colors is not None:
                values = torch.tensordot(values, self._colors, dims=([1], [1])).movedim(-1, 1)
        if self.bounds is None:
            return values
        low, high = self.bounds
        bounded: torch.Tensor = low + (high - low) * torch.sigmoid(values)
        return bounded

    def _matrix(self) -> torch.Tensor:
        """Return the principal axes of colors, the longest of length 1."""
        matrix = torch.tensor(COLORS, dtype=self.dtype, device=self.device)
        longest: torch.Tensor = matrix.norm(dim=0).max()
        return matrix.div(longest)

    def _amplitudes(self, decay: float) -> torch.Tensor:
        """Return 1/f^decay by frequency, scaled so that coefficients of standard deviation 1 give values of 1."""
        *full, last = self.sizes
        grids = [torch.fft.fftfreq(size, dtype=torch.float64) for size in full]
        grids.append(torch.fft.rfftfreq(last, dtype=torch.float64))
        squares = torch.stack([grid.square() for grid in torch.meshgrid(*grids, indexing="ij")]).sum(dim=0)
        amplitude = squares.sqrt().clamp_min(1 / max(self.sizes)) ** -decay
        # the real part of the first column of frequencies (and of the last, for an even size) counts once, of the
        # others twice: they include their mirror image
        power = torch.full((last // 2 + 1,), 4.0, dtype=torch.float64)
        power[0] = 1
        if last % 2 == 0:
            power[-1] = 1
        total = (power * amplitude.square()).sum()
        return (amplitude / math.sqrt(float(total))).to(self.device, self.dtype)
