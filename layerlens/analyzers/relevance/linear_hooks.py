"""Hooks that make the backward pass of a linear operation follow a rule.

The native backward of the node does the work: a hook before it turns the multiplier into what the rule sends through
the transposed map, and the node's saved weight is exchanged for the rule's weight (`register_hooks` of a saved tensor).
A second product is computed by hand only where contributions of the other sign count.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch.utils.hooks import RemovableHandle

from layerlens.analyzers.graph.linear_operations import LinearOperation
from layerlens.analyzers.graph.operation import Gradients
from layerlens.errors import RelevanceError

from .book import Bookkeeper
from .linear_terms import (
    PLUS,
    InputTerm,
    SignedProduct,
    StackedProduct,
    first_layer_terms,
    plus,
    split_by_sign,
    without_bias,
)  # fmt: skip
from .plan import PlannedLinear
from .rules.linear import FIRST_LAYER_RULES, Epsilon, LinearRule
from .spared import WORTH_SPARING, Asked, Hook, Spared

_SAVED_BY_CONSUMER = {
    "Relu": "result", "Gelu": "self", "Silu": "self", "Hardswish": "self", "Mish": "self", "Hardtanh": "self",
}  # fmt: skip
"""Operations that saved their input, or for ReLU a result that equals it wherever relevance comes from."""


def attach_linear(planned: PlannedLinear, bookkeeper: Bookkeeper, *, spare: bool) -> list[RemovableHandle]:
    """Register the hooks of a linear operation; returns their handles.

    Args:
        planned: operation and rule.
        bookkeeper: where amounts go.
        spare: whether nobody wants the gradients of parameters, so that a node's own backward pass may be left out.
    """
    operation, rule, path = planned
    if isinstance(rule, Epsilon) and rule.bias:
        return [_EpsilonHook(operation, rule, bookkeeper).attach()]
    return _LinearHooks(operation, rule, bookkeeper, path, spare=spare).attach()


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
        spare: as in `attach_linear`.
    """

    def __init__(
        self, operation: LinearOperation, rule: LinearRule, bookkeeper: Bookkeeper, path: str, *, spare: bool
    ) -> None:
        self.operation, self.rule, self.bookkeeper, self.path, self.spare = operation, rule, bookkeeper, path, spare
        self.output: torch.Tensor | None = None  # z with bias and norm
        self.scale_and_shift: tuple[torch.Tensor | None, torch.Tensor | None] | None = None  # of the norm
        self.native = False  # whether the native backward can use another weight
        self.native_weight: torch.Tensor | None = None  # that weight
        self.products: list[SignedProduct] = []
        self.stacked: StackedProduct | None = None  # instead, where the native backward is spared
        self.input_terms: list[InputTerm] = []
        self.x: torch.Tensor | None = None
        self.asked: Asked | None = None  # the stand-in that gives its multiplier

    def attach(self) -> list[RemovableHandle]:
        operation, handles = self.operation, []
        if operation.consumer is not None and operation.consumer.op in _SAVED_BY_CONSUMER:
            handles.append(operation.consumer.node.register_hook(self._read_output))
        if operation.norm is not None:
            pass_norm: Hook = self._pass_norm
            if self.spare:
                spared = Spared(torch.ops.aten.native_batch_norm_backward.default, pass_norm)
                handles.append(operation.end.node.register_prehook(spared.before))
                pass_norm = spared.after
            handles.append(operation.end.node.register_hook(pass_norm))
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
            self.output = operation.normalized(self.scale_and_shift[0])
        if is_read:
            assert self.scale_and_shift[0] is not None
            factor = operation.map.per_channel(self.scale_and_shift[0], self.output)
            folded[operation.info.node] = self.output, factor
        return (outer[0], *[None] * (len(gradients) - 1))

    def _before(self, outer: Gradients) -> Gradients | None:
        """Turn the multiplier of z into what the rule sends through the transposed map.

        Raises:
            RelevanceError: if the input was not kept.
        """
        g = outer[0]
        if g is None:
            self.output = self.scale_and_shift = None  # held back after it: another sweep may begin there
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
        g = g.detach()
        bookkeeper, number = self.bookkeeper, operation.number
        to_bias: list[torch.Tensor] = []
        first: InputTerm | SignedProduct | None = None
        if isinstance(self.rule, FIRST_LAYER_RULES):
            self.input_terms, to_bias, lost = first_layer_terms(operation.map, self.rule, self.x, weight, counted, y, g)
            first = self.input_terms[0]
        elif isinstance(self.rule, Epsilon):
            z = y if counted is shift else operation.map.apply(self.x, weight).reshape(y.shape)
            self.products, lost = without_bias(self.rule, weight, z, y * g)
            first = self.products[0]
        elif self.rule.terms() == (PLUS,):
            stack = self.spare and g.numel() >= WORTH_SPARING
            found, to_bias, lost = plus(operation, self.x, weight, counted, y, g, own=scale is not None, stack=stack)
            if isinstance(found, StackedProduct):
                self.stacked = found
            else:
                self.products, first = found, found[0]
        else:
            z = y if counted is shift else operation.map.apply(self.x, weight).reshape(y.shape)
            rectified = operation.rectified and counted is shift
            self.products, to_bias, lost = split_by_sign(
                operation, self.rule.terms(), self.x, weight, counted, z, y * g, rectified=rectified
            )
            first = self.products[0] if self.products else None
        bookkeeper.add("additive", number, "bias" if operation.norm is None else "bias and norm", *to_bias)
        bookkeeper.add("absorbed", number, str(self.rule), *lost, linear=True)
        if (stacked := self.stacked) is not None:
            multiplier = functools.partial(stacked.multiplier, operation.map)
            backward = torch.ops.aten.convolution_backward.default
            self.asked = Asked(stacked.s, backward, lambda: (multiplier(), None, None))
            return (self.asked, *outer[1:])
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
        asked, stacked, self.asked, self.stacked = self.asked, self.stacked, None, None
        if asked is not None and stacked is not None:
            self.x = None
            return gradients if asked.rule is None else (stacked.multiplier(self.operation.map), None, None)
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
