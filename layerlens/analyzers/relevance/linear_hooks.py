"""Hooks that make the backward pass of a linear operation follow a rule.

The native backward of the node does the work: a hook before it turns the multiplier into what the rule sends through
the transposed map, and the node's saved weight is exchanged for the rule's weight (`register_hooks` of a saved tensor).
A second product is computed by hand only where contributions of the other sign count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

from layerlens.analyzers.graph.linear_operations import LinearMap, LinearOperation
from layerlens.analyzers.graph.operation import Gradients
from layerlens.errors import RelevanceError

from .book import Bookkeeper
from .plan import PlannedLinear
from .rules.linear import FIRST_LAYER_RULES, Epsilon, LinearRule, Term, WSquare, ZBox

_SAVED_BY_CONSUMER = {"Relu": "result", "Gelu": "self", "Silu": "self", "Hardswish": "self", "Mish": "self"}
"""Operations that saved their input, or for ReLU a result that equals it wherever relevance comes from."""


def attach_linear(planned: PlannedLinear, bookkeeper: Bookkeeper) -> list[RemovableHandle]:
    """Register the hooks of a linear operation; returns their handles.

    Args:
        planned: operation and rule.
        bookkeeper: where amounts go.
    """
    operation, rule, path = planned
    if isinstance(rule, Epsilon) and rule.bias:
        return [_EpsilonHook(operation, rule, bookkeeper).attach()]
    return _LinearHooks(operation, rule, bookkeeper, path).attach()


class _EpsilonHook:
    """Damps the multiplier of an operation's output by z / (z + epsilon sign(z)); the rest is native."""

    def __init__(self, operation: LinearOperation, rule: Epsilon, bookkeeper: Bookkeeper) -> None:
        self.operation, self.rule, self.bookkeeper = operation, rule, bookkeeper

    def attach(self) -> RemovableHandle:
        handle: RemovableHandle = self.operation.end.node.register_prehook(self._damp)
        return handle

    def _damp(self, outer: Gradients) -> Gradients | None:
        g = outer[0]
        if g is None:
            return None
        operation = self.operation
        if operation.norm is not None:
            y = operation.normalized()
        else:
            x = operation.map.x
            if x is None:
                raise RelevanceError("the epsilon rule needs the input of a layer whose weight autograd does not know.")
            y = operation.map.apply(x, operation.map.weight)
            _, shift = operation.scale_and_shift(y)
            y = (y if shift is None else y + shift).reshape(g.shape)
        damped = g * self.rule.damped(y)
        self.bookkeeper.add("absorbed", operation.number, str(self.rule), (g - damped) * y, linear=True)
        return (damped, *outer[1:])


