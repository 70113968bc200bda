"""LSTM and GRU layers as one node of the graph: the rules of all their steps in closed form.

Step by step, a layer makes some ten nodes a step. Here torch's own kernel runs it, its gates are computed again in one
product over all steps, and the multipliers of the states are carried back through time, from step to step by factors
that are known for all steps at once. Gates and signals share a product by the
rulebook; sigmoid and tanh pass relevance by the ratio (f(x) - f(0)) / x; where the first state is a constant, the gate
that multiplies it takes all.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from layerlens.analyzers.graph.added_constants import Notes
from layerlens.analyzers.graph.operation import Kind, Node, Row
from layerlens.model.borrowed import primitive_kernels

from .elementwise import ELEMENTWISE, quotient
from .products import PRODUCTS
from .rulebook import Rulebook
from .structure import LINEAR

_T = torch.Tensor
Book: TypeAlias = Callable[[str, str, torch.Tensor], None]
"""Books a term, `(batch, ...)`: kind and source as in `Entry`."""
Whole: TypeAlias = Callable[[Notes, tuple[Any, ...]], Any]
"""Runs a recurrent layer as one node, given the arguments of torch's function; None where it cannot."""


class _Rule(NamedTuple):
    """What signal and gate get of their product, and how sigmoid and tanh pass it."""

    signal: float
    gate: float
    sigmoid: Callable[[_T], _T]
    tanh: Callable[[_T], _T]


def _sigmoid_ratio(x: _T) -> _T:
    return quotient(torch.tanh(x / 2) / 2, x, 0.25)


def _tanh_ratio(x: _T) -> _T:
    return quotient(torch.tanh(x), x, 1.0)


_RULES = {
    "gate": _Rule(1.0, 0.0, _sigmoid_ratio, _tanh_ratio),
    "uniform": _Rule(0.5, 0.5, _sigmoid_ratio, _tanh_ratio),
}
_GRADIENT = _Rule(1.0, 1.0, lambda x: x.sigmoid() * (1 - x.sigmoid()), lambda x: 1 - x.tanh() ** 2)


class _Weights(NamedTuple):
    """The weights of one direction of one layer, as torch lays them out; `hr` projects the states."""

    ih: _T
    hh: _T
    b_ih: _T | None
    b_hh: _T | None
    hr: _T | None


class _Part(NamedTuple):
    """Multipliers of what weights make of the input, and of the state before, `(steps, batch, rows)`.

    Attributes:
        rows: rows of the weights.
        of_ih: multipliers of the product of the input.
        of_hh: multipliers of the product of the state before.
    """

    rows: slice
    of_ih: _T
    of_hh: _T


