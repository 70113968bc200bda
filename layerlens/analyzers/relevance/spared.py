"""Nodes whose own backward pass does not run, because a rule makes all of what it would make.

A hook after a node cannot replace a gradient that is missing, so the node runs on a stand-in for the multiplier: when
torch asks it for the one operation of which the node's backward pass consists, it answers with what the rule makes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from layerlens.analyzers.graph.operation import Gradients

Hook: TypeAlias = Callable[[Gradients, Gradients], "Gradients | None"]
"""A hook after a node: (gradients of its inputs, multipliers of its outputs) to multipliers of its inputs."""

WORTH_SPARING = 1 << 14
"""Numbers from which on an operation takes longer than not running it."""


class Spared:
    """Spare a node its own backward pass, which is one operation, where a hook replaces all of what it makes.

    Args:
        backward: the operation.
        hook: the hook; it gets no gradients where the operation is spared.
    """

    def __init__(self, backward: torch._ops.OpOverload, hook: Hook) -> None:
        self._backward, self._hook = backward, hook
        self._asked: Asked | None = None

    def before(self, outer: Gradients) -> Gradients | None:
        """Give the node a multiplier that answers for its operation."""
        g, self._asked = outer[0], None
        if g is None or g.numel() < WORTH_SPARING or type(g) is not torch.Tensor:
            return None
        self._asked = Asked(g, self._backward, functools.partial(self._hook, (None,) * 3, outer))
        return (self._asked, *outer[1:])

    def after(self, gradients: Gradients, outer: Gradients) -> Gradients | None:
        """Apply the rule, unless that is done."""
        asked, self._asked = self._asked, None
        if asked is None:
            return self._hook(gradients, outer)
        return None if asked.rule is None else self._hook(gradients, (asked.multiplier, *outer[1:]))


class Asked(torch.Tensor):
    """A multiplier for which a rule answers when it is asked for one operation; all others run on the multiplier."""

    multiplier: torch.Tensor
    operation: torch._ops.OpOverload
    rule: Callable[[], Gradients | None] | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type[Asked], g: torch.Tensor, operation: torch._ops.OpOverload, rule: Callable[[], Gradients | None]
    ) -> Asked:
        """Make the stand-in for `g`."""
        made: Asked = torch.Tensor._make_wrapper_subclass(
            cls, g.shape, strides=g.stride(), dtype=g.dtype, device=g.device, layout=g.layout
        )
        made.multiplier, made.operation, made.rule = g, operation, rule
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: torch._ops.OpOverload, kinds: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer, or run the operation on the multiplier."""
        asked = next(part for part in args if isinstance(part, cls))
        if function is asked.operation and asked.rule is not None:
            rule, asked.rule = asked.rule, None
            passed = rule()
            return passed[0] if passed and len(function._schema.returns) == 1 else passed
        return function(*(part.multiplier if isinstance(part, cls) else part for part in args), **(kwargs or {}))
