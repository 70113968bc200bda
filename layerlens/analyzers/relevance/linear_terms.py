"""How the relevance of a linear operation's output is split: by the sign of contributions, or for a first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from layerlens.analyzers.graph.linear_operations import ConvolutionMap, LinearMap, LinearOperation

from .rules.linear import Epsilon, LinearRule, Term, WSquare, ZBox


class SignedProduct(NamedTuple):
    """A product with the transposed map that makes the multiplier of inputs of one sign.

    Attributes:
        sign: sign of the inputs, 1 or -1.
        weight: weight of the map.
        s: relevance per unit of the output, shaped like it.
    """

    sign: int
    weight: torch.Tensor
    s: torch.Tensor


class StackedProduct(NamedTuple):
    """The products for inputs of both signs in one: channels of positive inputs, then those of negative ones.

    Attributes:
        x: the input.
        parts: its positive part and its negative part, along the channels.
        weight: weights of both.
        s: relevance per unit of the output.
    """

    x: torch.Tensor
    parts: torch.Tensor
    weight: torch.Tensor
    s: torch.Tensor

    def multiplier(self, map_: LinearMap) -> torch.Tensor:
        """Return the multiplier of the input."""
        above, below = map_.apply_transposed(self.s, self.weight, self.parts).chunk(2, dim=1)
        return torch.where(self.x > 0, above, below)


PLUS = Term(1, 0)


def plus(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    y: torch.Tensor,
    g: torch.Tensor,
    *,
    own: bool,
    stack: bool,
) -> tuple[list[SignedProduct] | StackedProduct, list[torch.Tensor], list[torch.Tensor]]:
    """Split by the term of z+ alone, with few tensors of the output's size: z, in which s is made, and no other.

    Args:
        operation: the linear operation.
        x: its input.
        weight: its weight, with the scale of its norm.
        shift: bias and shift of its norm, if they take a share; else None.
        y: its output with the shift.
        g: multiplier of the output.
        own: whether the weight may be written into.
        stack: whether inputs of both signs may be one product, where that is as fast as two.

    Returns:
        The products, the amounts that the bias gets, and those that are absorbed.
    """
    map_ = operation.map
    signs = (1,) if operation.nonnegative else _signs(x)
    products: list[SignedProduct] | StackedProduct
    by_bias = None if shift is None else PLUS.bias(shift)
    if len(signs) == 2 and stack and isinstance(map_, ConvolutionMap) and map_.plain:
        parts, weights = (torch.cat([one.clamp(min=0), one.clamp(max=0)], dim=1) for one in (x, weight))
        z = map_.apply(parts, weights, by_bias)
        products = StackedProduct(x, parts, weights, z)
    else:
        used = {sign: PLUS.weight(weight, sign) for sign in signs[1:]}
        used[signs[0]] = (weight.clamp_ if own else weight.clamp)(**({"min": 0} if signs[0] > 0 else {"max": 0}))
        z = map_.apply(x if len(signs) == 1 else x.clamp(min=0), used[signs[0]], by_bias)
        for sign in signs[1:]:
            z.add_(map_.apply(x.clamp(max=0), used[sign]))
        products = [SignedProduct(sign, used[sign], z) for sign in signs]
    s = torch.div(y, z, out=z).mul_(g)
    to_bias = None if by_bias is None else _times_shift(s, by_bias)
    absorbed = []
    if not bool(torch.isfinite(s.sum() if to_bias is None else to_bias).all()):
        # nothing positive came in: its share has nowhere to go
        if not (operation.rectified and by_bias is not None):
            empty = (s != s).logical_or_(s == math.inf).logical_or_(s == -math.inf)
            absorbed.append(torch.where(empty, y, 0.0).mul_(g))
        s.nan_to_num_(0.0, 0.0, 0.0)
        to_bias = None if by_bias is None else _times_shift(s, by_bias)
    return products, [] if to_bias is None else [to_bias], absorbed


def split_by_sign(
    operation: LinearOperation,
    terms: Sequence[Term],
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    y: torch.Tensor,
    relevance: torch.Tensor,
    *,
    rectified: bool,
) -> tuple[list[SignedProduct], list[torch.Tensor], list[torch.Tensor]]:
    """Split relevance by the sign of each contribution x_i w_ij: z+, alpha-beta, gamma.

    Args:
        operation: the linear operation.
        terms: terms of the rule.
        x: its input.
        weight: its weight, with the scale of its norm.
        shift: bias and shift of its norm, which broadcasts to y; None for none.
        y: its output with the shift, at least wherever relevance is not 0.
        relevance: relevance of the output.
        rectified: whether outputs below 0 have no relevance.

    Returns:
        The products, the amounts that the bias gets, and those that are absorbed; the amounts have a batch axis.
    """
    signs = (1,) if operation.nonnegative else _signs(x)
    active = [term for term in terms if not (term.where < 0 and rectified)]
    products: list[SignedProduct] = []
    to_bias: list[torch.Tensor] = []
    absorbed: list[torch.Tensor] = []
    denominators, weights = _denominators(operation.map, active, signs, x, weight, shift, y)
    if shift is None and not rectified and any(term.where for term in active):
        absorbed.append(relevance * (y == 0))  # neither sign: nothing came in, or all of it cancels
    for term, z in zip(active, denominators, strict=True):
        if term.where and not rectified:
            z.masked_fill_(y <= 0 if term.where > 0 else y >= 0, math.inf)  # others share nothing
        empty = z == 0
        any_empty = bool(empty.any())
        s = torch.div(relevance, z, out=z)
        if any_empty:  # nothing of this sign came in: its share has nowhere to go
            s.masked_fill_(empty, 0.0)
            absorbed.append(relevance * empty * term.share)
        if shift is not None:
            to_bias.append(_times_shift(s, term.bias(shift) * term.share))
        for sign in signs:
            used = weights.pop((term, sign), None)
            used = term.weight(weight, sign) if used is None else used
            products.append(SignedProduct(sign, used if term.share == 1 else used.mul_(term.share), s))
    return products, to_bias, absorbed


def without_bias(
    rule: Epsilon, weight: torch.Tensor, z: torch.Tensor, relevance: torch.Tensor
) -> tuple[list[SignedProduct], list[torch.Tensor]]:
    """Return the product of the epsilon rule that leaves out the bias, and what is absorbed.

    Args:
        rule: the rule.
        weight: weight of the map, with the scale of its norm.
        z: output without the bias.
        relevance: relevance of the output.
    """
    damped = torch.where(z == 0, 0, rule.damped(z))
    s = torch.where(z == 0, 0, relevance * damped / z)
    return [SignedProduct(1, weight, s)], [relevance * (1 - damped)]


def _denominators(
    map_: LinearMap,
    active: Sequence[Term],
    signs: tuple[int, ...],
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    y: torch.Tensor,
) -> tuple[list[torch.Tensor], dict[tuple[Term, int], torch.Tensor]]:
    """The sum of contributions of each term, with the bias's, in new tensors; and the weights made on the way."""
    weights: dict[tuple[Term, int], torch.Tensor] = {}
    signed = {1: x, -1: x} if len(signs) == 1 else {1: x.clamp(min=0), -1: x.clamp(max=0)}

    def total(term: Term) -> torch.Tensor:
        total: torch.Tensor | None = None
        for sign in signs:
            weights[term, sign] = term.weight(weight, sign)
            z = map_.apply(signed[sign], weights[term, sign])
            total = z if total is None else total.add_(z)
        assert total is not None
        return total if shift is None else total.add_(term.bias(shift))

    if not any(term.positive and term.negative for term in active):
        return [total(term) for term in active], weights
    plus = total(PLUS)
    # p z+ + n z- = n y + (p - n) z+, of two amounts of one sign where the term is used: nothing cancels
    sums = [
        torch.add(y if term.negative == 1 else y * term.negative, plus, alpha=term.positive - term.negative)
        for term in active
    ]
    return sums, weights


