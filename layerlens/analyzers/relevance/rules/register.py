"""Rules for operations that the table does not know: custom autograd functions, and what torch adds next."""

from __future__ import annotations

from typing import Any

import torch

from layerlens.analyzers.graph.operation import Row
from layerlens.errors import OptionError

from . import TABLE


class Registration:
    """A row in the op table, until `remove()`; as a context manager, for the length of a block."""

    def __init__(self, op: str, before: Row | None) -> None:
        self.op, self._before = op, before

    def remove(self) -> None:
        """Put the table back as it was."""
        if self._before is None:
            TABLE.pop(self.op, None)
        else:
            TABLE[self.op] = self._before

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Registration({self.op!r})"


def register(op: str | type[torch.autograd.Function], row: Row, *, replace: bool = False) -> Registration:
    """Tell relevance how it passes an operation.

    Args:
        op: a `torch.autograd.Function`, or the operation's name as the warning about it prints it.
        row: how relevance passes, see `Row`; the node given to its rule is the function's `ctx`.
        replace: whether a row that exists may be replaced.

    Returns:
        The registration; `.remove()` undoes it.

    Raises:
        OptionError: when `row` is no `Row`, or the operation has one and `replace` is False.

    Example:
        >>> class Square(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         return 2 * ctx.saved_tensors[0] * g
        >>> from layerlens.rules import Kind
        >>> with register(Square, Row(Kind.RATIO, lambda ctx, x: (ctx.saved_tensors[0], 0.0))):  # x^2 / x, and f(0)
        ...     pass
    """
    name = op if isinstance(op, str) else op.__name__
    if not isinstance(row, Row):
        raise OptionError(f"row must be a Row, such as Row(Kind.LINEAR), got {row!r}.")
    before: Any = TABLE.get(name)
    if before is not None and not replace:
        raise OptionError(f"{name} has a rule already ({before.kind.value}); replace=True replaces it.")
    TABLE[name] = row
    return Registration(name, before)