class _Steps:
    """All steps of one direction of a layer.

    Args:
        weights: its weights.
        carries: whether each of its first states carries relevance; one that does not is a constant.
    """

    gate_count: int
    gates: _T

    def __init__(self, weights: _Weights, carries: Sequence[bool]) -> None:
        self.weights, self.carries = weights, carries
        self.rule: _Rule = _GRADIENT
        self.book: Book | None = None

    def attach(self, rulebook: Rulebook, book: Book) -> _Steps:
        """Follow a rulebook and book what constants get and rules absorb, until `remove()`."""
        self.rule, self.book = _RULES[rulebook.product], book
        return self

    def remove(self) -> None:
        """Return gradients from here on."""
        self.rule, self.book = _GRADIENT, None

    def run(self, x: _T, *states: _T) -> tuple[_T, ...]:
        """Return the states after each step, `(time, batch, unit)`, and of an LSTM the last cell."""
        raise NotImplementedError

    def multipliers(self, of_y: _T | None, of_c: _T | None = None) -> tuple[_T | None, ...]:
        """Return those of the input and of the first states, from those of what `run` returned."""
        raise NotImplementedError

    def _run(self, function: Callable[..., Any], x: _T, first: Any) -> tuple[_T, Any]:
        """The outputs of torch's function for this direction alone."""
        weights = [weight for weight in self.weights if weight is not None]
        warns = x.is_cuda or self.weights.hr is not None  # of weights that are a part of others, of projections
        with primitive_kernels() if warns else contextlib.nullcontext():
            y, *last = function(x, first, weights, self.weights.b_ih is not None, 1, 0.0, False, False, False)
        return y, last[-1]

    def _products(self, x: _T, before: _T) -> tuple[_T, _T]:
        """What the weights make of the input and of the state before each step, `(time, batch, gate, unit)`."""
        ih, hh, b_ih, b_hh, _ = self.weights
        of_x, of_h = F.linear(x, ih, b_ih), F.linear(before, hh, b_hh)
        self.first = of_h[0].clone()
        shape = *x.shape[:2], self.gate_count, self.units
        return of_x.view(shape), of_h.view(shape)

    @property
    def units(self) -> int:
        """The number of units of a gate."""
        return len(self.weights.hh) // self.gate_count

    def _start(self, of_y: _T | None, like: _T) -> tuple[_T, ...]:
        """The multipliers of the states after each step, the last first, and 0 for the first state."""
        ends = like.new_zeros(1, like.shape[1], self.weights.hh.shape[1])
        of_y = ends.expand(len(like), -1, -1) if of_y is None else of_y
        return (*of_y.unbind()[::-1], ends[0])

    def _of_input(self, parts: Sequence[_Part], halves: Sequence[_T]) -> _T:
        """Return the multiplier of the input, and book what biases, a constant first state and sigmoids at 0 get.

        Args:
            parts: multipliers of the products of gates.
            halves: multipliers of sigmoids, `(steps, batch, unit)`, which are 1/2 at 0.
        """
        ih, _, b_ih, b_hh, _ = self.weights
        (rows, of_ih, _), *more = parts
        of_x = of_ih @ ih[rows]
        for rows, of_ih, _ in more:
            of_x[: len(of_ih)] += of_ih @ ih[rows]
        if self.book is None:
            return of_x
        constant = not self.carries[0]
        for rows, of_ih, of_hh in parts:
            if b_ih is not None:
                self.book("additive", "bias", of_ih.sum(dim=0) * b_ih[rows])
            if b_hh is not None and len(of_hh) > constant:
                self.book("additive", "bias", of_hh[int(constant) :].sum(dim=0) * b_hh[rows])
            if constant:
                self.book("additive", "constant added", of_hh[0] * self.first[:, rows])
        for of_gate in halves:
            self.book("absorbed", "Sigmoid at 0", of_gate.sum(dim=0) / 2)
        return of_x

    def _rows(self, gate: int) -> slice:
        return slice(gate * self.units, (gate + 1) * self.units)


def _backwards(steps: _T) -> tuple[_T, ...]:
    """A tensor for each step, the last first."""
    return steps.unbind()[::-1]


class _Lstm(_Steps):
    """c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c'), times a weight where states are projected."""

    gate_count = 4

    def run(self, x: _T, *states: _T) -> tuple[_T, ...]:
        h, c = (state.unsqueeze(0) for state in states)
        y, last = self._run(torch.lstm, x, (h, c))
        of_x, of_h = self._products(x, torch.cat([h, y[:-1]]))
        self.gates = of_x.add_(of_h)
        i, f, g, _ = self.gates.unbind(2)
        kept, added = f.sigmoid(), i.sigmoid() * g.tanh()
        self.cells = torch.cat([c, added])
        for (before, after), factor in zip(itertools.pairwise(self.cells.unbind()), kept.unbind(), strict=True):
            after.addcmul_(factor, before)
        return y, last[0].clone()

    def multipliers(self, of_y: _T | None, of_c: _T | None = None) -> tuple[_T | None, ...]:
        rule, hr, (i, f, g, o) = self.rule, self.weights.hr, self.gates.unbind(2)
        before, c, new = self.cells[:-1], self.cells[1:], i.sigmoid() * rule.tanh(g) * rule.signal
        kept, passed = f.sigmoid() * rule.signal, o.sigmoid() * rule.tanh(c) * rule.signal
        constant, halves, rows = not self.carries[1], list[_T](), self._rows(2)
        slopes = new  # of c' by the products of the gates that take a share, and of h' by that of o
        if rule.gate:
            of_i, of_f, of_o = g.tanh() * rule.gate, before * rule.gate, c.tanh() * rule.gate
            if constant:
                of_f[0] = before[0]
            slopes = torch.stack([of_i * rule.sigmoid(i), of_f * rule.sigmoid(f), new, of_o * rule.sigmoid(o)], dim=2)
            rows = slice(None)
        m_h, *earlier = self._start(of_y, c)
        m_c, hh = torch.zeros_like(c[0]) if of_c is None else of_c, self.weights.hh[rows]
        gates, cells, hidden = list[_T](), list[_T](), list[_T]()
        for through, keep, slope, earlier_y in zip(*map(_backwards, (passed, kept, slopes)), earlier, strict=True):
            m_h = m_h if hr is None else m_h @ hr
            at_cell = torch.addcmul(m_c, through, m_h)
            if rule.gate:
                at_gates = at_cell.unsqueeze(1) * slope
                torch.mul(m_h, slope[:, 3], out=at_gates[:, 3])
                gates.append(at_gates.flatten(1))
            else:
                gates.append(at_cell * slope)
            cells.append(at_cell)
            hidden.append(m_h)
            m_c = at_cell * keep
            m_h = torch.addmm(earlier_y, gates[-1], hh)
        flat = torch.stack(gates[::-1])
        parts = [_Part(rows, flat, flat)]
        if rule.gate:
            at_cells, at_hidden = torch.stack(cells[::-1]), torch.stack(hidden[::-1])
            halves = [of_i * at_cells, of_f * at_cells, of_o * at_hidden]
        elif constant:
            halves = [before[:1] * cells[-1]]
            forget = halves[0] * rule.sigmoid(f[:1])
            parts.append(_Part(self._rows(1), forget, forget))
            m_h = torch.addmm(m_h, forget[0], self.weights.hh[self._rows(1)])
        ends = (end if carries else None for end, carries in zip((m_h, m_c), self.carries, strict=True))
        return self._of_input(parts, halves), *ends


