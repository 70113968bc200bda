"""Hooks that make the backward pass of a linear operation follow a rule.

The native backward of the node is put to use, not replaced: a hook before it turns the multiplier into what the rule
pulls back, and the place where the node saved its weight hands out the rule's weight instead (`register_hooks` of a
saved tensor). A second pass is made by hand only where contributions of the other sign count.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ....errors import RelevanceError
from ..ledger import Bookkeeper
from ..rules.row import Gradients
from .rules import Epsilon, Flat, LinearRule, Term, WSquare, ZBox
from .sites import Site


class Books(Protocol):
    """What the hooks write to; see `Plan`."""

    @property
    def keeper(self) -> Bookkeeper: ...  # noqa: D102
    @property
    def direct(self) -> list[tuple[Site, torch.Tensor]]: ...  # noqa: D102
    @property
    def outputs(self) -> dict[Any, torch.Tensor | None]: ...  # noqa: D102


_SAVED_BY_CONSUMER = {"Relu": "result", "Gelu": "self", "Silu": "self", "Hardswish": "self", "Mish": "self"}
"""Operations that have saved their input, or for ReLU what stands for it wherever relevance comes from."""


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
        self.swapped: torch.Tensor | None = None  # the weight that the native backward is to use
        self.native = False
        self.wanted: list[tuple[Term, torch.Tensor, int]] = []  # what is pulled by hand: term, s, sign of x
        self.x: torch.Tensor | None = None
        self.weight: torch.Tensor | None = None

    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        site = self.site
        handles = []
        if site.norm is not None:
            handles.append(site.end.node.register_hook(self._at_norm))
        elif site.consumer is not None and site.consumer.op in _SAVED_BY_CONSUMER:
            handles.append(site.consumer.node.register_hook(self._at_consumer))
        handles.append(site.info.node.register_prehook(self._before))
        handles.append(site.info.node.register_hook(self._after))
        try:
            site.map.raw_weight.register_hooks(lambda saved: saved, self._unpack)
            self.native = True
        except RuntimeError:  # it has hooks already: a checkpointed block
            self.native = False
        return handles

    def _unpack(self, saved: torch.Tensor) -> torch.Tensor:
        return saved if self.swapped is None else self.swapped

    def _at_consumer(self, gradients: Gradients, outer: Gradients) -> None:
        consumer = self.site.consumer
        assert consumer is not None
        self.output = getattr(consumer.node, f"_saved_{_SAVED_BY_CONSUMER[consumer.op]}").detach()

    def _at_norm(self, gradients: Gradients, outer: Gradients) -> Gradients:
        """The norm belongs to the rule: the multiplier passes as it is, and z is read from what the norm saved."""
        self.output = _normed(self.site)
        self.affine = self.site.scale_and_shift(self.output)  # now, for the norm's own tensors are freed after it
        if self.site.info.node in self.books.outputs:
            self.books.outputs[self.site.info.node] = self.output
        return (outer[0], *[None] * (len(gradients) - 1))

    def _before(self, outer: Gradients) -> Gradients | None:
        """Turn the multiplier of z into what the rule pulls back."""
        g = outer[0]
        if g is None:
            return None
        g = g.detach()
        site = self.site
        x, weight = site.map.x, site.map.weight
        if x is None:
            raise RelevanceError(
                f"the rule {self.rule} needs the input of {self.layer!r}, but its weight was made outside of autograd, "
                "so nothing was kept. Give that layer an epsilon=0 rule."
            )
        (scale, shift), self.affine = self.affine or site.scale_and_shift(g), None
        weight = weight if scale is None else site.map.scaled(weight, scale)
        y = self._output(x, weight, shift, g)
        relevance = y * g
        self.x, self.weight = x, weight
        if isinstance(self.rule, (Flat, WSquare, ZBox)):
            return (self._first_layer(self.rule, x, weight, relevance), *outer[1:])
        return (self._split(x, weight, shift, y, relevance), *outer[1:])

    def _output(
        self, x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, g: torch.Tensor
    ) -> torch.Tensor:
        y, self.output = self.output, None
        if y is not None and y.numel() == g.numel():
            return y.reshape(g.shape)
        y = self.site.map.apply(x, weight)
        return y if shift is None else y + shift

    def _split(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        shift: torch.Tensor | None,
        y: torch.Tensor,
        relevance: torch.Tensor,
    ) -> torch.Tensor:
        """Book what biases get and what is absorbed; returns what the native backward pulls through `self.swapped`."""
        keeper, number, map_ = self.books.keeper, self.site.number, self.site.map
        signs = _signs(x)
        by_sign = {sign: x if len(signs) == 1 else (x.clamp(min=0) if sign > 0 else x.clamp(max=0)) for sign in signs}
        absorbed = relevance
        self.wanted = []
        for term in self.rule.terms():
            part = relevance
            if term.where:
                there = (y > 0) if term.where > 0 else (y < 0)
                if not bool((there & (relevance != 0)).any()):
                    continue
                part = relevance * there
            weights = {sign: term.weight(weight, sign) for sign in signs}
            z = sum(map_.apply(by_sign[sign], weights[sign]) for sign in signs)
            assert isinstance(z, torch.Tensor)
            bias = None if shift is None else term.bias(shift)
            z = z if bias is None else z + bias
            s = torch.where(z == 0, 0.0, part / z)
            s = s if term.share == 1 else s * term.share
            absorbed = absorbed - s * z
            if bias is not None:
                keeper.add("additive", number, "bias and norm" if self.site.norm is not None else "bias", s * bias)
            self.wanted += [(term, s, sign) for sign in signs]
        keeper.add("absorbed", number, str(self.rule), absorbed, linear=True)
        if not self.wanted:
            self.swapped = None
            return torch.zeros_like(y)
        term, s, sign = self.wanted[0]
        if self.native:
            self.swapped = term.weight(weight, sign)
        return s

    def _first_layer(
        self, rule: LinearRule, x: torch.Tensor, weight: torch.Tensor, relevance: torch.Tensor
    ) -> torch.Tensor:
        map_ = self.site.map
        if isinstance(rule, ZBox):
            low, high = rule.bounds(x, map_.axis if map_.axis > 0 else -1)
            up, down = weight.clamp(min=0), weight.clamp(max=0)
            above, below = x - low, x - high  # no sign is lost in a difference of large sums
            z = map_.apply(above, up) + map_.apply(below, down)
            s = torch.where(z == 0, 0.0, relevance / z)
            found = above * map_.pull(s, up, x) + below * map_.pull(s, down, x)
        else:
            squared = weight.square() if isinstance(rule, WSquare) else torch.ones_like(weight)
            z = map_.apply(torch.ones_like(x), squared)
            s = torch.where(z == 0, 0.0, relevance / z)
            found = map_.pull(s, squared, x)
        self.books.keeper.add("absorbed", self.site.number, str(rule), relevance - s * z, linear=True)
        self.books.direct.append((self.site, found))
        return torch.zeros_like(relevance)

    def _after(self, gradients: Gradients, outer: Gradients) -> Gradients:
        """Add what the native backward did not pull."""
        x, weight, wanted = self.x, self.weight, self.wanted
        self.x = self.weight = self.swapped = None
        self.wanted = []
        passed: list[torch.Tensor | None] = [None] * len(gradients)
        slot = self.site.map.slot
        if x is None or weight is None or isinstance(self.rule, (Flat, WSquare, ZBox)) or not wanted:
            return tuple(passed)
        native = gradients[slot] if self.native else None
        pulled: dict[int, torch.Tensor] = {}
        for index, (term, s, sign) in enumerate(wanted):
            part = native if index == 0 and native is not None else self.site.map.pull(s, term.weight(weight, sign), x)
            pulled[sign] = pulled[sign] + part if sign in pulled else part
        if len(pulled) == 1:
            passed[slot] = next(iter(pulled.values()))
        else:
            passed[slot] = torch.where(x > 0, pulled[1], pulled[-1])
        return tuple(passed)


class EpsilonHook:
    """Damps the multiplier of a site's output by z / (z + epsilon sign(z)); all else is native."""

    def __init__(self, site: Site, rule: Epsilon, keeper: Bookkeeper) -> None:
        self.site, self.rule, self.keeper = site, rule, keeper
        self.output: torch.Tensor | None = None

    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        return [self.site.end.node.register_prehook(self._before)]

    def _before(self, outer: Gradients) -> Gradients | None:
        g = outer[0]
        if g is None:
            return None
        site = self.site
        if site.norm is not None:
            y = _normed(site)
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


def _normed(site: Site) -> torch.Tensor:
    """The output of a site's batch norm, from the input that it has saved."""
    z: torch.Tensor = site.norm._saved_input.detach()
    scale, _ = site.scale_and_shift(z)
    assert scale is not None
    end = int(site.end.node._sequence_nr())  # what the linear node itself adds is in the norm's input already
    own = [torch.as_tensor(c.value, dtype=z.dtype, device=z.device) for n, c in site.constants if n == end]
    return torch.addcmul(sum(own, start=z.new_zeros(())), z, site.map.per_channel(scale, z))


def _signs(x: torch.Tensor) -> tuple[int, ...]:
    """Which signs occur in x: an input that a ReLU made needs half of the work."""
    low, high = torch.aminmax(x)
    if float(low) >= 0:
        return (1,)
    return (-1,) if float(high) <= 0 else (1, -1)
