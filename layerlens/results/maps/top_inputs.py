"""The inputs of a data set that some units respond to most."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, need
from layerlens.model.trees import as_array

from ..base import Result
from .attribution import Values


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopInputs(Result):
    """For each unit of a layer the samples of a data set with its largest activation or relevance, largest first.

    Attributes:
        layer: path of the layer.
        call: which of its calls.
        by: `"relevance"` or `"activation"`.
        units: the unit that each row is of.
        index: indices of the samples in the data set, `(unit, rank)`.
        values: values of the unit there, `(unit, rank)` float64; in units of the score for relevance.
        places: where in the layer's map the unit was largest, `(unit, rank, axis)`: (row, column) of a convolution, a
            token or time step; no axis for a dense layer.
        regions: the box of the input that the unit sees there, `(unit, rank, axis, 2)`: start and stop along each axis
            of a sample, stop excluded; both 0 where the unit has no gradient. None where it was not asked for or the
            model has several inputs.
        inputs: index in the data set -> the sample, without its batch axis; a dict by name where there are several.
        count: how many samples the data set held.
        target: whose relevance it is; `""` for activation.
        method: how the units were ranked.
        settings: every option as used.
    """

    layer: str
    call: int
    by: str
    units: tuple[int, ...]
    index: torch.Tensor
    values: torch.Tensor
    places: torch.Tensor
    regions: torch.Tensor | None
    inputs: dict[int, Values]
    count: int
    target: str
    method: str
    settings: dict[str, Any]

    def row(self, unit: int) -> int:
        """The row of a unit in `index`, `values`, `places` and `regions`.

        Raises:
            OptionError: when the unit was not ranked.
        """
        if unit not in self.units:
            few = ", ".join(map(str, self.units[:8])) + (", ..." if len(self.units) > 8 else "")
            raise OptionError(f"unit {unit!r} of layer {self.layer!r} was not ranked; those are: {few}.")
        return self.units.index(unit)

    def strongest(self, count: int = 5) -> list[tuple[int, float]]:
        """The units with the largest value anywhere in the data set, with that value.

        Args:
            count: how many.
        """
        best = self.values[:, 0].topk(min(count, len(self.units)))
        return [(self.units[row], value) for value, row in zip(*map(torch.Tensor.tolist, best), strict=True)]

    def to_pandas(self) -> Any:
        """One row per unit and rank: unit, rank, index, value, place. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        lists = (self.index.tolist(), self.values.tolist(), self.places.tolist())
        rows = [
            {"unit": unit, "rank": rank, "index": index, "value": value, "place": tuple(place)}
            for unit, *ranks in zip(self.units, *lists, strict=True)
            for rank, (index, value, place) in enumerate(zip(*ranks, strict=True))
        ]
        return pandas.DataFrame(rows)

    def numpy(self) -> Any:
        """The values, `(unit, rank)`, as a numpy array."""
        return as_array(self.values)

    def summary(self) -> list[tuple[str, str]]:
        """Layer, what was ranked, size of the data, and the units with the largest value."""
        best = [
            f"{unit} (sample {int(self.index[self.row(unit), 0])}: {value:.3g})" for unit, value in self.strongest(3)
        ]
        name = f"{self.layer} #{self.call}" if self.call else self.layer
        head = [("layer", name), ("method", self.method)] + ([("target", self.target)] if self.target else [])
        size = f"{self.index.shape[1]} of {self.count} samples for {len(self.units)} units"
        return [*head, ("kept", size), ("strongest units", ", ".join(best))]
