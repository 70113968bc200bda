"""How quantities change along something: accuracy against the size of an attack, drift against noise."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import choose, need

from .explained import Explained


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Curve(Explained):
    """One curve, or several over the same points.

    Attributes:
        quantity: what is measured, for the upright axis: `"accuracy"`.
        along: what the points are of, for the other axis: `"eps, in units of the input"`.
        points: `(points,)`, rising.
        series: name of each curve.
        values: `(series, points)`.
        units: units of the values.
        method: how it was measured.
        settings: every option as used.
        error: standard error of each value, shaped like `values`; None when there is none.
        null: what chance gives, shaped like `values`; None when not asked for.
        checks: what the method can prove about itself.
        explanation: what the numbers mean and what they do not, a sentence each.
        null_name: what `null` is, in words.
    """

    quantity: str
    along: str
    points: torch.Tensor
    series: tuple[str, ...]
    values: torch.Tensor
    units: str
    method: str
    settings: dict[str, Any]
    error: torch.Tensor | None = None
    null: torch.Tensor | None = None
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    explanation: tuple[str, str] = ("", "")
    null_name: str = "chance"

    def of(self, series: str) -> torch.Tensor:
        """The values of one curve, `(points,)`.

        Raises:
            OptionError: when there is no such curve.
        """
        return self.values[self.series.index(choose("series", series, self.series))]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each point and a column for each curve. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        index = pandas.Index(self.points.numpy(), name=self.along)
        return pandas.DataFrame(self.values.T.numpy(), index, list(self.series))

    def numpy(self) -> Any:
        """The values as a numpy array."""
        return self.values.numpy()

    def summary(self) -> list[tuple[str, str]]:
        """Quantity, method and the ends of each curve."""
        ends = ", ".join(
            f"{name} {first:.4g} to {last:.4g}"
            for name, first, last in zip(
                self.series[:4], self.values[:, 0].tolist(), self.values[:, -1].tolist(), strict=False
            )
        )
        more = f", ... ({len(self.series)})" if len(self.series) > 4 else ""
        along = f"{self.along}: {self.points[0]:.4g} to {self.points[-1]:.4g} ({len(self.points)} points)"
        return [
            ("quantity", self.quantity),
            ("method", self.method),
            ("along", along),
            ("from first to last", ends + more),
        ]
