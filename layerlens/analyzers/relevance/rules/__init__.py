"""The op table: which relevance rule each operation of autograd's graph gets."""

from __future__ import annotations

from typing import Any

from layerlens.analyzers.graph.operation import Kind, Role, Row, operation

from .attention import ATTENTION
from .elementwise import ELEMENTWISE
from .normalization import NORMALIZATION
from .products import PRODUCTS
from .structure import LINEAR, STOPS

TABLE: dict[str, Row] = {
    **LINEAR,
    **STOPS,
    **ELEMENTWISE,
    **NORMALIZATION,
    **PRODUCTS,
    **ATTENTION,
}


def lookup(node: Any) -> Row | None:
    """The row of a node's operation; None when the table has none."""
    row = TABLE.get(operation(node.name()))
    return row.refine(node) if row is not None and row.refine is not None else row


__all__ = ["TABLE", "Kind", "Role", "Row", "lookup", "operation"]
