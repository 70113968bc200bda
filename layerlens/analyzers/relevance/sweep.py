"""The third act of a relevance propagation: a backward pass for each score, with rules as hooks on autograd's nodes."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.analyzers.graph.constant import Constant
from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.linear_operations import BATCH_NORMS, LinearOperation
from layerlens.analyzers.graph.operation import Gradients, Kind, Node, relevance_of
from layerlens.errors import RelevanceError, warn
from layerlens.progress import track

from .book import Bookkeeper, Sweep
from .linear_hooks import attach_linear
from .plan import Plan, PlannedNode
from .record import Recording, innermost
from .rules.rulebook import Rulebook
from .spared import Hook, Spared


def sweep(recording: Recording, plan: Plan, bookkeeper: Bookkeeper) -> list[Sweep]:
    """Propagate each score in turn.

    Args:
        recording: the forward pass.
        plan: the rules.
        bookkeeper: notes what is absorbed and what constants get.

    Raises:
        RelevanceError: if a rule does not fit the model.
    """
    ends = ends_of(recording)
    scores = recording.scores.values
    sweeps = []
    with rules_attached(recording, plan, bookkeeper):
        for index, score in enumerate(scores if len(scores) < 2 else track(scores, "relevance")):
            keep = plan.keeps_graph or index < len(scores) - 1
            sweeps.append(one_sweep(recording, bookkeeper, ends, score, torch.ones_like(score), keep=keep))
    if recording.conditions is not None:
        recording.conditions.check()
    warn_of_cuts(recording)
    for one in sweeps:
        bookkeeper.sweep = one
        one.carried = carry_to_ends(one.first_layer, ends, bookkeeper)
    return sweeps


def ends_of(recording: Recording) -> list[Any]:
    """Return where multipliers are read: the leaves, then the outputs of layers."""
    return [*recording.leaves.values(), *([] if recording.outputs is None else recording.outputs.edges())]


@contextlib.contextmanager
def rules_attached(recording: Recording, plan: Plan, bookkeeper: Bookkeeper) -> Iterator[None]:
    """Hook the rules to the nodes of the graph while a `with` block runs backward passes."""
    outputs, conditions = recording.outputs, recording.conditions
    read: list[Any] = [] if outputs is None else [edge.node for edge in outputs.edges()]
    if conditions is not None:
        read += conditions.nodes
        conditions.on_held(lambda node, output, g: _book_held(bookkeeper, node, output, g))
    bookkeeper.folded.update(dict.fromkeys(read))
    handles: list[RemovableHandle] = []
    try:
        handles += itertools.chain.from_iterable(
            attach_linear(planned, bookkeeper, spare=not recording.parameters.tensors) for planned in plan.linear
        )
        handles += _hook_nodes(recording, plan, bookkeeper)
        yield
    finally:
        for handle in handles:
            handle.remove()


def one_sweep(
    recording: Recording,
    bookkeeper: Bookkeeper,
    ends: Sequence[Any],
    start: torch.Tensor | GradientEdge,
    multiplier: torch.Tensor,
    *,
    keep: bool,
) -> Sweep:
    """Run one backward pass.

    Args:
        recording: the forward pass.
        bookkeeper: notes what is absorbed and what constants get.
        ends: where multipliers are read.
        start: score, or an edge of the graph.
        multiplier: the multiplier there.
        keep: whether the graph is needed again.
    """
    bookkeeper.sweep = sweep = Sweep()
    every, calls = [*ends, *recording.parameters.tensors], recording.calls
    with backward_pass(recording.model):
        multipliers = (
            torch.autograd.grad(start, every, multiplier, allow_unused=True, retain_graph=keep)
            if calls is None
            else calls.gradients(start, every, multiplier)
        )
    sweep.ends, sweep.parameters = multipliers[: len(ends)], multipliers[len(ends) :]
    return sweep


def _book_held(bookkeeper: Bookkeeper, node: Node, output: torch.Tensor, g: torch.Tensor) -> None:
    normalized = bookkeeper.folded.get(node)
    held = relevance_of(output if normalized is None else normalized[0], g)
    bookkeeper.add("absorbed", int(node._sequence_nr()), "held back by the condition", held)


def warn_of_cuts(recording: Recording) -> None:
    """Say where the model detaches a signal: what it adds from there on looks like a constant."""
    cuts = recording.notes.added_cuts
    if cuts:
        places = innermost(recording.spans, sorted(cuts))
        where = ", ".join(dict.fromkeys(repr(path) if path else "the model itself" for path in places.values()))
        warn(
            f"relevance: the model detaches a signal in {where}, so relevance is cut there (by "
            f"{', '.join(dict.fromkeys(cuts.values()))}); what the detached signal adds is booked with the additive "
            "constants.",
        )


def _hook_nodes(recording: Recording, plan: Plan, bookkeeper: Bookkeeper) -> Iterator[RemovableHandle]:
    """Hook the nodes that need a rule, and yield the handles."""
    for planned in plan.nodes:
        info = planned.info
        if info.row is not None and info.row.kind is Kind.WHOLE and info.row.rule is not None:
            yield info.row.rule(info.node, plan.rulebook, functools.partial(_book_part, bookkeeper, info.number))
            continue
        hook = _node_hook(planned, recording, plan.rulebook, bookkeeper)
        if constants := recording.notes.constants.get(info.number):
            yield info.node.register_prehook(functools.partial(_book_added, bookkeeper, info.number, constants))
        if hook is not None and info.row is not None and info.row.backward and not recording.parameters.tensors:
            spared = Spared(info.row.backward, hook)
            yield info.node.register_prehook(spared.before)
            hook = spared.after
        if hook is not None:
            yield info.node.register_hook(hook)


def _book_part(bookkeeper: Bookkeeper, number: int, kind: str, source: str, term: torch.Tensor) -> None:
    bookkeeper.add(kind, number, source, term)


def _book_added(bookkeeper: Bookkeeper, number: int, constants: Sequence[Constant], outer: Gradients) -> None:
    """Book what constants that a node adds get of the multiplier of its output."""
    if (g := outer[0]) is None:
        return
    sums: dict[tuple[int, ...], torch.Tensor] = {}
    for constant in constants:
        bookkeeper.add(constant.kind, number, constant.source, constant.relevance(g, sums))


def _node_hook(planned: PlannedNode, recording: Recording, rulebook: Rulebook, bookkeeper: Bookkeeper) -> Hook | None:
    """The hook that turns the gradient of a node into its relevance rule; None where they are the same."""
    info, shares = planned
    row, node, op, number = info.row, info.node, info.op, info.number
    blocked = [
        slot
        for slot, edge in enumerate(info.edges)
        if edge is not None and edge.depends and not (edge.carries and info.admits(slot))
    ]
    kind = Kind.LINEAR if row is None else row.kind
    rule: Any = None if row is None else row.rule
    if len(info.carrying) == len(info.edges) and kind is Kind.LINEAR:
        rule = None  # nothing else adds to its output
    if kind in (Kind.LINEAR, Kind.PRODUCT) and not (blocked or shares or rule):
        return None
    x = recording.notes.inputs.get(number)
    rest = ("additive", "constant") if kind is Kind.LINEAR and not blocked else ("absorbed", op)

    def hook(gradients: Gradients, outer: Gradients) -> Gradients | None:
        g = outer[0]
        if g is None:
            return None
        passed = list(gradients)
        if kind is Kind.RATIO:
            ratio, at_zero = rule(node, x)
            scaled, before = g * ratio.conj(), gradients[0]
            passed[0] = scaled if before is None or before.shape == scaled.shape else scaled.sum_to_size(before.shape)
            if isinstance(at_zero, torch.Tensor) or at_zero:
                bookkeeper.add("absorbed", number, f"{op} at 0", relevance_of(at_zero, g))
        elif kind is Kind.NORM:
            passed[0] = rule(node, g) if 0 in info.carrying else None
        elif kind is Kind.FUSED:
            entering = tuple(one if slot in info.carrying else None for slot, one in enumerate(gradients))
            multipliers, absorbed = rule(node, entering, g, rulebook)
            passed = list(multipliers)
            bookkeeper.add("absorbed", number, op, *absorbed)
        elif rule is not None:
            y, *xs = rule(node)
            bookkeeper.add(rest[0], number, rest[1], relevance_of(y, g))
            for slot in info.carrying:
                if (multiplier := passed[slot]) is not None:
                    bookkeeper.add(rest[0], number, rest[1], -relevance_of(xs[slot], multiplier))
        for slot, share in (shares or {}).items():
            factor = passed[slot]
            if factor is not None:
                passed[slot] = factor * share if share else None
        for slot in blocked:
            passed[slot] = None
        return tuple(passed)

    return hook


# From the input of a first layer to the ends, relevance itself moves, not a multiplier: rules for the first layer give
# relevance to inputs that are 0. Only operations that move numbers, or scale and shift each by itself, may lie there.

_MOVES = set(
    """
    Alias AsStrided Clone Contiguous Expand Flip Movedim Narrow Permute Reshape ReshapeAlias Roll Rot90 Select Slice
    Split SplitWithSizes Squeeze Swapaxes T ToCopy Transpose Unbind Unflatten Unfold UnsafeSplit UnsafeView Unsqueeze
    View Cat Stack Gather Index IndexSelect PixelShuffle PixelUnshuffle ChannelShuffle Im2Col ConstantPadNd
    ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D Copy CopySlices
    RegisterPostBackwardFunction
    """.split()
)
_HOLDING_CONSTANTS = {"ConstantPadNd", "Cat", "Stack", "Copy", "CopySlices"}
_ELEMENTWISE = {"Add", "Sub", "Rsub", "Mul", "Div", "Neg"} | BATCH_NORMS


def carry_to_ends(
    first_layer: Sequence[tuple[LinearOperation, torch.Tensor]], ends: Sequence[Any], bookkeeper: Bookkeeper
) -> list[torch.Tensor | None]:
    """The relevance that first-layer rules bring to each of `ends`; what padding gets is absorbed.

    Raises:
        RelevanceError: if an operation below the first layer does not keep each number's relevance.
    """
    totals: list[torch.Tensor | None] = [None] * len(ends)
    for operation, relevance in first_layer:
        slot = operation.map.slot
        node, index = operation.info.node.next_functions[slot]
        region = _nodes_below(operation)
        handles = [_keep_relevance(info) for info in region if info.op in _ELEMENTWISE]
        handles += [_book_constants(info, bookkeeper) for info in region if info.op in _HOLDING_CONSTANTS]
        try:
            start: Any = GradientEdge(node, index)  # type: ignore[arg-type]
            shares = torch.autograd.grad(start, list(ends), relevance, allow_unused=True, retain_graph=True)
        finally:
            for handle in handles:
                handle.remove()
        for place, share in enumerate(shares):
            if share is not None:
                before = totals[place]
                totals[place] = share if before is None else before + share
    return totals


def _nodes_below(operation: LinearOperation) -> list[NodeInfo]:
    """The nodes between a first layer's input and the leaves.

    Raises:
        RelevanceError: if one of them does not keep each number's relevance.
    """
    below = operation.info.edges[operation.map.slot]
    assert below is not None
    region: dict[int, NodeInfo] = {id(below): below}
    stack = [below]
    while stack:
        info = stack.pop()
        if info.op == "leaf":
            continue
        linear = info.row is not None and info.row.kind in (Kind.LINEAR, Kind.PRODUCT)
        alone = sum(edge is not None and edge.depends for edge in info.edges) == 1
        if not (info.op in _MOVES or (info.op in _ELEMENTWISE and alone and linear)):
            raise RelevanceError(
                f"a first-layer rule (flat, w2, z-box) is used for {operation.info.op}, but {info.op} lies between it "
                "and the input, so relevance cannot be given to the input as it is. Use epsilon or z+ there."
            )
        for edge in info.edges:
            if edge is not None and edge.depends and id(edge) not in region:
                region[id(edge)] = edge
                stack.append(edge)
    return list(region.values())


def _keep_relevance(info: NodeInfo) -> RemovableHandle:
    """Let relevance pass a node that scales or shifts each number by itself."""
    (slot,) = (slot for slot, edge in enumerate(info.edges) if edge is not None and edge.depends)

    def hook(gradients: Gradients, outer: Gradients) -> Gradients:
        passed: list[torch.Tensor | None] = [None] * len(gradients)
        before, after = gradients[slot], outer[0]
        if before is not None and after is not None:
            passed[slot] = after.sum_to_size(before.shape) if after.shape != before.shape else after
        return tuple(passed)

    handle: RemovableHandle = info.node.register_hook(hook)
    return handle


def _book_constants(info: NodeInfo, bookkeeper: Bookkeeper) -> RemovableHandle:
    """Book what goes to the padding of a node, or to constants next to its signals."""
    kind = ("absorbed", "padding") if info.op == "ConstantPadNd" else ("additive", "constant")
    slots = [slot for slot, edge in enumerate(info.edges) if edge is not None and edge.depends]

    def hook(gradients: Gradients, outer: Gradients) -> None:
        passed = [gradients[slot] for slot in slots]
        if outer[0] is not None and len(slots) < max(2, len(info.edges)):
            bookkeeper.add(kind[0], info.number, kind[1], outer[0], *(-one for one in passed if one is not None))

    handle: RemovableHandle = info.node.register_hook(hook)
    return handle