def _times_shift(s: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`s * shift`, summed over places where the shift has one number per channel."""
    if s.ndim > 2 and shift.ndim and shift.numel() == shift.shape[0] == s.shape[1]:
        return s.flatten(2).sum(dim=2) * shift.reshape(-1)
    return s * shift


def _signs(x: torch.Tensor) -> tuple[int, ...]:
    """Which signs occur in x: an input of one sign needs half of the work."""
    if float(x.amin()) >= 0:
        return (1,)
    return (-1,) if float(x.amax()) <= 0 else (1, -1)


class InputTerm(NamedTuple):
    """One term of the relevance of x: `factor` times the product of s with the transposed map of `weight`."""

    factor: torch.Tensor | None
    weight: torch.Tensor
    s: torch.Tensor


def first_layer_terms(
    map_: LinearMap,
    rule: LinearRule,
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    y: torch.Tensor,
    g: torch.Tensor,
) -> tuple[list[InputTerm], list[torch.Tensor], list[torch.Tensor]]:
    """Return the terms of the relevance of x under flat, w2 or z-box, what the bias gets, and what is absorbed.

    Args:
        map_: the linear map.
        rule: one of `FIRST_LAYER_RULES`.
        x: its input.
        weight: its weight, with the scale of its norm.
        shift: bias and shift of its norm, if they take a share; else None.
        y: its output.
        g: multiplier of the output.
    """
    if isinstance(rule, ZBox):
        low, high = rule.bounds(x, map_.axis)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        above, below = x - low, x - high  # x w - l w+ - h w- by terms of one sign, so that none cancel
        z = map_.apply(above, up).add_(map_.apply(below, down))
        s, absorbed = _divide(y, g, z)
        return [InputTerm(above, up, s), InputTerm(below, down, s)], [], absorbed
    squared = isinstance(rule, WSquare)
    by_input = weight.square() if squared else torch.ones_like(weight)
    z = map_.apply(torch.ones_like(x), by_input)
    by_bias = None if shift is None else shift.square() if squared else torch.ones_like(shift)
    s, absorbed = _divide(y, g, z if by_bias is None else z.add_(by_bias))
    return [InputTerm(None, by_input, s)], [] if by_bias is None else [_times_shift(s, by_bias)], absorbed


def _divide(y: torch.Tensor, g: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The relevance y g per unit of z, in its memory, and what is absorbed where z is 0."""
    if int(torch.count_nonzero(z)) == z.numel():
        return torch.div(y, z, out=z).mul_(g), []
    empty = z == 0
    return torch.div(y, z, out=z).mul_(g).masked_fill_(empty, 0.0), [torch.where(empty, y, 0.0).mul_(g)]
