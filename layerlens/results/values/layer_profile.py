"""One number, or one per series, for every layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import need
from layerlens.model.trees import as_array

from ..arithmetic import difference_of_profiles
from .explained import Explained


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerProfile(Explained):
    """One number, or one per series, for every layer.

    Attributes:
        quantity: what is measured, for the axis of a figure: `"Jacobian norm"`.
        layers: one name per row, in order of execution; a layer's second call is `name #1`.
        values: `(layers,)`, or `(layers, series)`.
        units: units of the values.
        signed: whether negative values have a meaning.
        method: how it was measured, and by which route.
        settings: every option as used.
        series: names of the columns of `values`; empty when there is one number per layer.
        error: standard error of each value, shaped like `values`; None when there is none.
        null: the same measure on a model or an input without the effect, shaped like `values`; None when not asked for.
        checks: what the method can prove about itself.
        explanation: what the numbers mean and what they do not, a sentence each.
        null_name: what `null` is, in words.
        vectors: layer -> the directions that its values are of, `(series, draws, units)`; empty but for `tcav`.
    """

    quantity: str
    layers: tuple[str, ...]
    values: torch.Tensor
    units: str
    signed: bool
    method: str
    settings: dict[str, Any]
    series: tuple[str, ...] = ()
    error: torch.Tensor | None = None
    null: torch.Tensor | None = None
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    explanation: tuple[str, str] = ("", "")
    null_name: str = "null"
    vectors: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def ranked(self, series: int = 0) -> list[tuple[str, float]]:
        """(layer, value), largest first; by size where values are signed.

        Args:
            series: which column, when there are several.
        """
        column = self.values if self.values.ndim == 1 else self.values[:, series]
        pairs = list(zip(self.layers, column.tolist(), strict=True))
        return sorted(pairs, key=lambda pair: -abs(pair[1]) if self.signed else -pair[1])

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame indexed by layer. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        columns = list(self.series) or [self.quantity]
        return pandas.DataFrame(self.values.reshape(len(self.layers), -1).numpy(), list(self.layers), columns)

    def numpy(self) -> Any:
        """The values as a numpy array."""
        return as_array(self.values)

    def __sub__(self, other: object) -> LayerProfile:
        """How much larger each layer's value is here than in another profile of the same quantity and layers.

        The standard error is that of independent measurements: too large where both saw the same samples. The null and
        the checks of either say nothing of the difference, and are left out.

        Raises:
            InputError: when quantity, units, layers or series differ.
        """
        return difference_of_profiles(self, other) if isinstance(other, LayerProfile) else NotImplemented

    def __len__(self) -> int:
        return len(self.layers)

    def summary(self) -> list[tuple[str, str]]:
        """Quantity, method and the three largest rows."""
        top = ", ".join(f"{layer} ({value:.4g})" for layer, value in self.ranked()[:3])
        return [("quantity", self.quantity), ("method", self.method), ("layers", str(len(self))), ("largest", top)]