class _LinearHooks:
    """The hooks of one linear operation under one rule.

    Args:
        operation: the operation.
        rule: its rule.
        bookkeeper: where amounts, first-layer relevance and outputs go.
        path: path of the layer, for messages.
    """

    def __init__(self, operation: LinearOperation, rule: LinearRule, bookkeeper: Bookkeeper, path: str) -> None:
        self.operation, self.rule, self.bookkeeper, self.path = operation, rule, bookkeeper, path
        self.output: torch.Tensor | None = None  # z with bias and norm
        self.scale_and_shift: tuple[torch.Tensor | None, torch.Tensor | None] | None = None  # of the norm
        self.native = False  # whether the native backward can use another weight
        self.native_weight: torch.Tensor | None = None  # that weight
        self.products: list[SignedProduct] = []
        self.input_terms: list[InputTerm] = []
        self.x: torch.Tensor | None = None

    def attach(self) -> list[RemovableHandle]:
        operation, handles = self.operation, []
        if operation.consumer is not None and operation.consumer.op in _SAVED_BY_CONSUMER:
            handles.append(operation.consumer.node.register_hook(self._read_output))
        if operation.norm is not None:
            handles.append(operation.end.node.register_hook(self._pass_norm))
        handles.append(operation.info.node.register_prehook(self._before))
        handles.append(operation.info.node.register_hook(self._after))
        try:
            operation.map.saved_weight.register_hooks(lambda saved: saved, self._unpack_weight)
            self.native = True
        except RuntimeError:  # it has hooks already: the weight stays, and every product is computed by hand
            self.native = False
        return handles

    def _unpack_weight(self, saved: torch.Tensor) -> torch.Tensor:
        return saved if self.native_weight is None else self.native_weight

    def _read_output(self, gradients: Gradients, outer: Gradients) -> None:
        consumer = self.operation.consumer
        assert consumer is not None
        self.output = getattr(consumer.node, f"_saved_{_SAVED_BY_CONSUMER[consumer.op]}").detach()

    def _pass_norm(self, gradients: Gradients, outer: Gradients) -> Gradients:
        """The norm belongs to the rule: the multiplier passes unchanged; what the norm holds is freed after it."""
        operation, folded = self.operation, self.bookkeeper.folded
        assert operation.norm is not None
        self.scale_and_shift = operation.scale_and_shift(operation.norm._saved_input.detach())
        self._refuse_parameters(gradients, allowed=(0,))
        is_read = operation.info.node in folded
        if self.output is None or is_read:
            self.output = operation.normalized()
        if is_read:
            folded[operation.info.node] = self.output
        return (outer[0], *[None] * (len(gradients) - 1))

    def _before(self, outer: Gradients) -> Gradients | None:
        """Turn the multiplier of z into what the rule sends through the transposed map.

        Raises:
            RelevanceError: if the input was not kept.
        """
        g = outer[0]
        if g is None:
            return None
        operation = self.operation
        self.x, weight = operation.map.x, operation.map.weight
        if self.x is None:
            raise RelevanceError(
                f"the rule {self.rule} needs the input of {self.path!r}, but its weight was made outside of autograd, "
                "so nothing was kept. Give that layer an epsilon=0 rule."
            )
        (scale, shift), self.scale_and_shift = self.scale_and_shift or operation.scale_and_shift(g), None
        counted = shift if self.rule.bias else None
        weight = weight if scale is None else operation.map.scaled(weight, scale)
        y = self._output(self.x, weight, shift, g)
        relevance = y * g.detach()
        bookkeeper, number = self.bookkeeper, operation.number
        to_bias: list[torch.Tensor] = []
        if isinstance(self.rule, FIRST_LAYER_RULES):
            self.input_terms, to_bias, *lost = first_layer_terms(
                operation.map, self.rule, self.x, weight, counted, relevance
            )
            first: InputTerm | SignedProduct | None = self.input_terms[0]
        else:
            z = y if counted is shift else operation.map.apply(self.x, weight).reshape(y.shape)
            if isinstance(self.rule, Epsilon):
                self.products, lost = without_bias(self.rule, weight, z, relevance)
            else:
                rectified = operation.rectified and counted is shift
                self.products, to_bias, lost = split_by_sign(
                    operation, self.rule.terms(), self.x, weight, counted, z, relevance, rectified=rectified
                )
            first = self.products[0] if self.products else None
        bookkeeper.add("additive", number, "bias" if operation.norm is None else "bias and norm", *to_bias)
        bookkeeper.add("absorbed", number, str(self.rule), *lost, linear=True)
        return self._through_native(first.weight, first.s, outer) if first else None

    def _through_native(self, weight: torch.Tensor, s: torch.Tensor, outer: Gradients) -> Gradients | None:
        """Have the native backward send s through `weight`, where it can."""
        if not self.native:
            return None
        self.native_weight = weight
        return (s, *outer[1:])

    def _output(
        self, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, g: torch.Tensor
    ) -> torch.Tensor:
        y, self.output = self.output, None
        if y is not None and y.numel() == g.numel():
            return y.reshape(g.shape)
        y = self.operation.map.apply(x, weight)
        return y if shift is None else y.add_(shift)

    def _after(self, gradients: Gradients, outer: Gradients) -> Gradients:
        """Add the products that the native backward did not compute."""
        x, products, terms, slot = self.x, self.products, self.input_terms, self.operation.map.slot
        self.x, self.native_weight, self.products, self.input_terms = None, None, [], []
        passed: list[torch.Tensor | None] = [None] * len(gradients)
        native = gradients[slot]
        if x is None or native is None:
            return tuple(passed)
        weight_slot = self.operation.map.weight_slot
        self._refuse_parameters(gradients, allowed=(slot,) if terms else (slot, weight_slot))
        if gradients[weight_slot] is not None:
            passed[weight_slot] = self._weight_multiplier(products, x)

        def transposed(index: int, weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return native if index == 0 and self.native else self.operation.map.apply_transposed(s, weight, x)

        if terms:
            amounts = []
            for index, (factor, weight, s) in enumerate(terms):
                product = transposed(index, weight, s)
                amounts.append(product if factor is None else factor * product)
            total = amounts[0] if len(amounts) == 1 else amounts[0] + amounts[1]
            self.bookkeeper.sweep.first_layer.append((self.operation, total))
            return tuple(passed)
        by_sign: dict[int, torch.Tensor] = {}
        for index, (sign, weight, s) in enumerate(products):
            product = transposed(index, weight, s)
            by_sign[sign] = product.add_(by_sign[sign]) if sign in by_sign else product
        if len(by_sign) == 2:
            passed[slot] = torch.where(x > 0, by_sign[1], by_sign[-1])
        elif by_sign:
            passed[slot] = next(iter(by_sign.values()))
        return tuple(passed)

    def _weight_multiplier(self, products: Sequence[SignedProduct], x: torch.Tensor) -> torch.Tensor:
        """The multiplier of the weight: times the weight, the relevance of all contributions that the rule counts."""
        one_sign = len({product.sign for product in products}) < 2
        own = self.operation.map.weight
        total = torch.zeros_like(own)
        for sign, weight, s in products:
            signed = x if one_sign else x.clamp(min=0) if sign > 0 else x.clamp(max=0)
            total += weight * self.operation.map.weight_gradient(s, weight, signed)
        return torch.where(own == 0, 0, total / own)

    def _refuse_parameters(self, gradients: Gradients, *, allowed: tuple[int, ...]) -> None:
        if any(gradient is not None for slot, gradient in enumerate(gradients) if slot not in allowed):
            raise RelevanceError(
                f"the rule {self.rule} in {self.path!r} does not define the relevance of this parameter. Rules that "
                "split by sign define it for the weight alone (the ledger has what bias and batch norm get), those of "
                "a first layer for none. Name other parameters, or take the epsilon rule."
            )


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


_PLUS = Term(1, 0)


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
    plus = total(_PLUS)
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
    low, high = torch.aminmax(x)
    if float(low) >= 0:
        return (1,)
    return (-1,) if float(high) <= 0 else (1, -1)


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
    relevance: torch.Tensor,
) -> tuple[list[InputTerm], list[torch.Tensor], torch.Tensor]:
    """Return the terms of the relevance of x under flat, w2 or z-box, what the bias gets, and what is absorbed.

    Args:
        map_: the linear map.
        rule: one of `FIRST_LAYER_RULES`.
        x: its input.
        weight: its weight, with the scale of its norm.
        shift: bias and shift of its norm, if they take a share; else None.
        relevance: relevance of its output.
    """
    if isinstance(rule, ZBox):
        low, high = rule.bounds(x, map_.axis)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        above, below = x - low, x - high  # x w - l w+ - h w- by terms of one sign, so that none cancel
        z = map_.apply(above, up).add_(map_.apply(below, down))
        s, absorbed = _divide(relevance, z)
        return [InputTerm(above, up, s), InputTerm(below, down, s)], [], absorbed
    squared = isinstance(rule, WSquare)
    by_input = weight.square() if squared else torch.ones_like(weight)
    z = map_.apply(torch.ones_like(x), by_input)
    by_bias = None if shift is None else shift.square() if squared else torch.ones_like(shift)
    s, absorbed = _divide(relevance, z if by_bias is None else z.add_(by_bias))
    return [InputTerm(None, by_input, s)], [] if by_bias is None else [_times_shift(s, by_bias)], absorbed


def _divide(relevance: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    empty = z == 0
    return torch.div(relevance, z, out=z).masked_fill_(empty, 0.0), relevance * empty
