"""A tensor at which relevance is read and held, and its parts: slices of it, or the features of a basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch.autograd.graph import GradientEdge

from layerlens.analyzers.common.features.basis_site import BasisSite, by_codes, shares
from layerlens.analyzers.common.parts.grid import Grid
from layerlens.analyzers.graph.operation import Node
from layerlens.errors import InputError
from layerlens.model.layers import LayerPath

from ..book import Bookkeeper
from ..layer_relevance import Folded, LayerOutput


@dataclasses.dataclass(frozen=True, eq=False)
class PartSite:
    """A tensor of a call of a layer, and how it is cut into parts.

    Attributes:
        name: name for results, such as `"blocks.0.attn"`, or `"rnn/h_n #1"` for a second call.
        output: the tensor and its edge of the graph.
        grid: its parts.
        batch: axis of the samples.
        by: kind of its parts; `"layer"` for the whole.
    """

    name: str
    output: LayerOutput
    grid: Grid
    batch: int
    by: str

    @property
    def edge(self) -> GradientEdge:
        """The edge at which its multiplier arrives."""
        assert self.output.edge is not None
        return self.output.edge

    @property
    def key(self) -> tuple[LayerPath, int, str]:
        """Layer, index of the call and tensor, which are the same in another run."""
        return self.output.layer, self.output.index, self.output.tensor

    @property
    def order(self) -> int:
        """Sequence number of its node, in order of execution."""
        return int(self.edge.node._sequence_nr())

    @property
    def size(self) -> int:
        """The number of parts."""
        return self.grid.size

    def index(self, number: int) -> tuple[int, ...]:
        """Return the index of a part in the layer; `()` for the whole, and for features."""
        return self.grid.index(number)

    def part_name(self, number: int) -> str:
        """Return the name of a part: `"blocks.0.attn head 3"`."""
        index = self.index(number)
        if not index:
            return self.name
        return f"{self.name} {self.by} {index[0] if len(index) == 1 else index}"

    def relevance(self, g: torch.Tensor, book: Bookkeeper) -> torch.Tensor:
        """Return the relevance of each part of each sample, `(parts, batch)`; what is of no part is booked.

        Args:
            g: multiplier of the tensor, with batch norm where a rule treats both as one.
            book: the ledger of the sweep.
        """
        return self._sums(self._value(book.folded) * g, book.batch)

    def difference(
        self, g: torch.Tensor, other: torch.Tensor, folded: Mapping[Node, Folded | None], samples: int
    ) -> torch.Tensor:
        """Return multiplier times the change from another run, `(parts, batch)`.

        Args:
            g: multiplier of the tensor, with batch norm where `folded` has it.
            other: the tensor in the other run.
            folded: node -> the tensor with batch norm, where a rule treats both as one.
            samples: the number of samples.
        """
        return self._sums((self.output.value - other) * self._own(g, folded), samples)

    def start(self, g: torch.Tensor, number: int, book: Bookkeeper) -> torch.Tensor:
        """Return the multiplier with which the relevance of a part continues: g, and zeros outside of the part."""
        kept = torch.zeros_like(g)
        at = tuple(slice(None) for _ in range(g.ndim))
        for axis, start, length in self.grid.cut(number):
            at = (*at[:axis], slice(start, start + length), *at[axis + 1 :])
        kept[at] = g[at]
        return kept

    def book_rest(self, start: torch.Tensor, relevance: torch.Tensor, book: Bookkeeper) -> None:
        """Book what the relevance of a part has besides what `start` carries on: nothing, of a slice of the tensor."""

    def _folded(self, folded: Mapping[Node, Folded | None]) -> Folded | None:
        return folded.get(self.edge.node)  # type: ignore[call-overload, no-any-return]

    def _own(self, g: torch.Tensor, folded: Mapping[Node, Folded | None]) -> torch.Tensor:
        """The multiplier of what the layer itself returned."""
        normalized = self._folded(folded)
        return g if normalized is None else g * normalized[1]

    def _value(self, folded: Mapping[Node, Folded | None]) -> torch.Tensor:
        """The tensor, with batch norm where a rule treats both as one."""
        normalized = self._folded(folded)
        return self.output.value if normalized is None else normalized[0]

    def _sums(self, relevance: torch.Tensor, samples: int) -> torch.Tensor:
        """The relevance of each part of each sample, `(parts, samples)`, in float64."""
        rows = relevance.double().chunk(samples, dim=self.batch)  # windows of a sample follow each other
        return torch.stack([self.grid.sums(row) for row in rows], dim=1)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSite(PartSite):
    """A tensor of a call of a layer, whose parts are the features of a basis, and their error.

    With m the multiplier and h = decode(c) + e, a feature has the relevance c (decode' m), as in `lens.relevance`, and
    the error m e; m decode(0) is an additive constant. What a feature is made of is read by the gradient of the
    encoder: its relevance continues with encode'(decode' m), that of the error with the rest of m, so that all of them
    continue with m.

    Attributes:
        basis: the basis, and the tensor.
        features: number of its features.
    """

    basis: BasisSite
    features: int

    @classmethod
    def of(cls, basis: BasisSite, output: LayerOutput) -> FeatureSite:
        """Make the site of what a layer returned."""
        with torch.no_grad(), basis.basis.coding():
            codes = basis.basis.encode_last(basis.units_last(output.value))
        return cls(basis.name, output, Grid(), basis.call.axis, "feature", basis, codes.shape[-1])

    @property
    def size(self) -> int:
        """The number of features, and one for the error."""
        return self.features + 1

    def index(self, number: int) -> tuple[int, ...]:
        """Return `()`: features have names."""
        return ()

    def part_name(self, number: int) -> str:
        """Return the name of a part as `ablate` has it: `"blocks.1 feature 3"`, `"blocks.1 error"`."""
        return f"{self.name} {self.basis.basis.label(number) if number < self.features else 'error'}"

    def relevance(self, g: torch.Tensor, book: Bookkeeper) -> torch.Tensor:
        """Return the relevance of each feature and of the error; what decode makes of zeros is booked as a constant."""
        name, m = self.basis.basis.name, self._own(g, book.folded)
        shared = shares(self.basis.basis, self._hidden(), self.basis.units_last(m))
        shift = self.basis.units_last(self._value(book.folded) * g - self.output.value * m)  # of batch norm
        self._book("additive", f"decode of {name}", _by_sample(shift, 1) + _by_sample(shared.constant, 1), book)
        if shared.rest is not None:
            self._book("absorbed", f"decode of {name}, beyond first order", _by_sample(shared.rest, 1), book)
        return torch.cat([_by_sample(shared.features), _by_sample(shared.error, 1)], dim=1).T

    def difference(
        self, g: torch.Tensor, other: torch.Tensor, folded: Mapping[Node, Folded | None], samples: int
    ) -> torch.Tensor:
        """Return what decode makes of the multiplier times the change of each code, and m times that of the error."""
        basis, here, there = self.basis.basis, self._hidden(), self.basis.units_last(other)
        m = self.basis.units_last(self._own(g, folded))
        codes, decoded, slope = by_codes(basis, here, m)
        their_codes, their_decoded, _ = by_codes(basis, there, m)
        error = m * (here - decoded - there + their_decoded)
        return torch.cat([_by_sample(slope * (codes - their_codes)), _by_sample(error.sum(dim=-1), 1)], dim=1).T

    def start(self, g: torch.Tensor, number: int, book: Bookkeeper) -> torch.Tensor:
        """Return the multiplier with which the relevance of a feature, or of the error, continues.

        Raises:
            InputError: if encode has no gradient.
        """
        site, basis, hidden, normalized = self.basis, self.basis.basis, self._hidden(), self._folded(book.folded)
        *_, slope = by_codes(basis, hidden, site.units_last(self._own(g, book.folded)))
        if number < self.features:
            wanted = torch.zeros_like(slope)
            wanted[..., number] = slope[..., number]
            slope = wanted
        with torch.enable_grad(), basis.coding():
            leaf = hidden.detach().requires_grad_()
            codes = basis.encode_last(leaf)
            if not codes.requires_grad:
                raise InputError(
                    f"encode of {site!r} has no gradient, so nothing says what its features are made of. Write it in "
                    "torch, or take contributions(x, parts=basis), which only reads what they add."
                )
            (through,) = torch.autograd.grad(codes, leaf, slope)
        own = site.call.as_returned(through.movedim(-1, site.unit))
        if normalized is not None:
            own = torch.where(normalized[1] == 0, 0.0, own / normalized[1])
        return g - own if number == self.features else own

    def book_rest(self, start: torch.Tensor, relevance: torch.Tensor, book: Bookkeeper) -> None:
        """Book the constants of encode, and what it has beyond its gradient, with what rules absorb."""
        carried = _by_sample(self.basis.units_last(self._value(book.folded) * start), 1)
        rest = relevance.to(carried.device).unsqueeze(1) - carried
        self._book("absorbed", f"encode of {self.basis.basis.name}", rest, book)

    def _hidden(self) -> torch.Tensor:
        return self.basis.units_last(self.output.value)

    def _book(self, kind: str, source: str, amounts: torch.Tensor, book: Bookkeeper) -> None:
        book.add(kind, self.order, source, amounts.reshape(book.batch, 1))


def _by_sample(values: torch.Tensor, size: int | None = None) -> torch.Tensor:
    """The sum over places, `(batch, feature)` of `(batch, *places, feature)`, in float64; of `size` 1 without that."""
    return values.double().reshape(len(values), -1, size or values.shape[-1]).sum(dim=1)
