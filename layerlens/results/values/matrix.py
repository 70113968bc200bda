"""One number for every pair of a row and a column: layers against layers, layers against positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, need, suggestion

from ..intervals import excludes_zero, intervals_of
from .explained import Explained


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Matrix(Explained):
    """One number for every pair of a row and a column.

    Attributes:
        quantity: what is measured, for the colorbar of a figure: `"CKA"`.
        rows: names of the rows.
        columns: names of the columns.
        values: `(rows, columns)`; NaN where there is no number.
        axes: what rows and columns are: `("layer", "position")`.
        units: units of the values.
        signed: whether values are read as distances from zero to both sides.
        method: how it was measured.
        settings: every option as used.
        error: standard error of each value, shaped like `values`; None when there is none.
        null: what chance gives, shaped like `values`; None when not asked for.
        checks: what the method can prove about itself.
        explanation: what the numbers mean and what they do not, a sentence each.
        degrees: degrees of freedom of the errors, for `interval`; None where they are not known.
    """

    quantity: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: torch.Tensor
    axes: tuple[str, str]
    units: str
    signed: bool
    method: str
    settings: dict[str, Any]
    error: torch.Tensor | None = None
    null: torch.Tensor | None = None
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    explanation: tuple[str, str] = ("", "")
    degrees: float | None = None

    def at(self, row: str, column: str) -> float:
        """The value of one pair.

        Raises:
            OptionError: when there is no such row or column.
        """
        for name, known, axis in ((row, self.rows, self.axes[0]), (column, self.columns, self.axes[1])):
            if name not in known:
                raise OptionError(f"there is no {axis} {name!r}.{suggestion(name, known)}")
        return float(self.values[self.rows.index(row), self.columns.index(column)])

    def interval(self, share: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
        """The interval of each value: low and high ends, `(rows, columns)`.

        Values less and plus the standard error times a quantile of Student's t (normal where `degrees` is None).

        Args:
            share: share of such intervals that should hold the value, between 0 and 1.

        Raises:
            InputError: when the values have no standard error.
            OptionError: when the share is not between 0 and 1.

        Example:
            >>> m = Matrix("interaction", ("a", "b"), ("a", "b"), torch.eye(2), ("feature",) * 2, "score", True, "SII",
            ...            {}, error=torch.full((2, 2), 0.1), degrees=29)
            >>> [round(end[0, 0].item(), 3) for end in m.interval(0.9)]
            [0.83, 1.17]
        """
        low, high = intervals_of(self.method, self.values, self.error, self.degrees, None, share)
        assert isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor)
        return low, high

    def settled(self, share: float = 0.9) -> torch.Tensor:
        """Whether the sign of each value is settled: True where its `interval` excludes 0, `(rows, columns)`.

        Args:
            share: share of the interval.

        Raises:
            InputError: when the values have no standard error.
            OptionError: when the share is not between 0 and 1.

        Example:
            >>> m = Matrix("interaction", ("a", "b"), ("a", "b"), torch.eye(2), ("feature",) * 2, "score", True, "SII",
            ...            {}, error=torch.full((2, 2), 0.1), degrees=29)
            >>> m.settled().tolist()
            [[True, False], [False, True]]
        """
        return excludes_zero(*self.interval(share))

    def ranked(self) -> list[tuple[str, str, float]]:
        """(row, column, value), largest first; by size where values are signed."""
        listed = [
            (row, column, value)
            for row, values in zip(self.rows, self.values.tolist(), strict=True)
            for column, value in zip(self.columns, values, strict=True)
            if value == value
        ]
        return sorted(listed, key=lambda entry: -abs(entry[2]) if self.signed else -entry[2])

    def to_pandas(self) -> Any:
        """The matrix as a pandas DataFrame. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        return pandas.DataFrame(self.values.numpy(), list(self.rows), list(self.columns))

    def numpy(self) -> Any:
        """The values as a numpy array."""
        return self.values.numpy()

    def summary(self) -> list[tuple[str, str]]:
        """Quantity, method, size and the three largest values."""
        top = ", ".join(f"{row} x {column} ({value:.4g})" for row, column, value in self.ranked()[:3])
        size = f"{len(self.rows)} x {len(self.columns)} ({self.axes[0]} x {self.axes[1]})"
        return [("quantity", self.quantity), ("method", self.method), ("size", size), ("largest", top)]
