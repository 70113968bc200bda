"""Mean, spread, range and zeros of every unit of layers over a data set."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, choose, need, suggestion
from layerlens.model.trees import as_array

from ..base import Result
from .layer_profile import LayerProfile

QUANTITIES = ("mean", "std", "low", "high", "zeros")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class UnitStatistics(Result):
    """What each unit (channel, feature) of layers returns over a data set, over all samples and places.

    Each of the first six is a dict by layer, `"rnn#1"` for a second call of one, of `(units,)` float64.

    Attributes:
        mean: mean of the finite values.
        std: their standard deviation, over the population.
        low: the smallest of them.
        high: the largest.
        zeros: the share of values that are exactly 0; 1 for a unit that is dead on this data.
        not_finite: how many values are NaN or infinite.
        samples: how many were read.
        settings: every option as used.
    """

    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]
    low: dict[str, torch.Tensor]
    high: dict[str, torch.Tensor]
    zeros: dict[str, torch.Tensor]
    not_finite: dict[str, torch.Tensor]
    samples: int
    settings: dict[str, Any]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order in which they ran."""
        return tuple(self.mean)

    def of(self, quantity: str, layer: str) -> torch.Tensor:
        """One quantity of the units of a layer, `(units,)`.

        Raises:
            OptionError: when there is no such quantity or layer.
        """
        column: dict[str, torch.Tensor] = getattr(self, choose("quantity", quantity, QUANTITIES))
        if layer not in column:
            raise OptionError(f"there is no layer {layer!r} in these statistics.{suggestion(layer, column)}")
        return column[layer]

    def profile(self, quantity: str = "zeros") -> LayerProfile:
        """A number for every layer: the mean of a quantity over its units.

        Raises:
            OptionError: when there is no such quantity.
        """
        column: dict[str, torch.Tensor] = getattr(self, choose("quantity", quantity, QUANTITIES))
        values = torch.stack([units.mean() for units in column.values()])
        names = {"zeros": "share of zeros", "low": "smallest value", "high": "largest value"}
        return LayerProfile(
            quantity=names.get(quantity, quantity),
            layers=self.layers,
            values=values,
            units="share" if quantity == "zeros" else "activation",
            signed=quantity not in ("zeros", "std"),
            method=f"mean over units, {self.samples:,} samples",
            settings=self.settings,
        )

    def to_pandas(self) -> Any:
        """A row for each unit, indexed by layer and unit. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        index = [(layer, unit) for layer, units in self.mean.items() for unit in range(len(units))]
        columns = {name: torch.cat(list(getattr(self, name).values())).numpy() for name in (*QUANTITIES, "not_finite")}
        return pandas.DataFrame(columns, index=pandas.MultiIndex.from_tuples(index, names=["layer", "unit"]))

    def numpy(self) -> Any:
        """Each quantity by layer, as numpy arrays."""
        return {
            name: {layer: as_array(units) for layer, units in getattr(self, name).items()}
            for name in (*QUANTITIES, "not_finite")
        }

    def summary(self) -> list[tuple[str, str]]:
        """Layers, samples, and where most values are 0."""
        rows = [("layers", str(len(self.layers))), ("samples", f"{self.samples:,}")]
        ranked = sorted(((float(units.mean()), layer) for layer, units in self.zeros.items()), reverse=True)[:3]
        rows.append(("most zeros", ", ".join(f"{layer} ({share:.0%})" for share, layer in ranked)))
        dead = sum(int((units == 1).sum()) for units in self.zeros.values())
        return [*rows, ("units that are 0 everywhere", f"{dead:,} of {sum(map(len, self.zeros.values())):,}")]
