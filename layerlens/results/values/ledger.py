"""The ledger of relevance: where every bit of the score went."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from layerlens.errors import need
from layerlens.model.trees import as_array

from ..base import Result, numbers

KINDS = ("input", "additive", "absorbed")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Entry(Result):
    """One place where relevance ended.

    Attributes:
        kind: `"input"`, `"additive"` (a bias, a shift, a position embedding, any constant that is added), or
            `"absorbed"` (kept by a rule: an offset f(0), an epsilon, a stopped branch).
        layer: the innermost layer that holds it; `""` outside of any.
        source: the name of the input, or the operation that added or absorbed it.
        amount: relevance, in units of the score, `(batch,)`.
    """

    kind: str
    layer: str
    source: str
    amount: torch.Tensor

    def numpy(self) -> Any:
        """The amount as a numpy array."""
        return as_array(self.amount)

    def summary(self) -> list[tuple[str, str]]:
        """Kind, layer, source and amount."""
        return [("kind", self.kind), ("layer", self.layer), ("source", self.source), ("amount", numbers(self.amount))]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ledger(Result):
    """inputs + additive + absorbed + residual = score, sample by sample.

    Every amount is computed for itself; the residual is what the amounts fail to explain, so it measures the engine.

    Attributes:
        score: `(batch,)`.
        entries: where relevance ended, in order of execution.
        by_sample: whether the amounts are known sample by sample; False when the model mixes the batch axis with
            others in a way that could not be followed, so that only totals over the batch are exact.
    """

    score: torch.Tensor
    entries: tuple[Entry, ...]
    by_sample: bool = True

    @functools.cached_property
    def _amounts(self) -> torch.Tensor:
        """The amounts, `(entry, batch)`, in float64."""
        amounts = [entry.amount.double() for entry in self.entries]
        return torch.stack(amounts) if amounts else self.score.new_zeros(0, *self.score.shape, dtype=torch.float64)

    def total(self, kind: str) -> torch.Tensor:
        """The sum of the entries of one kind, `(batch,)`, in float64."""
        return self._amounts[[row for row, entry in enumerate(self.entries) if entry.kind == kind]].sum(dim=0)

    @property
    def inputs(self) -> torch.Tensor:
        """Relevance that reached the inputs, `(batch,)`."""
        return self.total("input")

    @property
    def additive(self) -> torch.Tensor:
        """Relevance that went to additive constants, `(batch,)`."""
        return self.total("additive")

    @property
    def absorbed(self) -> torch.Tensor:
        """Relevance that rules absorbed, `(batch,)`."""
        return self.total("absorbed")

    @functools.cached_property
    def residual(self) -> torch.Tensor:
        """Score minus all entries, `(batch,)`; rounding error when every rule is accounted for."""
        return self.score.double() - self._amounts.sum(dim=0)

    @functools.cached_property
    def relative(self) -> torch.Tensor:
        """|residual| over the largest amount at stake (the score or an entry), `(batch,)`.

        Large opposite entries make rounding visible; dividing by the score alone would blame the rules for it. When
        amounts are not known sample by sample, it is that of the totals over the batch.
        """
        amounts, residual = torch.cat([self.score.double().unsqueeze(0), self._amounts]), self.residual
        if not self.by_sample:
            amounts = amounts.sum(dim=1, keepdim=True).expand_as(amounts)
            residual = residual.sum().expand_as(residual)
        return residual.abs() / amounts.abs().amax(dim=0).clamp_min(torch.finfo(torch.float64).tiny)

    @property
    def gap(self) -> torch.Tensor:
        """The conservation gap, |score - inputs| / |score|, `(batch,)`: what a map alone would hide."""
        tiny = torch.finfo(torch.float64).tiny
        return (self.score.double() - self.inputs).abs() / self.score.double().abs().clamp_min(tiny)

    @property
    def worst(self) -> int:
        """The sample with the largest relative residual."""
        return int(self.relative.argmax())

    def table(self, sample: int | None = None) -> list[tuple[str, str, str, float]]:
        """Rows (layer, source, kind, amount), largest first; summed over the batch, or of one sample.

        Args:
            sample: which sample; None sums over all.
        """
        rows = [
            (
                entry.layer,
                entry.source,
                entry.kind,
                float(entry.amount.sum() if sample is None else entry.amount[sample]),
            )
            for entry in self.entries
        ]
        return sorted(rows, key=lambda row: -abs(row[3]))

    def by_layer(self) -> dict[str, dict[str, torch.Tensor]]:
        """Amounts `(batch,)` by layer and kind; layers in order of execution, the inputs first under `"input"`."""
        sums: dict[str, dict[str, torch.Tensor]] = {}
        for entry in self.entries:
            row = sums.setdefault("input" if entry.kind == "input" else entry.layer or "(model)", {})
            row[entry.kind] = row.get(entry.kind, torch.zeros_like(entry.amount)) + entry.amount
        return sums

    def by_input(self) -> dict[str, torch.Tensor]:
        """Amounts `(batch,)` by where they ended: each input by its name, then constants, rules and the residual.

        So much of the score is from the picture, so much from the words: `{"pixel_values": ..., "input_ids": ...,
        "additive": ..., "absorbed": ..., "residual": ...}`, which add up to the score.
        """
        sums: dict[str, torch.Tensor] = {}
        for entry in self.entries:
            if entry.kind == "input":
                sums[entry.source] = sums.get(entry.source, torch.zeros_like(entry.amount)) + entry.amount
        return {**sums, "additive": self.additive, "absorbed": self.absorbed, "residual": self.residual}

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each entry: kind, layer, source, and the amount of each sample.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        pandas = need("pandas", "to_pandas")
        names = ["kind", "layer", "source", *(f"sample {row}" for row in range(len(self.score)))]
        rows = [(entry.kind, entry.layer, entry.source, *entry.amount.tolist()) for entry in self.entries]
        return pandas.DataFrame(rows, columns=names)

    def numpy(self) -> Any:
        """The amounts, `(entry, batch)`, as a numpy array."""
        return as_array(self._amounts)

    def summary(self) -> list[tuple[str, str]]:
        """The four sums and the residual."""
        parts: list[tuple[str, Any]] = [("score", self.score), ("inputs", self.inputs), ("additive", self.additive)]
        parts += [("absorbed", self.absorbed), ("relative residual", self.relative)]
        return [(name, numbers(values)) for name, values in parts]
