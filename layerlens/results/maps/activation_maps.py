"""Activations of one layer on the places of its input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from layerlens.model.trees import as_array, describe

from ..base import Result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ActivationMaps(Result):
    """The output of one layer, unit by unit, on the places of its input.

    Attributes:
        layer: path of the layer.
        call: which of its calls.
        values: `(batch, unit, *places)`: places are (height, width) of a convolution, tokens of a transformer, time
            steps of a recurrent layer; none for a dense layer.
        units: the unit that each entry of axis 1 is.
        axes: names of the axes of `values`.
        inputs: the input, where it is a single floating-point tensor.
    """

    layer: str
    call: int
    values: torch.Tensor
    units: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: torch.Tensor | None = None

    def strongest(self, count: int = 5) -> list[tuple[int, float]]:
        """The units whose mean activation over the batch and all places is largest, with that mean.

        Args:
            count: how many.
        """
        means = self.values.float().mean(dim=[axis for axis in range(self.values.ndim) if axis != 1])
        best = means.topk(min(count, len(means)))
        return [(self.units[index], value) for value, index in zip(*map(torch.Tensor.tolist, best), strict=True)]

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a numpy array."""
        return as_array(self.values)

    def summary(self) -> list[tuple[str, str]]:
        """Layer, shape and the units that respond most."""
        best = ", ".join(f"{unit} ({mean:.3g})" for unit, mean in self.strongest(3))
        name = f"{self.layer} #{self.call}" if self.call else self.layer
        return [("layer", name), ("values", describe(self.values)), ("strongest units", best)]