class _Gru(_Steps):
    """n = tanh(n_x + sigmoid(r) n_h); h' = sigmoid(z) (h - n) + n."""

    gate_count = 3

    def run(self, x: _T, *states: _T) -> tuple[_T, ...]:
        h = states[0].unsqueeze(0)
        y, _ = self._run(torch.gru, x, h)
        self.before = torch.cat([h, y[:-1]])
        self.gates, of_h = self._products(x, self.before)
        self.gates[:, :, :2].add_(of_h[:, :, :2])
        self.new = of_h[:, :, 2].clone()
        self.gates[:, :, 2].addcmul_(self.gates[:, :, 0].sigmoid(), self.new)
        return (y,)

    def multipliers(self, of_y: _T | None, of_c: _T | None = None) -> tuple[_T | None, ...]:
        rule, constant, (r, z, n) = self.rule, not self.carries[0], self.gates.unbind(2)
        passed, halves, rows = z.sigmoid() * rule.signal, list[_T](), self._rows(2)
        to_new = (1 - passed) * rule.tanh(n)
        by_new = to_new * r.sigmoid() * rule.signal
        if constant:
            by_new[0] = 0
        slopes = by_new  # of h' by the products of h that take a share
        if rule.gate:
            of_r, of_z = to_new * self.new * rule.gate, (self.before - n.tanh()) * rule.gate
            if constant:
                of_r[0] = to_new[0] * self.new[0]
            slopes, rows = torch.stack([of_r * rule.sigmoid(r), of_z * rule.sigmoid(z), by_new], dim=2), slice(None)
        m_h, *earlier = self._start(of_y, passed)
        gates, hidden, hh = list[_T](), list[_T](), self.weights.hh[rows]
        for through, slope, earlier_y in zip(*map(_backwards, (passed, slopes)), earlier, strict=True):
            gates.append((m_h.unsqueeze(1) * slope).flatten(1) if rule.gate else m_h * slope)
            hidden.append(m_h)
            m_h = torch.addcmul(earlier_y, m_h, through).addmm_(gates[-1], hh)
        of_hh, states = torch.stack(gates[::-1]), torch.stack(hidden[::-1])
        of_ih = torch.cat([of_hh[:, :, : -self.units], states * to_new], dim=2)
        parts = [_Part(rows, of_ih, of_hh)]
        if rule.gate:
            halves = [of_r * states, of_z * states]
        elif constant:
            halves = [to_new[:1] * self.new[:1] * states[:1]]
            reset = halves[0] * rule.sigmoid(r[:1])
            parts.append(_Part(self._rows(0), reset, reset))
        if constant and self.book is not None:
            self.book("additive", "constant added", states[0] * passed[0] * self.before[0])
        return self._of_input(parts, halves), None if constant else m_h


