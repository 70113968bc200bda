"""Autograd's graph as relevance sees it: which nodes depend on the leaves, which carry relevance, what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .operation import Kind, Role, Row, operation

ACCUMULATE = "torch::autograd::AccumulateGrad"
"""The name of the nodes at which leaves and parameters end."""


@dataclasses.dataclass(slots=True, eq=False)
class NodeInfo:
    """What is known of one node of the graph.

    Attributes:
        node: the node.
        op: name of its operation.
        row: its row in the op table; None when there is none.
        edges: the nodes that made its inputs, None for those that need no gradient.
        depends: whether it is computed from a leaf.
        carries: whether relevance can pass through it to a leaf.
        carrying: the slots whose inputs carry relevance and may be given some.
        role: what its output is as a factor of a product.
        shift: sequence number of the operation that added a constant to a squashing function; -1 when none did.
    """

    node: Any
    op: str
    row: Row | None
    edges: tuple[NodeInfo | None, ...]
    depends: bool
    carries: bool
    carrying: tuple[int, ...] = ()
    role: Role = Role.SIGNAL
    shift: int = -1

    def open(self, slot: int) -> bool:
        """Whether relevance may enter the input in `slot` at all."""
        return self.row is None or self.row.slots is None or slot in self.row.slots

    def factors(self) -> tuple[int, ...]:
        """The carrying slots that multiply each other."""
        adding = self.row.adding if self.row is not None else ()
        return tuple(slot for slot in self.carrying if slot not in adding)


class Graph:
    """Information about the nodes behind tensors, found as they are asked for; each node is visited once.

    Args:
        leaves: the tensors at which relevance ends.
        lookup: returns the row of a node's operation; None when there is none.
    """

    def __init__(self, leaves: Iterable[torch.Tensor], lookup: Callable[[Any], Row | None]) -> None:
        self._lookup = lookup
        self._leaves = {id(leaf) for leaf in leaves}
        self._known: dict[Any, NodeInfo] = {}

    def info(self, tensor: torch.Tensor) -> NodeInfo | None:
        """What made `tensor`; None for a leaf or a constant."""
        return None if tensor.grad_fn is None else self.visit(tensor.grad_fn)

    def carries(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` carries relevance to a leaf."""
        info = self.info(tensor)
        return id(tensor) in self._leaves if info is None else info.carries

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is computed from a leaf."""
        info = self.info(tensor)
        return id(tensor) in self._leaves if info is None else info.depends

    def visit(self, root: Any) -> NodeInfo:
        """The information of `root` and, on the way, of all nodes that it is computed from."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self._known:
                stack.pop()
                continue
            missing = [child for child, _ in node.next_functions if child is not None and child not in self._known]
            if missing:
                stack.extend(missing)
            else:
                self._known[node] = self._describe(node)
                stack.pop()
        return self._known[root]

    def reached(self, root: NodeInfo) -> list[NodeInfo]:
        """The nodes from which `root` is computed, and which are computed from a leaf; `root` first."""
        found: dict[int, NodeInfo] = {id(root): root}
        stack = [root]
        while stack:
            for edge in stack.pop().edges:
                if edge is not None and edge.depends and id(edge) not in found:
                    found[id(edge)] = edge
                    stack.append(edge)
        return list(found.values())

    def _describe(self, node: Any) -> NodeInfo:
        name = node.name()
        if name == ACCUMULATE:  # a leaf of ours, or a parameter
            ours = id(node.variable) in self._leaves
            return NodeInfo(node, "leaf", None, (), ours, ours)
        edges = tuple(None if child is None else self._known[child] for child, _ in node.next_functions)
        info = NodeInfo(node, operation(name), None, edges, any(edge.depends for edge in edges if edge), False)
        if info.depends:
            info.row = self._lookup(node)
            if info.row is None or info.row.kind is not Kind.STOP:
                open_slots = range(len(edges)) if info.row is None or info.row.slots is None else info.row.slots
                info.carrying = tuple(
                    slot for slot in open_slots if slot < len(edges) and (edge := edges[slot]) and edge.carries
                )
                info.carries = bool(info.carrying)
            if info.carries:
                info.role, info.shift = _role(info)
        return info


def _role(info: NodeInfo) -> tuple[Role, int]:
    """The role of a node's output, and where a constant was added to a squashing function on the way."""
    row = info.row
    if row is None or row.role is not Role.SAME:
        return (Role.SIGNAL if row is None else row.role), -1
    found = {(edge.role, edge.shift) for slot in info.carrying if (edge := info.edges[slot]) is not None}
    if len(found) != 1:
        return Role.SIGNAL, -1
    role, shift = next(iter(found))
    if role is Role.SQUASH and info.op in ("Add", "Sub", "Rsub") and len(info.carrying) == 1:
        return role, int(info.node._sequence_nr())
    return role, shift
