"""Operations of autograd's graph: their nodes, their names, and the rows that say how relevance passes each."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch


class Node(Protocol):
    """A node of autograd's graph, or the `ctx` of a custom function; what it saved is in attributes `_saved_*`."""

    @property
    def next_functions(self) -> tuple[tuple[Node | None, int], ...]:
        """The nodes that made its inputs, each with the position among that node's outputs."""

    def name(self) -> str:
        """The name that torch gives the node, such as `AddmmBackward0`."""

    def __getattr__(self, name: str) -> Any: ...


Gradients: TypeAlias = tuple[torch.Tensor | None, ...]
Fused: TypeAlias = tuple[Gradients, tuple[torch.Tensor, ...]]
"""Multipliers of the inputs, and the terms whose sum is absorbed."""


class Kind(enum.Enum):
    """How relevance passes an operation, in multiplier form: R = a * g for every tensor a."""

    LINEAR = "gradient"  # y is linear in its signal inputs together: the gradient is the epsilon -> 0 rule
    RATIO = "ratio"  # elementwise y = f(x): g (f(x) - f(0)) / x, and g f(0) is absorbed
    NORM = "scale constant"  # normalization: the scale is a constant, the centering stays
    PRODUCT = "product"  # y = a b: split between the factors that carry relevance
    FUSED = "fused"  # several steps in one node
    WHOLE = "whole layer"  # a node of layerlens, whose backward pass follows the rules itself
    TAYLOR = "gradient, rest absorbed"  # first-order: the gradient, and y g - x g_x is absorbed
    STOP = "stop"  # no relevance enters


class Role(enum.Enum):
    """What the output of an operation does as a factor of a product."""

    SIGNAL = "signal"
    GATE = "gate"  # sigmoid, exp, ...: weighs a signal
    WEIGHT = "attention weight"  # softmax: weighs the values
    SIZE = "size"  # norm, std, sqrt: a scale where it multiplies a signal, a signal by itself
    SQUASH = "squash"  # tanh, erf: a signal by itself; a gate once a number is added, as in (1 + tanh(x)) / 2
    SAME = "same"  # shape operations: the role of their input


@dataclasses.dataclass(frozen=True)
class Row:
    """How one operation is treated.

    Attributes:
        kind: how relevance passes.
        rule: function that makes the multipliers of the inputs; its signature depends on `kind`:
            RATIO `(node, x) -> (ratio, f(0))` with x the recorded input or None; NORM `(node, g) -> g_x`;
            FUSED `(node, gradients, g, rulebook) -> (multipliers, absorbed)`; TAYLOR `(node) -> (y, *xs)`, the output
            and the inputs by slot; LINEAR may have the same, so that constants among its inputs are booked;
            WHOLE `(node, rulebook, book) -> handle`, until `handle.remove()`.
        slots: inputs (positions in `next_functions`) that relevance may enter; None for all.
        role: role of the output as a factor of a product.
        label: for FUSED and WHOLE, the rule as shown; `{attention}` and `{product}` become the rulebook's choices.
        refine: `node -> Row` for operations whose kind depends on their options.
        adding: slots of a product that add instead of multiply.
        backward: the one operation of which the node's own backward pass consists, and of whose result the rule needs
            nothing: it does not run then.
        several: row used instead when an input other than the first carries relevance.
        why: why relevance does not enter (STOP, or inputs outside `slots`), as messages say it.
    """

    kind: Kind
    rule: Callable[..., Any] | None = None
    slots: tuple[int, ...] | None = None
    role: Role = Role.SIGNAL
    label: str = ""
    refine: Callable[[Any], Row] | None = None
    adding: tuple[int, ...] = ()
    backward: torch._ops.OpOverload | None = None
    several: Row | None = None
    why: str = "it measures a size, by which others divide"


_NAME = re.compile(r"^(?:.*::)?(?:GeneratedBackwardFor_)?(\w+?)(?:_default)?(?:Backward\d*)?(?:_copy)?>?$")


@functools.cache
def operation(name: str) -> str:
    """Return the operation of a node by the node's name, without `Backward0`: `Addmm`, `Gelu`, `CopySlices`.

    An operator of a library is called by namespace and name: `torchvision_roi_align`.
    """
    match = _NAME.match(name)
    return match.group(1) if match else name


def relevance_of(value: torch.Tensor | complex, multiplier: torch.Tensor) -> torch.Tensor:
    """Return R = a g; for complex numbers, whose gradients are conjugate in torch, the real part of a conj(g)."""
    return (multiplier.conj() * value).real if multiplier.is_complex() else multiplier * value
