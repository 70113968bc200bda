"""Hooks that make the backward pass of a linear operation follow a rule.

The native backward of the node is put to use, not replaced: a hook before it turns the multiplier into what the rule
pulls back, and the place where the node saved its weight hands out the rule's weight instead (`register_hooks` of a
saved tensor). A second pass is made by hand only where contributions of the other sign count.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from layerlens.analyzers.graph.operation import Gradients
from layerlens.errors import RelevanceError

from ..rules.bookkeeper import Bookkeeper
from .first_layer import Share, first_layer
from .linear_sites import Site
from .rules import DIRECT, Epsilon, LinearRule
from .sign_split import Pull, split

_SAVED_BY_CONSUMER = {"Relu": "result", "Gelu": "self", "Silu": "self", "Hardswish": "self", "Mish": "self"}
"""Operations that have saved their input, or for ReLU what stands for it wherever relevance comes from."""


class Books(Protocol):
    """What the hooks write to; see `Plan`."""

    @property
    def keeper(self) -> Bookkeeper: ...  # noqa: D102
    @property
    def direct(self) -> list[tuple[Site, torch.Tensor]]: ...  # noqa: D102
    @property
    def outputs(self) -> dict[Any, torch.Tensor | None]: ...  # noqa: D102


class SiteHooks:
    """The hooks of one site under one rule.

    Args:
        site: where.
        rule: what.
        books: where amounts, direct relevance and outputs go.
        layer: path of the layer, for messages.
    """

    def __init__(self, site: Site, rule: LinearRule, books: Books, layer: str) -> None:
        self.site, self.rule, self.books, self.layer = site, rule, books, layer
        self.output: torch.Tensor | None = None  # z with bias and norm
        self.affine: tuple[torch.Tensor | None, torch.Tensor | None] | None = None  # of the norm: scale, and bias
        self.native = False  # whether the native backward can use another weight
        self.swapped: torch.Tensor | None = None  # that weight
        self.pulls: list[Pull] = []
        self.shares: list[Share] = []
        self.x: torch.Tensor | None = None

    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        site, handles = self.site, []
        if site.consumer is not None and site.consumer.op in _SAVED_BY_CONSUMER:
            handles.append(site.consumer.node.register_hook(self._at_consumer))
        if site.norm is not None:
            handles.append(site.end.node.register_hook(self._at_norm))
        handles.append(site.info.node.register_prehook(self._before))
        handles.append(site.info.node.register_hook(self._after))
        try:
            site.map.raw_weight.register_hooks(lambda saved: saved, self._unpack)
            self.native = True
        except RuntimeError:  # it has hooks already: the weight stays, and all is pulled by hand
            self.native = False
        return handles

    def _unpack(self, saved: torch.Tensor) -> torch.Tensor:
        return saved if self.swapped is None else self.swapped

    def _at_consumer(self, gradients: Gradients, outer: Gradients) -> None:
        consumer = self.site.consumer
        assert consumer is not None
        self.output = getattr(consumer.node, f"_saved_{_SAVED_BY_CONSUMER[consumer.op]}").detach()

    def _at_norm(self, gradients: Gradients, outer: Gradients) -> Gradients:
        """The norm belongs to the rule: the multiplier passes as it is; what the norm holds is freed after it."""
        z = self.site.norm._saved_input.detach()
        self.affine = self.site.scale_and_shift(z)
        self._refuse(gradients, kept=(0,))
        tapped = self.site.info.node in self.books.outputs
        if self.output is None or tapped:
            self.output = normed(self.site)
        if tapped:
            self.books.outputs[self.site.info.node] = self.output
        return (outer[0], *[None] * (len(gradients) - 1))

    def _before(self, outer: Gradients) -> Gradients | None:
        """Turn the multiplier of z into what the rule pulls back."""
        g = outer[0]
        if g is None:
            return None
        site = self.site
        self.x, weight = site.map.x, site.map.weight
        if self.x is None:
            raise RelevanceError(
                f"the rule {self.rule} needs the input of {self.layer!r}, but its weight was made outside of autograd, "
                "so nothing was kept. Give that layer an epsilon=0 rule."
            )
        (scale, shift), self.affine = self.affine or site.scale_and_shift(g), None
        counted = shift if getattr(self.rule, "bias", True) else None
        weight = weight if scale is None else site.map.scaled(weight, scale)
        y = self._output(self.x, weight, shift, g)
        relevance = y * g.detach()
        keeper, number = self.books.keeper, site.number
        if isinstance(self.rule, DIRECT):
            self.shares, absorbed = first_layer(site.map, self.rule, self.x, weight, relevance)
            keeper.add("absorbed", number, str(self.rule), absorbed, linear=True)
            return self._native(self.shares[0].weight, self.shares[0].s, outer)
        self.pulls, biased, lost = split(site, self.rule.terms(), self.x, weight, counted, y, relevance)
        keeper.add("additive", number, "bias" if site.norm is None else "bias and norm", *biased)
        keeper.add("absorbed", number, str(self.rule), *lost, linear=True)
        return self._native(self.pulls[0].weight, self.pulls[0].s, outer) if self.pulls else None

    def _native(self, weight: torch.Tensor, s: torch.Tensor, outer: Gradients) -> Gradients | None:
        """Have the native backward pull s through `weight`, where that can be done."""
        if not self.native:
            return None
        self.swapped = weight
        return (s, *outer[1:])

    def _output(
        self, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, g: torch.Tensor
    ) -> torch.Tensor:
        y, self.output = self.output, None
        if y is not None and y.numel() == g.numel():
            return y.reshape(g.shape)
        y = self.site.map.apply(x, weight)
        return y if shift is None else y.add_(shift)

    def _after(self, gradients: Gradients, outer: Gradients) -> Gradients:
        """Add what the native backward did not pull."""
        x, pulls, shares, slot = self.x, self.pulls, self.shares, self.site.map.slot
        self.x, self.swapped, self.pulls, self.shares = None, None, [], []
        passed: list[torch.Tensor | None] = [None] * len(gradients)
        native = gradients[slot]
        if x is None or native is None:
            return tuple(passed)
        weight_slot = self.site.map.weight_slot
        self._refuse(gradients, kept=(slot,) if shares else (slot, weight_slot))
        if gradients[weight_slot] is not None:
            passed[weight_slot] = self._of_weight(pulls, x)

        def pull(index: int, weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return native if index == 0 and self.native else self.site.map.pull(s, weight, x)

        if shares:
            parts = [pull(index, weight, s) for index, (_, weight, s) in enumerate(shares)]
            amounts = [
                part if share.factor is None else share.factor * part for share, part in zip(shares, parts, strict=True)
            ]
            self.books.direct.append((self.site, amounts[0] if len(amounts) == 1 else amounts[0] + amounts[1]))
            return tuple(passed)
        pulled: dict[int, torch.Tensor] = {}
        for index, (sign, weight, s) in enumerate(pulls):
            part = pull(index, weight, s)
            pulled[sign] = part.add_(pulled[sign]) if sign in pulled else part
        if len(pulled) == 2:
            passed[slot] = torch.where(x > 0, pulled[1], pulled[-1])
        elif pulled:
            passed[slot] = next(iter(pulled.values()))
        return tuple(passed)

    def _of_weight(self, pulls: list[Pull], x: torch.Tensor) -> torch.Tensor:
        """What, times the weight, is the relevance that passes it: of every contribution the rule's weight counts."""
        one_sign = len({pull.sign for pull in pulls}) < 2
        raw = self.site.map.weight
        total = torch.zeros_like(raw)
        for sign, weight, s in pulls:
            part = x if one_sign else x.clamp(min=0) if sign > 0 else x.clamp(max=0)
            total += weight * self.site.map.pull_weight(s, weight, part)
        return torch.where(raw == 0, 0, total / raw)

    def _refuse(self, gradients: Gradients, *, kept: tuple[int, ...]) -> None:
        if any(gradient is not None for slot, gradient in enumerate(gradients) if slot not in kept):
            raise RelevanceError(
                f"the rule {self.rule} in {self.layer!r} does not tell the relevance of this parameter. Rules that "
                "split by sign tell that of the weight alone (the ledger has what bias and batch norm get), those of a "
                "first layer none. Name other parameters, or take the epsilon rule."
            )


