"""Two runs of a model side by side: each node of the one's graph with the same node of the other's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from layerlens.analyzers.graph.graph import Graph, NodeInfo
from layerlens.analyzers.graph.operation import Gradients
from layerlens.errors import InputError

from .operation_calls import OperationCall, OperationCalls


@dataclasses.dataclass(frozen=True)
class Method:
    """How messages name the method that compares two runs, and what to take instead.

    Attributes:
        name: the method.
        other: the input of the other run.
        sharded: what to do where the model is sharded.
        instead: what to give where both runs are not made of the same operations.
        check: what shows whether the values add up.
    """

    name: str = "deep_lift"
    other: str = "the baseline"
    sharded: str = "Take integrated_gradients, or relevance with the model under FSDP2."
    instead: str = (
        "a baseline that takes the same route, or a method that needs none, such as input_x_gradient or relevance"
    )
    check: str = "; the completeness gap shows by how much"

    def other_route(self, what: str) -> InputError:
        """Return the error for runs that are not made of the same operations."""
        return InputError(
            f"the model took another route for {self.other} than for the input ({what}), and {self.name} compares the "
            f"two runs operation by operation. Give {self.instead}."
        )


DEEP_LIFT = Method()


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One operation of the run on the input, with that of the run on the baseline.

    Attributes:
        info: the node of the run on the input.
        reference: the node of the run on the baseline.
        call: values of the run on the input; None when they were not kept.
        reference_call: values of the run on the baseline; None when they were not kept.
    """

    info: NodeInfo
    reference: Any
    call: OperationCall | None
    reference_call: OperationCall | None

    @property
    def slots(self) -> tuple[int, ...]:
        """The inputs of the node that depend on the model's input."""
        return tuple(slot for slot, edge in enumerate(self.info.edges) if edge is not None and edge.depends)

    @property
    def calls(self) -> tuple[OperationCall, OperationCall] | None:
        """The values of both runs; None when they were not kept, or when other tensors need gradients as well."""
        if self.call is None or self.reference_call is None:
            return None
        fits = len(self.call.varied) == len(self.reference_call.varied) == len(self.slots)
        return (self.call, self.reference_call) if fits else None


Rule = Callable[[Pair, Gradients, Gradients], "Gradients | None"]
"""`(pair, gradients, multiplier of each result) -> multipliers of the inputs`; None for the gradients as they are."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one forward pass left.

    Attributes:
        score: score of each sample.
        graph: graph, which knows what depends on the leaves.
        calls: the values of the operations.
    """

    score: torch.Tensor
    graph: Graph
    calls: OperationCalls


def pair_up(one: Run, other: Run, method: Method) -> list[Pair]:
    """Pair the operations of two runs.

    Args:
        one: the run on the input.
        other: the run on the baseline.
        method: names for messages.

    Raises:
        InputError: when the two runs are not made of the same operations.
    """
    if one.score.grad_fn is None or other.score.grad_fn is None:
        raise method.other_route("the score of the baseline does not depend on it")
    root, other_root = one.graph.visit(one.score.grad_fn), other.graph.visit(other.score.grad_fn)
    partner: dict[int, NodeInfo] = {id(root): other_root}
    stack = [root]
    pairs: list[Pair] = []
    while stack:
        info = stack.pop()
        reference = partner[id(info)]
        _check(info, reference, method)
        if info.op == "leaf":
            continue
        calls = one.calls.of(info.node, info.op), other.calls.of(reference.node, reference.op)
        pairs.append(Pair(info, reference.node, *calls))
        for edge, other_edge in zip(info.edges, reference.edges, strict=True):
            if edge is None or other_edge is None or not edge.depends:
                continue
            if id(edge) not in partner:
                partner[id(edge)] = other_edge
                stack.append(edge)
            elif partner[id(edge)] is not other_edge:
                raise method.other_route(f"it uses the result of {edge.op} elsewhere")
    return pairs


def _check(info: NodeInfo, reference: NodeInfo, method: Method) -> None:
    """Refuse two nodes that are not the same operation on the same inputs, in the same shapes.

    Raises:
        InputError: when they differ.
    """
    if info.op != reference.op or info.node.name() != reference.node.name():
        raise method.other_route(f"{reference.op} instead of {info.op}")
    depends, other = ([edge is not None and edge.depends for edge in node.edges] for node in (info, reference))
    if depends != other:
        raise method.other_route(f"{info.op} has other inputs")
    if info.op != "leaf" and _shapes(info) != _shapes(reference):
        raise method.other_route(f"{info.op} gives another shape")


def _shapes(info: NodeInfo) -> list[tuple[int, ...]]:
    return [tuple(part.shape) for part in info.node._input_metadata]
