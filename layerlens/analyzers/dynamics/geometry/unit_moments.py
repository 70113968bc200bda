"""Statistics of the units of a layer over a data set, added up batch by batch."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.features.feature_batches import run_once
from layerlens.analyzers.common.features.layer_features import FeatureReader, silent_layers
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath, Selection

RECTIFIERS = ("relu", "elu", "silu", "swish", "mish")  # `elu` also names ReLU, GELU, SELU, CELU
"""Parts of the names of classes whose output for negative input is zero, or close to it."""

NEAR = 0.02
"""Distance from an end of its range at which a value is saturated, as a share of that range."""

FEW = 10
"""Rows below which correlations are high by chance; a unit must also vary at as many."""


def rectifies(module: nn.Module) -> bool:
    """Whether a unit of this layer that is never above zero passes nothing on."""
    return any(part in type(module).__name__.lower() for part in RECTIFIERS)


def saturation_ends(module: nn.Module) -> tuple[float | None, float | None] | None:
    """Return where the values of a layer saturate, below and above; None for a layer without ends."""
    if isinstance(module, nn.Hardtanh):
        # the zero of ReLU6 is that of any rectifier, and counted as such
        return (None if module.min_val == 0 else float(module.min_val), float(module.max_val))
    if isinstance(module, nn.RNNBase):
        return None if getattr(module, "nonlinearity", "tanh") == "relu" else (-1.0, 1.0)
    name = type(module).__name__
    known: dict[str, tuple[float | None, float | None]] = {
        "Sigmoid": (0.0, 1.0),
        "Hardsigmoid": (0.0, 1.0),
        "Tanh": (-1.0, 1.0),
        "Softsign": (-1.0, 1.0),
    }
    return known.get(name)


@dataclasses.dataclass
class Units:
    """The units of one call of one layer.

    Attributes:
        module: the layer.
        max_units: units above which no doubles are looked for.
    """

    module: nn.Module
    max_units: int

    def __post_init__(self) -> None:
        self.samples = self.rows = 0
        self.ends = saturation_ends(self.module)
        self.eps = 0.0
        self.per_sample: list[torch.Tensor] = []
        self.low = self.high = self.count = self.total = self.squares = self.fourths = torch.empty(0)
        self.shift = torch.empty(0)
        self.products: torch.Tensor | None = None

    def add(self, values: torch.Tensor) -> str:
        """Add one batch, `(batch, units, *places)`; return why it does not fit, or the empty text.

        Means and sums over places are added up in float64, products within a batch in the layer's own precision.
        """
        table = values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32))
        table = table.flatten(2) if table.ndim > 2 else table.unsqueeze(2)  # (batch, units, places)
        batch, units, places = table.shape
        if self.samples and len(self.total) != units:
            return "its number of units changes between samples"
        low, high = table.amin(dim=(0, 2)), table.amax(dim=(0, 2))
        good = None if bool(low.isfinite().all() and high.isfinite().all()) else table.isfinite()
        known = table
        if good is not None:
            low = table.masked_fill(~good, float("inf")).amin(dim=(0, 2))
            high = table.masked_fill(~good, -float("inf")).amax(dim=(0, 2))
            known = table.masked_fill(~good, 0.0)
        counts = torch.full((batch, units), float(places)).double() if good is None else good.sum(dim=2).double()
        ones = torch.ones(places, dtype=known.dtype)  # sums by products with ones: several times faster
        if not self.samples:
            empty = torch.zeros(units, dtype=torch.float64)
            self.low, self.high = empty + float("inf"), empty - float("inf")
            self.count, self.total, self.squares, self.fourths = empty, empty, empty, empty
            self.eps = torch.finfo(values.dtype).eps
            self.shift = (known @ ones).double().sum(dim=0) / counts.sum(dim=0).clamp_min(1)
            self.products = torch.zeros(units, units, dtype=torch.float64) if units <= self.max_units else None
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        centered = known - self.shift.to(known.dtype)[:, None]
        if good is not None:
            centered = centered.masked_fill(~good, 0.0)
            self.products = None
        if self.products is None:
            self.squares = self.squares + (centered.square() @ ones).double().sum(dim=0)
        else:
            products = (centered @ centered.mT).sum(dim=0).double()
            self.products = self.products + products
            self.squares = self.squares + products.diagonal()
            self.fourths = self.fourths + (centered.square().square_() @ ones).double().sum(dim=0)
        self.count = self.count + counts.sum(dim=0)
        sums = (centered @ ones).double()  # (batch, units)
        self.total = self.total + sums.sum(dim=0)
        size = float(units * places)
        at_end = torch.zeros(batch, dtype=torch.float64) if self.ends is None else self._count_at_end(table, good)
        zero = _counted([row == 0 for row in known]) - (size - counts.sum(dim=1))
        mean = (sums + self.shift * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)
        self.per_sample.append(torch.stack([at_end / size, zero / size, 1 - counts.sum(dim=1) / size, mean], dim=1))
        self.samples += batch
        self.rows += batch * places
        return ""

    def _count_at_end(self, table: torch.Tensor, good: torch.Tensor | None) -> torch.Tensor:
        """Count the values of each sample that lie at an end, `(batch,)`."""
        low, high = self.ends or (None, None)
        near = NEAR * ((high or 0.0) - (low or 0.0))
        lowest = -float("inf") if low is None else low + near
        highest = float("inf") if high is None else high - near
        at_end = [(row <= lowest) | (row >= highest) for row in table]
        return _counted(at_end if good is None else [one & known for one, known in zip(at_end, good, strict=True)])

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each unit, `(units,)`."""
        count = self.count.clamp_min(1)
        return (self.squares / count - (self.total / count).square()).clamp_min(0)

    def dead(self) -> torch.Tensor:
        """Return which units never answered, bool `(units,)`: constant, or in a rectifier never above zero."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        constant = (self.count > 0) & (self.high - self.low <= 4 * self.eps * size)
        return constant | (self.high <= 0) & (self.count > 0) if rectifies(self.module) else constant

    def doubles(self, least: float) -> list[tuple[int, int, float]] | None:
        """Return `(unit, earlier unit, correlation)` of units that repeat an earlier one; None if unknown.

        A unit that varies at few places, by (sum c^2)^2 / sum c^4, has no meaningful correlation: two units that
        answer to the same single place would have one of 1.
        """
        if self.products is None or self.rows < FEW:
            return None
        n = float(self.rows)
        covariance = self.products / n - torch.outer(self.total / n, self.total / n)
        spread = self.variance.sqrt()
        rows = self.squares.square() / self.fourths.masked_fill(self.fourths == 0, float("inf"))
        alive = ~self.dead() & (spread > 0) & (rows >= FEW)
        r = covariance / torch.outer(spread, spread).masked_fill(~torch.outer(alive, alive), float("inf"))
        r = r.clamp(-1, 1)
        found: list[tuple[int, int, float]] = []
        high = (r.abs() >= least).tril(-1)
        for unit in high.any(dim=1).nonzero().squeeze(1).tolist():
            first = int(high[unit].nonzero()[0])
            found.append((unit, first, float(r[unit, first])))
        return found

    def moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of all values."""
        count = float(self.count.sum())
        if not count:
            return float("nan"), float("nan")
        mean = float((self.total + self.shift * self.count).sum()) / count
        around = self.squares + 2 * (self.shift - mean) * self.total + (self.shift - mean).square() * self.count
        return mean, max(float(around.sum()) / count, 0.0) ** 0.5