class EpsilonHook:
    """Damps the multiplier of a site's output by z / (z + epsilon sign(z)); all else is native."""

    def __init__(self, site: Site, rule: Epsilon, keeper: Bookkeeper) -> None:
        self.site, self.rule, self.keeper = site, rule, keeper

    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        return [self.site.end.node.register_prehook(self._before)]

    def _before(self, outer: Gradients) -> Gradients | None:
        g = outer[0]
        if g is None:
            return None
        site = self.site
        if site.norm is not None:
            y = normed(site)
        else:
            x = site.map.x
            if x is None:
                raise RelevanceError("the epsilon rule needs the input of a layer whose weight autograd does not know.")
            y = site.map.apply(x, site.map.weight)
            _, shift = site.scale_and_shift(y)
            y = (y if shift is None else y + shift).reshape(g.shape)
        damped = g * self.rule.damped(y)
        self.keeper.add("absorbed", site.number, str(self.rule), (g - damped) * y, linear=True)
        return (damped, *outer[1:])


def normed(site: Site) -> torch.Tensor:
    """The output of a site's batch norm, from the input that it has saved."""
    z: torch.Tensor = site.norm._saved_input.detach()
    scale, _ = site.scale_and_shift(z)
    assert scale is not None
    end = int(site.end.node._sequence_nr())  # what the linear node itself adds is in the norm's input already
    own = [torch.as_tensor(c.value, dtype=z.dtype, device=z.device) for n, c in site.constants if n == end]
    return torch.addcmul(sum(own, start=z.new_zeros(())), z, site.map.per_channel(scale, z))
