"""The second act of a relevance propagation: which rule each operation gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from layerlens.analyzers.graph.graph import NodeInfo, stops
from layerlens.analyzers.graph.linear_operations import CONVOLUTION, LinearOperation, linear_operations
from layerlens.analyzers.graph.operation import Kind, Role
from layerlens.errors import RelevanceError, UnknownOperation, warn
from layerlens.model.layers import LayerPath, Layers

from .record import Recording, innermost
from .rules.linear import FIRST_LAYER_RULES, Epsilon, LinearRule
from .rules.rulebook import RULEBOOKS, Part, Rulebook

_GRADIENT = Epsilon(0.0)


class PlannedLinear(NamedTuple):
    """A linear operation, the rule that it gets, and the path of its layer."""

    operation: LinearOperation
    rule: LinearRule
    path: LayerPath


class PlannedNode(NamedTuple):
    """A node, and what each factor gets if it is a product of carrying factors."""

    info: NodeInfo
    shares: dict[int, float] | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rules of a relevance propagation.

    Attributes:
        rulebook: the rulebook.
        settings: the settings of the result.
        linear: linear operations whose rule is not the gradient.
        nodes: the other nodes that relevance passes.
        rules_used: operation -> its rules, in words.
    """

    rulebook: Rulebook
    settings: dict[str, Any]
    linear: list[PlannedLinear]
    nodes: list[PlannedNode]
    rules_used: dict[str, str]

    @property
    def keeps_graph(self) -> bool:
        """Whether the graph is needed after a sweep, to carry first-layer relevance to the leaves."""
        return any(isinstance(rule, FIRST_LAYER_RULES) and not linear.at_leaf for linear, rule, _ in self.linear)


def make_plan(recording: Recording, *, strict: bool = False) -> Plan:
    """Choose the rule of each operation.

    Args:
        recording: the forward pass.
        strict: whether an operation without a rule is an error.

    Raises:
        RelevanceError: if no relevance can leave the score.
        UnknownOperation: under `strict`.
        LayerNotFound: if a selection of the rulebook matches no layer.
    """
    given, nodes = recording.rulebook, recording.nodes
    _check(nodes, recording.roots, strict=strict)
    operations = linear_operations(nodes, recording.notes.constants) if given is None or given.linear else []
    rulebook, chosen = (
        fitting_rulebook(nodes, operations, recording.notes.recurrent) if given is None else (given, dict[str, Any]())
    )
    settings = {"rules": rulebook.settings() | chosen, "strict": strict}
    linear = _assign(rulebook, operations, recording)
    used: dict[str, set[str]] = {}
    planned: set[int] = set()
    for operation, rule, _ in linear:
        name = str(rule) + (" with batch norm" if operation.norm is not None else "")
        used.setdefault(operation.info.op, set()).add(name)
        if not (isinstance(rule, Epsilon) and rule.bias):
            planned.update(id(info) for info in (operation.info, operation.end))
    others = []
    for info in nodes:
        if info.carries and info.op != "leaf" and id(info) not in planned:
            shares = _shares(info, rulebook, recording)
            used.setdefault(info.op, set()).add(_rule_name(info, shares, rulebook))
            others.append(PlannedNode(info, shares))
        elif info.stops and info.row is not None:
            used.setdefault(info.op, set()).add(f"stop: {info.row.why}")
    return Plan(rulebook, settings, linear, others, {op: "; ".join(sorted(names)) for op, names in used.items()})


def fitting_rulebook(
    nodes: Sequence[NodeInfo], operations: Sequence[LinearOperation], recurrent: bool = False
) -> tuple[Rulebook, dict[str, Any]]:
    """Choose the rulebook that the literature uses for networks of this kind; return it and why, as settings.

    Attention: CP-LRP, which conserves relevance (AttnLRP, `"attn"`, does not; Achtibat et al. 2024 find it more
    faithful on language models). Convolutions without attention: z+ for them, epsilon for dense layers. Gates: all to
    the signal. All else: epsilon -> 0.

    Args:
        nodes: nodes of the graph.
        operations: its linear operations.
        recurrent: whether recurrent layers ran; the reason then says so.

    Returns:
        The rulebook; and `"chosen"`, the reason in words, and `"has"`, what the network has.
    """
    steps = ["recurrent layers"] * recurrent
    if any(_attends(info) for info in nodes):
        return RULEBOOKS["cp"], {
            "chosen": f"it has {' and '.join([*steps, 'attention'])}",
            "has": [*steps, "attention"],
        }
    if any(operation.kind == CONVOLUTION for operation in operations):
        return RULEBOOKS["epsilon_plus"], {
            "chosen": f"it has {', '.join([*steps, 'convolutions'])} and no attention",
            "has": [*steps, "convolutions"],
        }
    if any(_multiplies_with(info, Role.GATE) or (info.row and info.row.kind is Kind.WHOLE) for info in nodes):
        return RULEBOOKS["gate"], {
            "chosen": "it has gates, and neither convolutions nor attention",
            "has": [*steps, "gates"],
        }
    return RULEBOOKS["epsilon"], {"chosen": "it has neither convolutions nor attention nor gates", "has": steps}


def _attends(info: NodeInfo) -> bool:
    """Whether a node weighs values by a softmax of the input."""
    return (info.carries and info.op.startswith("ScaledDotProduct")) or _multiplies_with(info, Role.WEIGHT)


