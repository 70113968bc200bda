"""How a score changes while places are removed or kept in the order of a map."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import need
from layerlens.model.trees import as_array

from ..base import Result, numbers


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve(Result):
    """The score of every sample while places are removed, or kept, most important first.

    Attributes:
        name: name of the metric: `"insertion"`, `"deletion"`, ...
        shares: shares of the places that are removed or kept, `(points,)`, from 0 to 1.
        scores: `(batch, points)`, float64.
        fill: what replaces removed places.
        units: `"probability"` or `"score"`.
        target: what was scored.
        settings: every option as used.
    """

    name: str
    shares: torch.Tensor
    scores: torch.Tensor
    fill: str
    units: str
    target: str
    settings: dict[str, Any]

    @property
    def area(self) -> torch.Tensor:
        """The mean height of each sample's curve, by the trapezoid rule, `(batch,)`, in `units`."""
        widths = self.shares.diff()
        heights = (self.scores[:, 1:] + self.scores[:, :-1]) / 2
        return (heights * widths.to(heights)).sum(dim=1) / widths.sum().to(heights)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each share of the places and a column for each sample.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        pandas = need("pandas", "to_pandas")
        index = pandas.Index(self.shares.numpy(), name="share")
        return pandas.DataFrame(as_array(self.scores).T, index, [f"sample {row}" for row in range(len(self.scores))])

    def numpy(self) -> Any:
        """The scores as a numpy array."""
        return as_array(self.scores)

    def summary(self) -> list[tuple[str, str]]:
        """Metric, fill, target and the areas."""
        points = f"{len(self.shares)}, shares 0 to {self.shares[-1]:.3g}"
        return [
            ("metric", self.name),
            ("target", self.target),
            ("fill", self.fill),
            ("points", points),
            (f"area ({self.units})", numbers(self.area)),
        ]
