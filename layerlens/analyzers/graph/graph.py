"""Autograd's graph as relevance sees it: which nodes depend on the leaves, which carry relevance, what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch

from .operation import Kind, Node, Role, Row, operation

ACCUMULATE = "torch::autograd::AccumulateGrad"
"""The name of the nodes at which leaves and parameters end."""


@dataclasses.dataclass(slots=True, eq=False)
class NodeInfo:
    """What is known of one node of the graph.

    Attributes:
        node: the node.
        op: name of its operation.
        row: its row in the operation table; None if it has none.
        edges: the nodes that made its inputs, None for those that need no gradient.
        depends: whether it is computed from a leaf.
        carries: whether relevance can pass through it to a leaf.
        carrying: the slots whose inputs carry relevance and may be given some.
        role: role of its output as a factor of a product.
        shift: sequence number of the operation that added a constant to a squashing function; -1 if none did.
    """

    node: Node
    op: str
    row: Row | None
    edges: tuple[NodeInfo | None, ...]
    depends: bool
    carries: bool
    carrying: tuple[int, ...] = ()
    role: Role = Role.SIGNAL
    shift: int = -1

    @property
    def number(self) -> int:
        """Sequence number of the node, in order of execution."""
        return int(self.node._sequence_nr())

    @property
    def stops(self) -> bool:
        """Whether relevance of its inputs cannot enter it."""
        return self.depends and not self.carries and any(edge is not None and edge.carries for edge in self.edges)

    def admits(self, slot: int) -> bool:
        """Whether relevance may enter the input in `slot` at all."""
        return self.row is None or self.row.slots is None or slot in self.row.slots

    def factors(self) -> tuple[int, ...]:
        """The carrying slots that multiply each other."""
        adding = self.row.adding if self.row is not None else ()
        return tuple(slot for slot in self.carrying if slot not in adding)


class Graph:
    """What is known of the nodes behind tensors, looked up on demand; each node is visited once.

    Args:
        leaves: tensors at which relevance ends.
        table: operation -> its row.
    """

    def __init__(self, leaves: Iterable[torch.Tensor], table: Mapping[str, Row]) -> None:
        self._table = table
        self._leaves = {id(leaf) for leaf in leaves}
        self._visited: dict[Node, NodeInfo] = {}

    def add_leaves(self, leaves: Iterable[torch.Tensor]) -> None:
        """Let relevance end at further tensors, which no visited node was made of."""
        self._leaves |= {id(leaf) for leaf in leaves}

    def info(self, tensor: torch.Tensor) -> NodeInfo | None:
        """Describe the node that made `tensor`; None for a leaf or a constant."""
        return None if tensor.grad_fn is None else self.visit(tensor.grad_fn)

    def carries(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` carries relevance to a leaf."""
        info = self.info(tensor)
        return id(tensor) in self._leaves if info is None else info.carries

    def stops(self, tensor: torch.Tensor) -> str:
        """Name the operations that keep relevance from entering `tensor`, which depends on a leaf."""
        info = self.info(tensor)
        return "" if info is None else ", ".join(sorted({stop.op for stop in stops(info)}))

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is computed from a leaf."""
        info = self.info(tensor)
        return id(tensor) in self._leaves if info is None else info.depends

    def visit(self, root: Node | torch.autograd.graph.Node) -> NodeInfo:
        """Describe `root` and, on the way, all nodes that it is computed from."""
        visited, root = self._visited, cast(Node, root)
        stack = [] if root in visited else [root]
        while stack:
            node = stack[-1]
            if node in visited:
                stack.pop()
                continue
            children = [child for child, _ in node.next_functions]
            missing = [child for child in children if child is not None and child not in visited]
            if missing:
                stack.extend(missing)
            else:
                visited[stack.pop()] = self._describe(node, children)
        return visited[root]

    def reached(self, root: NodeInfo) -> list[NodeInfo]:
        """The nodes between `root` and the leaves; `root` first."""
        reached: dict[int, NodeInfo] = {id(root): root}
        stack = [root]
        while stack:
            for edge in stack.pop().edges:
                if edge is not None and edge.depends and id(edge) not in reached:
                    reached[id(edge)] = edge
                    stack.append(edge)
        return list(reached.values())

    def _describe(self, node: Node, children: Sequence[Node | None]) -> NodeInfo:
        name = node.name()
        if name == ACCUMULATE:  # a leaf of ours, or a parameter
            ours = id(node.variable) in self._leaves
            return NodeInfo(node, "leaf", None, (), ours, ours)
        edges = tuple([None if child is None else self._visited[child] for child in children])
        depends = any(edge.depends for edge in edges if edge is not None)
        info = NodeInfo(node, operation(name), None, edges, depends, False)
        if info.depends:
            row = self._table.get(info.op)
            info.row = row if row is None or row.refine is None else row.refine(node)
            if info.row is None or info.row.kind is not Kind.STOP:
                slots = range(len(edges)) if info.row is None or info.row.slots is None else info.row.slots
                info.carrying = tuple(
                    slot for slot in slots if slot < len(edges) and (edge := edges[slot]) and edge.carries
                )
                info.carries = bool(info.carrying)
                if info.row is not None and info.row.several is not None and any(info.carrying):
                    info.row = info.row.several
            if info.carries:
                info.role, info.shift = _role(info)
        return info


def stops(root: NodeInfo) -> list[NodeInfo]:
    """Return the nodes behind `root`, which carries nothing, that relevance of their inputs cannot enter."""
    found: dict[int, NodeInfo] = {}
    stack = [root]
    while stack:
        info = stack.pop()
        if id(info) not in found:
            found[id(info)] = info
            stack.extend(edge for edge in info.edges if edge is not None and edge.depends and not edge.carries)
    return [info for info in found.values() if info.stops]


def _role(info: NodeInfo) -> tuple[Role, int]:
    """The role of a node's output, and where a constant was added to a squashing function on the way."""
    row = info.row
    roles = {(edge.role, edge.shift) for slot in info.carrying if (edge := info.edges[slot]) is not None}
    if row is None or row.role is not Role.SAME:
        sizes = row is not None and row.kind is Kind.LINEAR and {role for role, _ in roles} == {Role.SIZE}
        return (Role.SIZE if sizes else Role.SIGNAL if row is None else row.role), -1
    if len(roles) != 1:
        return Role.SIGNAL, -1
    role, shift = next(iter(roles))
    if role is Role.SQUASH and info.op in ("Add", "Sub", "Rsub") and len(info.carrying) == 1:
        return role, info.number
    return role, shift
