"""The op table: which relevance rule each operation of autograd's graph gets."""

from __future__ import annotations

import functools
import re
from typing import Any

from .attention import ATTENTION
from .elementwise import ELEMENTWISE
from .normalization import NORMALIZATION
from .products import PRODUCTS
from .row import Kind, Role, Row
from .structure import LINEAR, STOPS

TABLE: dict[str, Row] = {
    **LINEAR,
    **STOPS,
    **ELEMENTWISE,
    **NORMALIZATION,
    **PRODUCTS,
    **ATTENTION,
}

_NAME = re.compile(r"^(?:.*::)?(\w+?)(?:Backward\d*)?$")


@functools.cache
def operation(name: str) -> str:
    """The operation of a node by the node's name, without `Backward0`: `Addmm`, `Gelu`, `CopySlices`."""
    match = _NAME.match(name)
    return match.group(1) if match else name


def lookup(node: Any) -> Row | None:
    """The row of a node's operation; None when the table has none."""
    row = TABLE.get(operation(node.name()))
    return row.refine(node) if row is not None and row.refine is not None else row


__all__ = ["TABLE", "Kind", "Role", "Row", "lookup", "operation"]
