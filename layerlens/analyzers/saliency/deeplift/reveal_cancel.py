"""The reveal-cancel rule: what raises the input of a nonlinearity and what lowers it are explained separately.

With the positive part Dx+ and the negative part Dx- of the input's change, gathered from the contributions of the
linear operation that makes the input, the result's change is split into (Shrikumar et al. 2017, sec. 3.5.3)

    Dy+ = (f(x' + Dx+) - f(x')) / 2 + (f(x' + Dx- + Dx+) - f(x' + Dx-)) / 2
    Dy- = (f(x' + Dx-) - f(x')) / 2 + (f(x' + Dx+ + Dx-) - f(x' + Dx+)) / 2

and the multipliers Dy+ / Dx+ and Dy- / Dx- go to the contributions of that sign (the linear rule, sec. 3.5.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.linear_operations import BATCH_NORMS, VIEWS, LinearMap, linear_map
from layerlens.analyzers.graph.operation import Gradients
from layerlens.analyzers.relevance.differences.multipliers import difference, elementwise, same_constants
from layerlens.analyzers.relevance.differences.operation_calls import OperationCall, key
from layerlens.analyzers.relevance.differences.pairs import Pair, Rule
from layerlens.analyzers.relevance.differences.table import RULES

_LINEAR = ("Mm", "Addmm", "Bmm", "Baddbmm", "Linear", "Convolution")
_SUMS = ("Add", "Sub")

WANTED = frozenset(map(key, [*_LINEAR, *_SUMS]))
"""Keys of the operations whose values the rule reads, besides those of the rescale rule."""


@dataclasses.dataclass(eq=False)
class Source:
    """The linear operation that makes the input of a nonlinearity.

    Attributes:
        pair: the operation.
        positive: the part of its change that positive contributions make.
        negative: the rest of its change.
        raise_more: addition to its multiplier for positive contributions, gathered in the backward pass.
        lower_more: addition to its multiplier for negative contributions.
    """

    pair: Pair
    positive: torch.Tensor
    negative: torch.Tensor
    raise_more: torch.Tensor | None = None
    lower_more: torch.Tensor | None = None

    def add(self, more: torch.Tensor, flipped: torch.Tensor | None) -> None:
        """Add `more` to the multiplier for negative contributions, or for positive ones where the sign flipped."""
        for name, part in self._parts(more, flipped):
            before = getattr(self, name)
            setattr(self, name, part if before is None else before + part)

    def _parts(self, more: torch.Tensor, flipped: torch.Tensor | None) -> Iterator[tuple[str, torch.Tensor]]:
        yield "lower_more", more if flipped is None else more.masked_fill(flipped, 0)
        if flipped is not None:
            yield "raise_more", more.masked_fill(~flipped, 0)


def reveal_cancel(pairs: Sequence[Pair]) -> dict[int, Rule]:
    """Rules, by the identity of the node's info, of nonlinearities behind a linear operation, and of those operations.

    Others follow the rescale rule.
    """
    by_info = {id(pair.info): pair for pair in pairs}
    sources: dict[int, Source] = {}
    rules: dict[int, Rule] = {}
    for pair in pairs:
        if RULES.get(pair.info.op) is not elementwise or pair.calls is None or not same_constants(*pair.calls):
            continue
        behind = _source_of(pair, by_info)
        if behind is None or pair.calls[0].x.shape != pair.calls[0].y.shape:
            continue
        made, norm = behind
        if id(made.info) not in sources:
            positive = _positive_part(made)
            if positive is None or made.calls is None:
                continue
            change = difference(made.calls[0].y, made.calls[1].y)
            sources[id(made.info)] = Source(made, positive, change - positive)
        source = sources[id(made.info)]
        rules[id(pair.info)] = _nonlinear_rule(source, norm)
        rules[id(made.info)] = _linear_rule(source)
    return rules


def _source_of(pair: Pair, by_info: dict[int, Pair]) -> tuple[Pair, NodeInfo | None] | None:
    """The linear operation behind a nonlinearity, and the batch norm between them."""
    (slot,) = pair.slots
    info, norm = pair.info.edges[slot], None
    while info is not None and id(info) in by_info:
        made = by_info[id(info)]
        if len(made.slots) == 1 and (info.op in VIEWS or _shifts(made)):
            info = info.edges[made.slots[0]]
        elif norm is None and info.op in BATCH_NORMS and not info.node._saved_training:
            info, norm = info.edges[0], info
        else:
            return (made, norm) if info.op in (*_LINEAR, *_SUMS) else None
    return None


def _shifts(pair: Pair) -> bool:
    """Whether an operation adds a constant to a signal and leaves its shape and sign."""
    return pair.info.op in _SUMS and pair.slots == (0,) and pair.calls is not None and _same_shape(pair.calls[0])


def _same_shape(call: OperationCall) -> bool:
    return call.x.shape == call.y.shape


def _linear_map_of(pair: Pair) -> LinearMap | None:
    if pair.info.op not in _LINEAR or len(pair.slots) != 1 or pair.calls is None:
        return None
    return linear_map(pair.info.op, pair.info.node, pair.slots[0])


def _terms(pair: Pair) -> list[tuple[int, torch.Tensor, float]]:
    """(slot, change, factor) of the terms of a sum."""
    if pair.calls is None:
        return []
    call, other = pair.calls
    sign = -1 if pair.info.op == "Sub" else 1
    factors = {0: 1.0, 1: sign * float(call.option("alpha"))}
    return [
        (slot, difference(call.args[place], other.args[place]), factors[slot])
        for slot, place in zip(pair.slots, call.varied, strict=True)
    ]


def _positive_part(pair: Pair) -> torch.Tensor | None:
    """The sum of the positive contributions to the result of a linear operation; None if unknown."""
    if pair.calls is None or (pair.info.op in _LINEAR and not same_constants(*pair.calls)):
        return None
    call, other = pair.calls
    linear = _linear_map_of(pair)
    if linear is not None:
        dx, weight = difference(call.x, other.x), linear.weight
        return linear.apply(dx.clamp(min=0), weight.clamp(min=0)) + linear.apply(dx.clamp(max=0), weight.clamp(max=0))
    terms = _terms(pair) if pair.info.op in _SUMS else []
    if not terms:
        return None
    return sum(((factor * dx).clamp(min=0) for _, dx, factor in terms), torch.zeros_like(call.y))


def _nonlinear_rule(source: Source, norm: NodeInfo | None) -> Rule:
    """The rule of a nonlinearity: the graph carries on the multiplier of the positive part, and `source` the rest."""

    def rule(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
        (slot,), g = pair.slots, outer[0]
        native = gradients[slot]
        if pair.calls is None or g is None or native is None:
            return None
        call, other = pair.calls
        positive, dx = source.positive, difference(call.x, other.x)
        scale = None if norm is None else _scale(norm)
        if norm is not None and scale is not None:
            shape = norm.node._input_metadata[0].shape
            positive = scale * torch.where(scale > 0, positive.reshape(shape), source.negative.reshape(shape))
        up = positive.reshape(dx.shape).clamp(min=0)
        down = dx - up
        raised, lowered = call.repeat(other.x + up), call.repeat(other.x + down)
        dy, dy_up = difference(call.y, other.y), (raised - other.y + call.y - lowered) / 2
        whole = _part_quotient(
            g * dy, dx, call, other, native
        )  # the rescale rule, where a part alone leads to no number
        defined = torch.isfinite(raised) & torch.isfinite(lowered)
        by_up, by_down = (
            torch.where(defined, _part_quotient(g * part, change, call, other, native), whole)
            for part, change in ((dy_up, up), (dy - dy_up, down))
        )
        more, flipped = (by_down - by_up).reshape(positive.shape), None
        if scale is not None:
            more, flipped = scale * more, (scale < 0).expand_as(more).reshape(source.positive.shape)
        source.add(more.reshape(source.positive.shape), flipped)
        return tuple(by_up.to(native.dtype) if place == slot else gradient for place, gradient in enumerate(gradients))

    return rule


def _part_quotient(
    amount: torch.Tensor, change: torch.Tensor, call: OperationCall, other: OperationCall, limit: torch.Tensor
) -> torch.Tensor:
    """`amount / change`, and the gradient where the part is within rounding of none."""
    size = torch.maximum(call.x.abs(), other.x.abs())
    none = (change == 0) | (change.abs() <= math.pow(torch.finfo(change.dtype).eps, 0.75) * size)
    return torch.where(none, limit, amount / torch.where(none, torch.ones_like(change), change))


def _scale(norm: NodeInfo) -> torch.Tensor:
    """What a batch norm multiplies its input with, shaped to fit it."""
    node, metadata = norm.node, norm.node._input_metadata[0]
    scale = torch.rsqrt(node._saved_running_var + node._saved_eps)
    scale = scale if node._saved_weight is None else scale * node._saved_weight
    return scale.detach().reshape(1, -1, *[1] * (len(metadata.shape) - 2)).to(metadata.dtype)


def _linear_rule(source: Source) -> Rule:
    """The rule of the linear operation: each contribution gets the multiplier of its sign, and one of 0 the mean."""

    def rule(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
        g = outer[0]
        if g is None or pair.calls is None or (source.raise_more is None and source.lower_more is None):
            return None
        up = g if source.raise_more is None else g + source.raise_more
        down = g if source.lower_more is None else g + source.lower_more
        multipliers = list(gradients)
        linear = _linear_map_of(pair)
        if linear is None:
            for slot, dx, factor in _terms(pair):
                native = gradients[slot]
                if native is not None:
                    passed = factor * _by_sign(factor * dx, up, down)
                    multipliers[slot] = passed.sum_to_size(native.shape).to(native.dtype)
            return tuple(multipliers)
        (slot,) = pair.slots
        call, other = pair.calls
        dx, weight = difference(call.x, other.x), linear.weight
        above, below = weight.clamp(min=0), weight.clamp(max=0)
        raising = linear.apply_transposed(up, above, dx) + linear.apply_transposed(down, below, dx)
        lowering = linear.apply_transposed(up, below, dx) + linear.apply_transposed(down, above, dx)
        native = gradients[slot]
        if native is not None:
            multipliers[slot] = _by_sign(dx, raising, lowering).to(native.dtype)
        return tuple(multipliers)

    return rule


def _by_sign(dx: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    return torch.where(dx > 0, positive, torch.where(dx < 0, negative, (positive + negative) / 2))