class RecurrentLayer(torch.autograd.Function):
    """One direction of a layer: `(steps, x, *first states)` to what `steps.run` returns."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, x: _T, *states: _T) -> tuple[_T, ...]:
        """Run the steps."""
        ctx.set_materialize_grads(False)
        ctx.steps = steps
        return steps.run(x.contiguous(), *states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: _T | None) -> Any:
        """Return the multipliers, or the gradients while no rulebook is attached."""
        return None, *ctx.steps.multipliers(*gradients)


def _attach(node: Node, rulebook: Rulebook, book: Book) -> _Steps:
    steps: _Steps = node.steps
    return steps.attach(rulebook, book)


def _apply(
    kind: type[_Steps], x: _T, states: Sequence[_T], weights: Sequence[_T | None], carries: Sequence[bool]
) -> tuple[_T, ...]:
    """Run one direction of a layer, given its weights in torch's order: ih, hh, both biases, projection."""
    own: list[Any] = [None if weight is None else weight.detach() for weight in weights]
    if len(own) < 4:  # without biases
        own[2:2] = [None, None]
    weighing = _Weights(*own, *[None] * (5 - len(own)))
    first = (state if carried else state.detach() for state, carried in zip(states, carries, strict=True))
    steps = kind(weighing, carries)
    outputs: tuple[_T, ...] = RecurrentLayer.apply(steps, x, *first)  # type: ignore[no-untyped-call]
    return outputs


def _layers(kind: type[_Steps]) -> Whole:
    def run(notes: Notes, args: tuple[Any, ...]) -> Any:
        if len(args) != 9 or not isinstance(args[3], bool):
            return None  # a packed sequence
        x, given, weights, _, layers, dropout, training, both, batch_first = args
        states = [given] if isinstance(given, torch.Tensor) else list(given)
        carries = _carrying(notes, x, states, weights)
        if carries is None or (training and dropout):
            return None
        x, each = x.transpose(0, 1) if batch_first else x, len(weights) // (layers * (1 + both))
        ends: list[tuple[_T, ...]] = []
        for _ in range(layers):
            outputs = []
            for backwards in (False, True)[: 1 + both]:
                part = len(ends)
                own = weights[part * each : (part + 1) * each]
                y, *cell = _apply(kind, x.flip(0) if backwards else x, [one[part] for one in states], own, carries)
                ends.append((y[-1], *cell))
                outputs.append(y.flip(0) if backwards else y)
            x = torch.cat(outputs, dim=2) if both else outputs[0]
        return x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*ends, strict=True))

    return run


def _cell(kind: type[_Steps]) -> Whole:
    def run(notes: Notes, args: tuple[Any, ...]) -> Any:
        x, given, *weights = args
        states = [given] if isinstance(given, torch.Tensor) else list(given)
        carries = _carrying(notes, x, states, weights)
        if carries is None:
            return None
        y, *cell = _apply(kind, x.unsqueeze(0), states, weights, carries)
        return (y[0], *cell) if cell else y[0]

    return run


def _carrying(notes: Notes, x: _T, states: Sequence[_T], weights: Sequence[_T | None]) -> list[bool] | None:
    """Whether each first state carries relevance; None where a part of the layer is none that `_Steps` knows."""
    graph = notes.graph
    carries = [graph.carries(state) for state in states]
    other = [*(state for state, own in zip(states, carries, strict=True) if not own), *weights]
    if not graph.carries(x) or notes.copying or torch.is_autocast_enabled(x.device.type):
        return None
    if any(one is not None and (graph.depends(one) or notes.cuts.of(one)) for one in other):
        return None
    return carries


ROW = Row(Kind.WHOLE, _attach, label="steps: ratio f(x) / x; product, {product}")
"""The row of `RecurrentLayer`."""

WHOLE: dict[Callable[..., Any], Whole] = {
    torch.lstm: _layers(_Lstm),
    torch.gru: _layers(_Gru),
    torch.lstm_cell: _cell(_Lstm),
    torch.gru_cell: _cell(_Gru),
}
"""Function of torch -> what runs it as one node."""

STEPS: dict[str, Row] = {
    **{op: ELEMENTWISE[op] for op in ("Sigmoid", "Tanh")},
    **{op: PRODUCTS[op] for op in ("Mul", "Mm", "Addmm")},
    **{op: LINEAR[op] for op in ("Add", "Sub")},
}
"""Operation of a step -> the row that the closed form follows."""
