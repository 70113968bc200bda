"""Two runs of a model, and one backward pass that explains the difference of their scores to the last bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlens.analyzers.common.scorer import Leaves, Scorer, backward_pass
from layerlens.analyzers.graph.graph import ACCUMULATE, Graph
from layerlens.analyzers.graph.operation import Gradients
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.errors import TargetError, warn
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.placement import refuse_sharded

from ..layer_relevance import LayerOutputs
from ..rules.operation_table import TABLE
from .operation_calls import OperationCalls
from .pairs import DEEP_LIFT, Method, Pair, Rule, Run, pair_up
from .table import WANTED, changed_choices, rule_of


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The contribution of every value to the difference of the scores of two runs.

    Attributes:
        values: contributions by leaf, shaped like it.
        multipliers: m by leaf, shaped like it: the values are m (x - x').
        at: multipliers at the edges that were read; None where none arrived.
        score: score of the input, `(batch,)`.
        baseline_score: score of the baseline, `(batch,)`.
        moved: operations that chose otherwise for the baseline.
    """

    values: Leaves
    multipliers: Leaves
    at: list[torch.Tensor | None]
    score: torch.Tensor
    baseline_score: torch.Tensor
    moved: list[str]


def compare(
    scorer: Scorer,
    reference: Callable[[], Scorer],
    starts: Leaves | None,
    wanted: frozenset[str] = frozenset(),
    special: Callable[[list[Pair]], dict[int, Rule]] | None = None,
    outputs: tuple[LayerOutputs, LayerOutputs] | None = None,
    method: Method = DEEP_LIFT,
) -> Comparison:
    """Compare a borrowed, frozen model on its input with another run.

    Args:
        scorer: scores the input.
        reference: what scores the other run; called after the first.
        starts: leaves of the other run, shaped like those of the input; None for its own.
        wanted: keys of further operations whose values are read.
        special: pairs of operations -> rules of some, by the identity of their node.
        outputs: what keeps outputs of layers during each run; multipliers are read at those of the first.
        method: names for messages.

    Raises:
        TargetError: when no gradient reaches the input.
    """
    refuse_sharded(scorer.model, method.name, method.sharded)
    leaves, states = scorer.start(), generator_states()
    here, there = outputs or (contextlib.nullcontext(), contextlib.nullcontext())
    with here:
        one = _run(scorer, leaves, WANTED | wanted)
    if one.score.grad_fn is None or not one.graph.visit(one.score.grad_fn).depends:
        raise TargetError(f"no gradient flows from the score {scorer.target.label!r} to the input.")
    restore_generators(states)  # a model that draws random numbers draws the same ones
    second = reference()
    starts = second.values() if starts is None else starts
    begin = {name: _in_layout_of(leaf, starts[name]) for name, leaf in leaves.items()}
    with there:
        other = _run(second, begin, WANTED | wanted)
    pairs = pair_up(one, other, method)
    edges = [] if outputs is None else outputs[0].edges()
    found, at = _multipliers(scorer.model, one, leaves, pairs, {} if special is None else special(pairs), edges, method)
    multipliers = {
        name: torch.zeros_like(leaf) if multiplier is None else multiplier
        for (name, leaf), multiplier in zip(leaves.items(), found, strict=True)
    }
    values = {name: (leaf.detach() - starts[name]) * multipliers[name] for name, leaf in leaves.items()}
    return Comparison(values, multipliers, at, one.score.detach(), other.score.detach(), changed_choices(pairs))


def _in_layout_of(leaf: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """A baseline in the memory layout of its leaf; torch runs other operations on another layout."""
    return torch.empty_like(leaf, requires_grad=False).copy_(start).requires_grad_()


def _run(scorer: Scorer, leaves: Leaves, wanted: frozenset[str]) -> Run:
    """The model's forward pass on `leaves`, with fused attention in primitives."""
    graph, calls = Graph(leaves.values(), TABLE), OperationCalls(wanted)
    with sdpa_kernel(SDPBackend.MATH), Recorder(graph, noting=False), calls:
        score = scorer(leaves)
    return Run(score, graph, calls)


def _multipliers(
    model: nn.Module,
    one: Run,
    leaves: Leaves,
    pairs: list[Pair],
    special: dict[int, Rule],
    edges: Sequence[GradientEdge],
    method: Method,
) -> tuple[Gradients, list[torch.Tensor | None]]:
    """The multipliers of the leaves and of edges: one backward pass with the rules instead of the gradients."""
    arrived: list[torch.Tensor | None] = [None] * len(edges)

    def read(place: int, slot: int, outer: Gradients) -> None:
        arrived[place] = outer[slot]

    handles: list[Any] = [
        edge.node.register_prehook(functools.partial(read, place, edge.output_nr)) for place, edge in enumerate(edges)
    ]
    unknown: set[str] = set()
    try:
        for pair in pairs:
            try:
                rule = special.get(id(pair.info)) or rule_of(pair)
            except KeyError:
                unknown.add(pair.info.op)
                continue
            if rule is not None:
                handles.append(pair.info.node.register_hook(_hook(pair, rule)))
        if unknown:
            warn(
                f"{method.name}: no rule is known for {', '.join(sorted(unknown))}: the gradient is used, so the "
                f"values need not sum to the difference of the scores{method.check}.",
            )
        # .backward, as .grad would keep nodes that rules call on the way from computing anything outside of its graph
        # in primitives again, for blocks that are computed again
        with sdpa_kernel(SDPBackend.MATH), backward_pass(model), _gradients_restored(one.score.grad_fn):
            one.score.sum().backward()  # type: ignore[no-untyped-call]
            return tuple(leaf.grad for leaf in leaves.values()), arrived
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _gradients_restored(root: Any) -> Iterator[None]:
    """Restore the `.grad` of every tensor at which the graph of `root` ends."""
    seen, stack, before = {root}, [root], []
    while stack:
        node = stack.pop()
        if node.name() == ACCUMULATE:
            before.append((node.variable, node.variable.grad))
            node.variable.grad = None
        new = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= new
        stack.extend(new)
    try:
        yield
    finally:
        for tensor, gradient in before:
            tensor.grad = gradient


def _hook(pair: Pair, rule: Rule) -> Callable[[Gradients, Gradients], Gradients | None]:
    def hook(gradients: Gradients, outer: Gradients) -> Gradients | None:
        return rule(pair, gradients, outer)

    return hook
