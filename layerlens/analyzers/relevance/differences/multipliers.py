"""DeepLIFT's multipliers of one operation: what replaces its gradient so that differences are explained in full.

For y = f(x) with reference values x', y' a multiplier m has m (x - x') = y - y' (Shrikumar et al. 2017, eq. 2); the
chain rule for multipliers (eq. 3) is then that of gradients. Each function takes the gradients that autograd made and
the multiplier of the result, and returns the multipliers of the inputs, one per slot of the node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.linear_operations import VIEWS
from layerlens.analyzers.graph.operation import Gradients

from .operation_calls import OperationCall
from .pairs import Pair

_KEEPS = VIEWS | {"Expand", "ToCopy", "Clone"}


def difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return one minus other, 0 where both are the same infinity."""
    change = one - other
    return change if _finite(change) else change.masked_fill_(one == other, 0)


def too_small(change: torch.Tensor, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Where `x - reference` is rounding only, so that the derivative takes the place of a quotient."""
    rounding = math.pow(torch.finfo(x.dtype).eps, 0.75)
    if _finite(change):  # both are of one size there
        return change.abs() <= x.abs().mul_(rounding)
    same = change.abs() <= torch.maximum(x.abs(), reference.abs()).mul_(rounding)
    return same.logical_or_(x == reference)


def _finite(values: torch.Tensor) -> bool:
    """Whether the sum of all is finite, and so each is: cheaper than to look at each."""
    return bool(values.sum().isfinite())


def quotient(dy: torch.Tensor, x: torch.Tensor, reference: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """`dy / (x - reference)`, and `limit` where x has not changed."""
    change = x - reference
    same = too_small(change, x, reference)
    return torch.where(same, limit, dy / change) if bool(same.any()) else dy / change


def vector_jacobian_product(node: Any, multipliers: Sequence[torch.Tensor | None]) -> Gradients:
    """The vector-Jacobian product of a node, at the values that it saved."""
    products: torch.Tensor | Gradients = node(*multipliers)
    return products if isinstance(products, tuple) else (products,)


def weighted_products(
    pair: Pair,
    gradients: Gradients,
    outer: Gradients,
    weights: Sequence[torch.Tensor | float | None],
    reference_weights: Sequence[torch.Tensor | float | None],
) -> Gradients:
    """The sum of the vector-Jacobian products of both runs, with the multiplier of each result weighted."""

    def weighted(by: Sequence[torch.Tensor | float | None]) -> list[torch.Tensor | None]:
        return [None if g is None or w is None else g * w for g, w in zip(outer, by, strict=True)]

    one = vector_jacobian_product(pair.info.node, weighted(weights))
    other = vector_jacobian_product(pair.reference, weighted(reference_weights))
    return _like_inputs([None if a is None or b is None else a + b for a, b in zip(one, other, strict=True)], gradients)


def _like_inputs(multipliers: Sequence[torch.Tensor | None], gradients: Gradients) -> Gradients:
    """Return multipliers in the shapes of the inputs, summed where those were broadcast, and in their dtypes."""
    return tuple(
        None if native is None or part is None else part.sum_to_size(native.shape).to(native.dtype)
        for native, part in zip(gradients, multipliers, strict=True)
    )


def midpoint(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """Functions of degree 2, such as products: the mean of the gradients at both ends is exact.

    D(ab) = Da (b + b')/2 + Db (a + a')/2.
    """
    halves = [0.5] * len(outer)
    return weighted_products(pair, gradients, outer, halves, halves)


def product(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """A product of two signals, or of a signal with a constant; a gate that hides in the constant is in the quotient.

    Such a gate is a mask made by comparing, as in x * (x > 0): it carries no gradient and still changes.
    """
    if len(pair.slots) < 2:
        return gated(pair, gradients, outer)
    scales = [slot for slot in pair.slots if _divides(pair.info.edges[slot])]
    return scaled(pair, gradients, outer, scales[0]) if len(scales) == 1 else midpoint(pair, gradients, outer)


def _divides(info: NodeInfo | None) -> bool:
    while info is not None and info.op in _KEEPS:
        info = info.edges[0]
    return info is not None and info.op in ("Rsqrt", "Reciprocal")


def gated(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """An operation linear in one signal: its gradient, or the quotient where its other arguments have changed."""
    if pair.calls is None or same_constants(*pair.calls):
        return None
    call, _ = pair.calls
    return elementwise(pair, gradients, outer) if call.x.shape == call.y.shape else None


def elementwise(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """The rescale rule: m = (y - y') / (x - x'), the derivative where x has not changed (sec. 3.5.2)."""
    g = outer[0]
    if pair.calls is None or len(pair.slots) != 1 or g is None:
        return None
    call, other = pair.calls
    (slot,) = pair.slots
    native = gradients[slot]
    if native is None or call.x.shape != call.y.shape:
        return None
    limit = native if _finite(native) else native.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    rise = difference(call.y, other.y).mul_(g)
    return _replaced(gradients, slot, quotient(rise, call.x, other.x, limit).to(native.dtype))


def scaled(pair: Pair, gradients: Gradients, outer: Gradients, scale: int) -> Gradients | None:
    """A product a r whose factor r in slot `scale` divides by a size, as in x rsqrt(mean(x^2)): a / n with n = 1 / r.

    D(a / n) = (Da - y_bar Dn) / n_bar. The midpoint is as exact, but where r' is large, as for a baseline of zeros, it
    makes multipliers of that size, which cancel.
    """
    g = outer[0]
    if pair.calls is None or g is None:
        return None
    call, other = pair.calls
    r, r0 = call.args[scale], other.args[scale]
    if not bool((r * r0 > 0).all()):
        return midpoint(pair, gradients, outer)
    passed = g * 2 / (1 / r + 1 / r0)
    multipliers = (passed, passed * (call.y + other.y) / 2 / (r * r0))
    return _like_inputs(multipliers if scale == 1 else multipliers[::-1], gradients)


def division(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """A / b: D(a / b) = (Da - y_bar Db) / b_bar; as a product with 1 / b where b may have changed its sign."""
    g = outer[0]
    if pair.calls is None or g is None or 1 not in pair.slots:
        return gated(pair, gradients, outer)
    call, other = pair.calls
    (a, b), (a0, b0) = ([run.args[0], run.args[1]] for run in pair.calls)
    if bool((b * b0 > 0).all()):
        by_a = g * 2 / (b + b0)
        by_b = -by_a * (call.y + other.y) / 2
    else:
        by_a = g * (1 / b + 1 / b0) / 2
        by_b = -g * (a + a0) / (2 * b * b0)
    return _like_inputs((by_a if 0 in pair.slots else None, by_b), gradients)


def glu(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """A sigmoid(b): a product, with the rescale rule for the sigmoid."""
    (native,), (g,) = gradients, outer
    if pair.calls is None or g is None or native is None:
        return None
    axis = pair.calls[0].option("dim")
    (a, b), (a0, b0) = (call.x.chunk(2, dim=axis) for call in pair.calls)
    s, s0 = torch.sigmoid(b), torch.sigmoid(b0)
    by_b = quotient(s - s0, b, b0, s * (1 - s))
    return (torch.cat([g * (s + s0) / 2, g * (a + a0) / 2 * by_b], dim=axis),)


def maximum(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """Maxima: a rise is due to the place that has the maximum now, a fall to the one that had it before.

    The change y - y' goes there whole, and that place has itself changed by at least as much, so that multipliers lie
    between 0 and 1. For max pooling this is captum's rule, and windows may overlap.
    """
    return _extreme(pair, gradients, outer, 1)


def minimum(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """Minima: the mirror image of `maximum`."""
    return _extreme(pair, gradients, outer, -1)


def _extreme(pair: Pair, gradients: Gradients, outer: Gradients, sign: int) -> Gradients | None:
    if pair.calls is None or outer[0] is None:
        return None
    dy = difference(pair.calls[0].y, pair.calls[1].y)
    others = [None] * (len(outer) - 1)
    now, before = (sign * (sign * dy).clamp(min=0), *others), (sign * (sign * dy).clamp(max=0), *others)
    amounts = weighted_products(pair, gradients, outer, now, before)
    multipliers = list(gradients)
    for slot, (x, x0) in zip(pair.slots, signals(pair.calls), strict=True):
        amount, native = amounts[slot], gradients[slot]
        if amount is not None and native is not None:
            multipliers[slot] = quotient(amount, x, x0, native).to(native.dtype)
    return tuple(multipliers)


def signals(calls: tuple[OperationCall, OperationCall]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The arguments that need gradients, each with that of the other run."""
    call, other = calls
    return [(call.args[place], other.args[place]) for place in call.varied]


def same_constants(call: OperationCall, other: OperationCall) -> bool:
    """Whether the arguments that carry no gradient are those of the other run."""
    return same(call.constants(), other.constants())


def same(one: object, other: object) -> bool:
    """Whether two arguments, or lists of them, are equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or (one.shape == other.shape and bool(torch.equal(one, other)))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _replaced(gradients: Gradients, slot: int, value: torch.Tensor) -> Gradients:
    return tuple(value if place == slot else gradient for place, gradient in enumerate(gradients))
