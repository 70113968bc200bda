"""What each part of a model contributes to a score."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from layerlens.errors import OptionError, choose, need

from ..base import numbers
from .explained import Explained
from .ledger import Ledger
from .matrix import Matrix

Of = Literal["direct", "total", "difference"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Contributions(Explained):
    """What each part of a model contributes to a score, directly and in total.

    direct.sum(0) + inputs + constants + absorbed = score, sample by sample.

    Attributes:
        items: name of each part, in order of execution: `"blocks.2 head 3"`.
        layers: layer of each part.
        index: index of each part in its layer; `()` for a whole layer.
        direct: relevance that reaches the part without passing another one, `(parts, batch)`, float64.
        total: all relevance that passes the part, `(parts, batch)`.
        ledger: where the score went: the parts (kind `"part"`), the inputs past all parts, constants, what rules
            absorbed.
        parts: what the parts are: `"layer"`, `"head"`, `"channel"` or `"position"`.
        target: what is explained.
        targets: the target of each sample; None when all have the same.
        method: how it was computed.
        settings: every option as used.
        explanation: what the numbers mean and what they do not, a sentence each.
        difference: multiplier times the change from another input, `(parts, batch)`; None without one.
    """

    items: tuple[str, ...]
    layers: tuple[str, ...]
    index: tuple[tuple[int, ...], ...]
    direct: torch.Tensor
    total: torch.Tensor
    ledger: Ledger
    parts: str
    target: str
    targets: tuple[str, ...] | None
    method: str
    settings: dict[str, Any]
    explanation: tuple[str, str] = ("", "")
    difference: torch.Tensor | None = None

    @property
    def score(self) -> torch.Tensor:
        """The score of each sample, `(batch,)`."""
        return self.ledger.score

    @property
    def inputs(self) -> torch.Tensor:
        """Relevance that reaches the inputs without passing any part, `(batch,)`."""
        return self.ledger.inputs

    @property
    def constants(self) -> torch.Tensor:
        """Relevance of additive constants that it meets before any part, `(batch,)`."""
        return self.ledger.additive

    @property
    def absorbed(self) -> torch.Tensor:
        """Relevance that rules absorb before any part, `(batch,)`."""
        return self.ledger.absorbed

    def values(self, of: Of = "direct", sample: int | None = None) -> torch.Tensor:
        """The contribution of each part, `(parts,)`: of one sample, or the mean over the batch.

        Args:
            of: `"direct"`, `"total"`, or `"difference"` from the other input.
            sample: which sample; None for the mean.

        Raises:
            OptionError: when there is no such sample, no other input, or `of` is another word.
        """
        tables = {"direct": self.direct, "total": self.total, "difference": self.difference}
        table = tables[choose("of", of, tables)]
        if table is None:
            raise OptionError("there is no difference: give contributions(x, other=...) another input.")
        if sample is None:
            return table.mean(dim=1)
        if not -table.shape[1] <= sample < table.shape[1]:
            raise OptionError(f"there are {table.shape[1]} samples, and no sample {sample}.")
        return table[:, sample]

    def ranked(self, of: Of = "direct", sample: int | None = None) -> list[tuple[str, float]]:
        """(part, contribution), largest by size first; the arguments are those of `values`."""
        pairs = zip(self.items, self.values(of, sample).tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -abs(pair[1]))

    def matrix(self, of: Of = "direct", sample: int | None = None) -> Matrix:
        """The contributions as a table of layers by heads, channels or positions; NaN where a layer has no such part.

        Args:
            of: `"direct"`, `"total"` or `"difference"`.
            sample: which sample; None for the mean over the batch.

        Raises:
            OptionError: when the parts are whole layers.
        """
        cut = [place for place, index in enumerate(self.index) if index]
        if not cut:
            raise OptionError("the parts are whole layers, which have no columns. Give parts='head' or 'position'.")
        rows = tuple(dict.fromkeys(self.layers[place] for place in cut))
        columns = sorted({self.index[place] for place in cut})
        table = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
        for place, value in zip(cut, self.values(of, sample)[cut].tolist(), strict=True):
            table[rows.index(self.layers[place]), columns.index(self.index[place])] = value
        return Matrix(
            quantity=f"{of} contribution to the score",
            rows=rows,
            columns=tuple(str(one[0] if len(one) == 1 else one) for one in columns),
            values=table,
            axes=("layer", self.parts),
            units="score",
            signed=True,
            method=self.method,
            settings=self.settings,
            explanation=self.explanation,
        )

    def to_pandas(self) -> Any:
        """A row for each part, and for inputs, constants and what was absorbed: direct and total, means over the batch.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        pandas = need("pandas", "to_pandas")
        rest = {"inputs": self.inputs, "constants": self.constants, "absorbed": self.absorbed}
        direct = [*self.values().tolist(), *(float(part.mean()) for part in rest.values())]
        total = [*self.values("total").tolist(), *[float("nan")] * len(rest)]
        return pandas.DataFrame({"direct": direct, "total": total}, index=[*self.items, *rest])

    def numpy(self) -> Any:
        """The direct contributions, `(parts, batch)`, as a numpy array."""
        return self.direct.numpy()

    def summary(self) -> list[tuple[str, str]]:
        """The target, the sums, and the parts with the largest direct contributions."""
        first = "; ".join(f"{name} {value:+.3g}" for name, value in self.ranked()[:4])
        parts = [("score", self.score), (f"{len(self.items)} parts", self.direct.sum(dim=0)), ("inputs", self.inputs)]
        parts += [("constants", self.constants), ("absorbed", self.absorbed)]
        return [
            ("target", self.target),
            ("method", self.method),
            *((name, numbers(value)) for name, value in parts),
            ("largest direct contributions", first),
            ("relative residual", numbers(self.ledger.relative)),
        ]
