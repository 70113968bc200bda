"""One number, or one per series, for each of many items: heads, channels, features, groups of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, choose, need

from .explained import Explained


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ranking(Explained):
    """One number, or one per series, for each of many items, to be put in order.

    Attributes:
        quantity: what is measured, for the axis of a figure: `"drop of the score"`.
        items: one name per row, as measured and not sorted: `"blocks.2 head 3"`, `"age"`.
        values: `(items,)`, or `(items, series)`.
        units: units of the values.
        signed: whether negative values have a meaning.
        method: how it was measured.
        settings: every option as used.
        series: names of the columns of `values`; empty when there is one number per item.
        error: standard error of each value, shaped like `values`; None when there is none.
        interval: the 95 % interval of each value, `(*values.shape, 2)`; None when there is none.
        null: what chance gives, shaped like `values`; None when not asked for.
        checks: what the method can prove about itself.
        explanation: what the numbers mean and what they do not, a sentence each.
        degrees: degrees of freedom of the errors; None where they are not known.
    """

    quantity: str
    items: tuple[str, ...]
    values: torch.Tensor
    units: str
    signed: bool
    method: str
    settings: dict[str, Any]
    series: tuple[str, ...] = ()
    error: torch.Tensor | None = None
    interval: torch.Tensor | None = None
    null: torch.Tensor | None = None
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    explanation: tuple[str, str] = ("", "")
    degrees: float | None = None

    def column(self, series: str | int = 0) -> torch.Tensor:
        """The values of one series, `(items,)`.

        Raises:
            OptionError: when there is no such series.
        """
        if isinstance(series, str):
            series = self.series.index(choose("series", series, self.series))
        columns = self.values.reshape(len(self.items), -1)
        if not -columns.shape[1] <= series < columns.shape[1]:
            raise OptionError(f"there are {columns.shape[1]} series, and no series {series}.")
        return columns[:, series]

    def ranked(self, series: str | int = 0) -> list[tuple[str, float]]:
        """(item, value), largest first; by size where values are signed.

        Args:
            series: which column, when there are several.
        """
        pairs = list(zip(self.items, self.column(series).tolist(), strict=True))
        return sorted(pairs, key=lambda pair: -abs(pair[1]) if self.signed else -pair[1])

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame indexed by item. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        columns = list(self.series) or [self.quantity]
        return pandas.DataFrame(self.values.reshape(len(self.items), -1).numpy(), list(self.items), columns)

    def numpy(self) -> Any:
        """The values as a numpy array."""
        return self.values.numpy()

    def __len__(self) -> int:
        return len(self.items)

    def summary(self) -> list[tuple[str, str]]:
        """Quantity, method and the three largest rows."""
        top = ", ".join(f"{item} ({value:.4g})" for item, value in self.ranked()[:3])
        return [("quantity", self.quantity), ("method", self.method), ("items", str(len(self))), ("largest", top)]
