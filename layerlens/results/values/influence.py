"""How much every training sample helped or harmed some predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, check_count, need

from .explained import Explained


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Influence(Explained):
    """How much every training sample helped or harmed the prediction of some samples.

    Attributes:
        values: `(samples, training samples)` float64; positive lowers the loss of the explained sample. Of self
            influence `(1, training samples)`.
        labels: labels of the training samples.
        explained_labels: labels of the explained samples.
        itself: whether it is self influence.
        method: how it was computed.
        settings: every option as used.
        explanation: what the numbers mean and what they do not, a sentence each.
    """

    values: torch.Tensor
    labels: torch.Tensor
    explained_labels: torch.Tensor
    itself: bool
    method: str
    settings: dict[str, Any]
    explanation: tuple[str, str] = ("", "")

    def ranked(self, sample: int = 0, count: int | None = None, *, harmful: bool = False) -> list[tuple[int, float]]:
        """(index in the training data, influence), the most helpful first.

        Args:
            sample: explained sample; 0 for self influence.
            count: how many; None for all.
            harmful: whether the most harmful come first.

        Raises:
            OptionError: when there is no such sample.
        """
        if not 0 <= sample < len(self.values):
            raise OptionError(f"{len(self.values)} samples were explained (0 to {len(self.values) - 1}), not {sample}.")
        if count is not None:
            check_count("count", count)
        row = self.values[sample].detach()
        order = row.argsort(descending=not harmful, stable=True)[:count].tolist()
        return [(index, float(row[index])) for index in order]

    def to_pandas(self) -> Any:
        """A row per training sample: its label, its influence on each explained one. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        names = ["self influence"] if self.itself else [f"sample {row}" for row in range(len(self.values))]
        columns = dict(zip(names, self.values.numpy(), strict=True))
        return pandas.DataFrame({"label": self.labels.numpy(), **columns})

    def numpy(self) -> Any:
        """The values as a numpy array."""
        return self.values.numpy()

    def __len__(self) -> int:
        return len(self.values)

    def summary(self) -> list[tuple[str, str]]:
        """Method, sizes, and the strongest samples of the first one that is explained."""
        of = "each on itself" if self.itself else f"on {len(self)} samples"
        rows = [("method", self.method), ("influence", f"of {len(self.labels)} training samples {of}")]
        for name, harmful in (
            (("largest", False),) if self.itself else (("most helpful", False), ("most harmful", True))
        ):
            listed = ", ".join(f"{index} ({value:.3g})" for index, value in self.ranked(0, 3, harmful=harmful))
            rows.append((name, listed))
        return rows
