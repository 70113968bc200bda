"""Operations of autograd's graph: their names, and the rows that say how relevance passes each."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Callable
from typing import Any

import torch

Gradients = tuple[torch.Tensor | None, ...]
Fused = tuple[Gradients, tuple[torch.Tensor, ...]]
"""Multipliers of the inputs, and the terms whose sum is what was absorbed."""


class Kind(enum.Enum):
    """How relevance passes an operation, in multiplier form: R = a * g for every tensor a."""

    LINEAR = "gradient"  # y is linear in its signal inputs together: the gradient is the epsilon -> 0 rule
    RATIO = "ratio"  # elementwise y = f(x): g (f(x) - f(0)) / x, and g f(0) is absorbed
    NORM = "scale constant"  # normalisation: the scale is a constant, the centring stays
    PRODUCT = "product"  # y = a b: split between the factors that carry relevance
    FUSED = "fused"  # several steps in one node
    TAYLOR = "gradient, rest absorbed"  # first-order: the gradient, and y g - x g_x is absorbed
    STOP = "stop"  # no relevance enters


class Role(enum.Enum):
    """What an operation's output is when it meets another factor in a product."""

    SIGNAL = "signal"
    GATE = "gate"  # sigmoid, exp, ...: weighs a signal
    WEIGHT = "attention weight"  # softmax: weighs the values
    SQUASH = "squash"  # tanh, erf: a signal by itself; a gate once a number is added, as in (1 + tanh(x)) / 2
    SAME = "same"  # shape operations: what their input is


@dataclasses.dataclass(frozen=True)
class Row:
    """How one operation is treated.

    Attributes:
        kind: how relevance passes.
        rule: the function that makes the multipliers of the inputs; its signature depends on `kind`:
            RATIO `(node, x) -> (ratio, f(0))` with x the recorded input or None; NORM `(node, g) -> g_x`;
            FUSED `(node, gradients, g, rulebook) -> (multipliers, absorbed)`; TAYLOR `(node) -> (y, x)`.
        slots: the inputs (positions in `next_functions`) that relevance may enter; None for all.
        role: what the output is as a factor of a product.
        label: for FUSED, what is shown as its rule; `{attention}` and `{product}` stand for the rulebook's choices.
        refine: `node -> Row` for operations whose kind depends on their options.
        adding: slots of a product that add instead of multiply.
    """

    kind: Kind
    rule: Callable[..., Any] | None = None
    slots: tuple[int, ...] | None = None
    role: Role = Role.SIGNAL
    label: str = ""
    refine: Callable[[Any], Row] | None = None
    adding: tuple[int, ...] = ()


_NAME = re.compile(r"^(?:.*::)?(\w+?)(?:Backward\d*)?$")


@functools.cache
def operation(name: str) -> str:
    """Return the operation of a node by the node's name, without `Backward0`: `Addmm`, `Gelu`, `CopySlices`."""
    match = _NAME.match(name)
    return match.group(1) if match else name
