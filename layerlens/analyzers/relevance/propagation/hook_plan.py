"""The plan of a propagation: for each node the hook that turns its gradient into its relevance rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.operation import Gradients, Kind, Role
from layerlens.analyzers.graph.recorder import Notes
from layerlens.errors import RelevanceError, UnknownOperation, warn

from ..linear import Epsilon
from ..linear.hooks import EpsilonHook, SiteHooks
from ..linear.linear_sites import Site
from ..rules.bookkeeper import Bookkeeper
from ..rules.rulebook import Rulebook
from .rule_assignment import Assigned

Hook = Callable[[Gradients, Gradients], "Gradients | None"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Makes the hooks of a propagation.

    Attributes:
        book: the rules.
        notes: what the recorder saw.
        keeper: keeps the ledger.
        direct: relevance that first-layer rules made, with the sites at whose input it is.
        outputs: nodes at which relevance is read; set to the output with batch norm where one was folded into a rule.
    """

    book: Rulebook
    notes: Notes
    keeper: Bookkeeper
    direct: list[tuple[Site, torch.Tensor]] = dataclasses.field(default_factory=list)
    outputs: dict[Any, torch.Tensor | None] = dataclasses.field(default_factory=dict)

    def attach(self, nodes: list[NodeInfo], assigned: Sequence[Assigned] = ()) -> tuple[list[Any], dict[str, str]]:
        """Register the hooks; returns their handles, and operation -> rule.

        Args:
            nodes: of the graph.
            assigned: linear sites with the rules that they get.
        """
        handles: list[Any] = []
        rules: dict[str, set[str]] = {}
        done: set[int] = set()
        for site, rule, path in assigned:
            rules.setdefault(site.info.op, set()).add(str(rule) + (" with batch norm" if site.norm is not None else ""))
            if isinstance(rule, Epsilon):
                handles += EpsilonHook(site, rule, self.keeper).attach()
                continue
            handles += SiteHooks(site, rule, self, path).attach()
            done.update(id(info) for info in (site.info, site.end))
        for info in nodes:
            if not info.carries or info.op == "leaf" or id(info) in done:
                continue
            shares = self._shares(info)
            rules.setdefault(info.op, set()).add(self._name(info, shares))
            hook = self._hook(info, shares)
            if hook is not None:
                handles.append(info.node.register_hook(hook))
        return handles, {op: "; ".join(sorted(names)) for op, names in rules.items()}

    def _shares(self, info: NodeInfo) -> dict[int, float] | None:
        """What each factor of a product of carrying factors gets; None when the gradient is right as it is."""
        if info.row is None or info.row.kind is not Kind.PRODUCT:
            return None
        factors = info.factors()
        if len(factors) < 2:
            return None
        weighing = {slot for slot in factors if self._weighs(info.edges[slot])}
        signals = [slot for slot in factors if slot not in weighing] or list(factors)
        return {slot: 1 / len(signals) if slot in signals else 0.0 for slot in factors}

    def _weighs(self, edge: NodeInfo | None) -> bool:
        if edge is None:
            return False
        shifted = edge.role is Role.SQUASH and any(
            not isinstance(constant.value, torch.Tensor) or constant.value.numel() == 1
            for constant in self.notes.constants.get(edge.shift, [])
        )  # one number added, as in the hand-written GELU, x (1 + tanh(u)) / 2; a tensor added is a signal
        gate = edge.role is Role.GATE and self.book.product == "gate"
        return shifted or gate or (edge.role is Role.WEIGHT and self.book.attention == "cp")

    def _name(self, info: NodeInfo, shares: dict[int, float] | None) -> str:
        if info.row is None:
            return "gradient (no rule is known)"
        if info.row.kind is Kind.PRODUCT:
            return "gradient (epsilon -> 0)" if shares is None else f"product, {self.book.product}"
        if info.row.kind is Kind.FUSED:
            return str(info.row.label).format(attention=self.book.attention, product=self.book.product)
        names = {Kind.LINEAR: "gradient (epsilon -> 0)", Kind.RATIO: "ratio f(x) / x"}
        return names.get(info.row.kind, str(info.row.kind.value))

    def _hook(self, info: NodeInfo, shares: dict[int, float] | None) -> Hook | None:
        row, node = info.row, info.node
        number = int(node._sequence_nr())
        constants = self.notes.constants.get(number, [])
        blocked = [
            slot
            for slot, edge in enumerate(info.edges)
            if edge is not None and edge.depends and not (edge.carries and info.open(slot))
        ]
        kind = Kind.LINEAR if row is None else row.kind
        rule: Any = None if row is None else row.rule
        if kind in (Kind.LINEAR, Kind.PRODUCT) and not (constants or blocked or shares):
            return None
        recorded = self.notes.inputs.get(number)
        keeper, book, op = self.keeper, self.book, info.op

        def hook(gradients: Gradients, outer: Gradients) -> Gradients | None:
            g = outer[0]
            if g is None:
                return None
            passed = list(gradients)
            if kind is Kind.RATIO:
                ratio, start = rule(node, recorded)
                passed[0] = g * ratio
                if isinstance(start, torch.Tensor) or start:
                    keeper.add("absorbed", number, f"{op} at 0", g * start)
            elif kind is Kind.NORM:
                passed[0] = rule(node, g)
            elif kind is Kind.FUSED:
                multipliers, absorbed = rule(node, gradients, g, book)
                passed = list(multipliers)
                keeper.add("absorbed", number, op, *absorbed)
            elif kind is Kind.TAYLOR:
                y, x = rule(node)
                keeper.add("absorbed", number, op, y * g)
                if passed[0] is not None:
                    keeper.add("absorbed", number, op, -x * passed[0])
            for slot, share in (shares or {}).items():
                multiplier = passed[slot]
                if multiplier is not None:
                    passed[slot] = multiplier * share if share else None
            for slot in blocked:
                passed[slot] = None
            sums: dict[tuple[int, ...], torch.Tensor] = {}
            for constant in constants:
                keeper.add(constant.kind, number, constant.source, constant.relevance(g, sums))
            return tuple(passed)

        return hook


def check(nodes: list[NodeInfo], roots: list[NodeInfo], *, strict: bool) -> None:
    """Refuse a score that no relevance can leave, and name the operations that have no rule.

    Raises:
        RelevanceError: when the score does not depend on the input, or only by way of stops or of what has no gradient.
        UnknownOperation: under `strict`, when an operation has no row in the table.
    """
    if not all(root.depends for root in roots):
        raise RelevanceError(
            "the score does not depend on the input: it was detached on the way, or the target ignores the input."
        )
    if not all(root.carries for root in roots):
        stops = sorted({info.op for info in nodes if info.row and info.row.kind is Kind.STOP and info.depends})
        raise RelevanceError(
            f"no relevance can leave the score: every way to the input leads through {', '.join(stops)}, which "
            "measure a size and stop relevance. Choose a target before them, such as a logit."
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
        raise UnknownOperation(f"no relevance rule is known for {listed}. With strict=False the gradient stands in.")
    warn(
        f"no relevance rule is known for {listed}: the gradient stands in, so relevance may not be conserved there; "
        "the ledger's residual shows by how much. strict=True refuses instead.",
        UserWarning,
    )
