"""The operation table: which relevance rule each operation of autograd's graph gets, and how to add one."""

from __future__ import annotations

import torch

from layerlens.analyzers.graph.operation import Row
from layerlens.errors import OptionError
from layerlens.signatures import public

from .attention import ATTENTION
from .elementwise import ELEMENTWISE
from .first_order import FIRST_ORDER
from .normalization import NORMALIZATION
from .products import PRODUCTS
from .recurrent import ROW, RecurrentLayer
from .structure import LINEAR, STOPS

TABLE: dict[str, Row] = {
    **LINEAR, **STOPS, **ELEMENTWISE, **FIRST_ORDER, **NORMALIZATION, **PRODUCTS, **ATTENTION,
    RecurrentLayer.__name__: ROW,
}  # fmt: skip
"""Operation -> its row."""


class Registration:
    """A row in the operation table, until `remove()`; as a context manager, for the length of a block."""

    def __init__(self, op: str, before: Row | None) -> None:
        self.op, self._before = op, before

    def remove(self) -> None:
        """Restore the table as it was."""
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


@public
def register(op: str | type[torch.autograd.Function], row: Row, *, replace: bool = False) -> Registration:
    """Register how relevance passes an operation: a custom autograd function, or one that torch added.

    Args:
        op: a `torch.autograd.Function`, or the operation's name as the warning about it prints it.
        row: how relevance passes, see `Row`; the node given to its rule is the function's `ctx`.
        replace: whether to replace a row that exists.

    Returns:
        The registration; `.remove()` undoes it.

    Raises:
        OptionError: if `row` is not a `Row`, or the operation has one and `replace` is False.

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
    before = TABLE.get(name)
    if before is not None and not replace:
        raise OptionError(f"{name} has a rule already ({before.kind.value}); replace=True replaces it.")
    TABLE[name] = row
    return Registration(name, before)