def _multiplies_with(info: NodeInfo, role: Role) -> bool:
    """Whether a node multiplies a signal with a factor of this role."""
    if not info.carries or info.row is None or info.row.kind is not Kind.PRODUCT:
        return False
    roles = [edge.role for slot in info.factors() if (edge := info.edges[slot]) is not None]
    return len(roles) > 1 and role in roles


def _assign(rulebook: Rulebook, operations: Sequence[LinearOperation], recording: Recording) -> list[PlannedLinear]:
    """The linear operations that a rule of the book is meant for; for all others the gradient is the rule."""
    if not operations:
        return []
    paths = innermost(recording.spans, sorted(operation.number for operation in operations))
    selections = [where for where, _ in rulebook.linear if not isinstance(where, Part)]
    layers = Layers(recording.model) if selections else None
    selected = [
        None if isinstance(where, Part) or layers is None else set(layers.select(where)) for where, _ in rulebook.linear
    ]

    def rule_for(operation: LinearOperation) -> LinearRule:
        enclosing = set(_enclosing(paths[operation.number]))
        for (where, rule), inside in zip(rulebook.linear, selected, strict=True):
            if _is_part(operation, where) if isinstance(where, Part) else bool(enclosing & (inside or set())):
                return rule
        return _GRADIENT

    planned = [PlannedLinear(operation, rule_for(operation), paths[operation.number]) for operation in operations]
    return [one for one in planned if one.rule != _GRADIENT]


def _is_part(operation: LinearOperation, part: Part) -> bool:
    if part is Part.FIRST:
        return operation.first
    if part is Part.LAST:
        return operation.last
    return part is Part.ANY or part.value == operation.kind


def _enclosing(path: LayerPath) -> list[LayerPath]:
    """The path and those of the modules that contain it: a.b.c, a.b, a."""
    names = path.split(".")
    return [".".join(names[:length]) for length in range(len(names), 0, -1)]


def _shares(info: NodeInfo, rulebook: Rulebook, recording: Recording) -> dict[int, float] | None:
    """What each factor of a product of carrying factors gets; None where the gradient is right as it is."""
    if info.row is None or info.row.kind is not Kind.PRODUCT:
        return None
    factors = info.factors()
    if len(factors) < 2:
        return None
    weights = {slot for slot in factors if _is_weight(info.edges[slot], rulebook, recording)}
    signals = [slot for slot in factors if slot not in weights] or list(factors)
    roles = {slot: edge.role for slot in signals if (edge := info.edges[slot]) is not None}
    if {Role.SIGNAL, Role.SQUASH} & set(roles.values()):  # sizes scale them
        signals = [slot for slot in signals if roles.get(slot) is not Role.SIZE]
    return {slot: 1 / len(signals) if slot in signals else 0.0 for slot in factors}


def _is_weight(edge: NodeInfo | None, rulebook: Rulebook, recording: Recording) -> bool:
    """Whether a factor only weighs the other ones under this rulebook."""
    if edge is None:
        return False
    shifted = edge.role is Role.SQUASH and any(
        not isinstance(constant.value, torch.Tensor) or constant.value.numel() == 1
        for constant in recording.notes.constants.get(edge.shift, [])
    )  # one number added, as in the hand-written GELU, x (1 + tanh(u)) / 2; a tensor added is a signal
    gate = edge.role is Role.GATE and rulebook.product == "gate"
    return shifted or gate or (edge.role is Role.WEIGHT and rulebook.attention == "cp")


def _rule_name(info: NodeInfo, shares: dict[int, float] | None, rulebook: Rulebook) -> str:
    if info.row is None:
        return "gradient (no rule is known)"
    if info.row.kind is Kind.PRODUCT:
        return "gradient (epsilon -> 0)" if shares is None else f"product, {rulebook.product}"
    if info.row.kind in (Kind.FUSED, Kind.WHOLE):
        return str(info.row.label).format(attention=rulebook.attention, product=rulebook.product)
    names = {Kind.LINEAR: "gradient (epsilon -> 0)", Kind.RATIO: "ratio f(x) / x"}
    return names.get(info.row.kind, str(info.row.kind.value))


def _check(nodes: Sequence[NodeInfo], roots: Sequence[NodeInfo], *, strict: bool) -> None:
    """Refuse a score that no relevance can leave, and name the operations that have no rule.

    Raises:
        RelevanceError: if the score depends on the input only by way of stops or of what has no gradient.
        UnknownOperation: under `strict`, if an operation has no row in the table.
    """
    if not all(root.carries for root in roots):
        blocking = {stop.op: stop for root in roots if not root.carries for stop in stops(root)}
        reasons = "; ".join(f"{op} ({stop.row.why})" for op, stop in sorted(blocking.items()) if stop.row is not None)
        raise RelevanceError(
            f"no relevance can leave the score: every way to the input leads through {reasons}. Choose a target before "
            "that, such as a logit."
        )
    if any(info.op == "WarnNotImplemented" and info.carries for info in nodes):
        raise RelevanceError(
            "an operation between the input and the score has no gradient in torch, as quantized layers of torch.ao "
            "have none, so no relevance passes it. Explain the model as it was before it was quantized."
        )
    unknown = sorted({info.op for info in nodes if info.row is None and info.carries and info.op != "leaf"})
    if not unknown:
        return
    listed = ", ".join(unknown)
    if strict:
        raise UnknownOperation(
            f"no relevance rule is known for {listed}. With strict=False the gradient is used instead."
        )
    warn(
        f"no relevance rule is known for {listed}: the gradient is used instead, so relevance may not be conserved "
        "there; the ledger's residual shows by how much. strict=True refuses instead.",
    )