def _counted(rows: list[torch.Tensor]) -> torch.Tensor:
    """Count the true entries of each row, which is far faster than a sum along axes."""
    return torch.stack([row.count_nonzero() for row in rows]).double()


class UnitReader(FeatureReader):
    """Reads layers unit by unit and keeps only the `Units` of each call."""

    def __init__(self, model: nn.Module, layers: Selection, forward: Forward | None, max_units: int) -> None:
        super().__init__(model, layers, forward=forward, distinct=True)
        self.max_units = max_units
        self.units: dict[str, Units] = {}
        self.left_out: dict[str, str] = {}

    def add(self, inputs: Inputs, seed: int) -> None:
        """Add one batch."""
        self.left_out.update(run_once(self, inputs, seed).left_out)

    def reduced(self, name: str, path: LayerPath, values: torch.Tensor) -> tuple[torch.Tensor | None, str]:
        """Add one call."""
        if name not in self.units:
            self.units[name] = units = Units(self.model.get_submodule(path), self.max_units)
            if name.endswith("/c_n"):  # cell states have no ends
                units.ends = None
        why = self.units[name].add(values)
        return (None, why) if why else (torch.empty(len(values), 0), "")

    def finish(self) -> dict[str, str]:
        """Return why layers have no numbers; layers of which a part could not be read are dropped."""
        for name in self.left_out:
            self.units.pop(name, None)
        return self.left_out | silent_layers(self.layers, (*self.units, *self.left_out))
