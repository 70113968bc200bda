"""One forward pass with its plan, and a backward sweep for each score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.scorer import Scorer, backward_pass
from layerlens.analyzers.graph.graph import Graph, NodeInfo
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.errors import RelevanceError, warn
from layerlens.inputs.inputs import Forward
from layerlens.model.call_tracking import Spans
from layerlens.model.layers import Selection
from layerlens.model.placement import is_fsdp
from layerlens.model.tensor_parallel import refuse_parts
from layerlens.results import Ledger, Relevance
from layerlens.targets.target import Spec

from ..linear.input_relevance import deliver
from ..linear.linear_sites import Site, find_sites
from ..linear.rules import DIRECT
from ..rules import lookup
from ..rules.bookkeeper import Bookkeeper, Page, Span, innermost
from ..rules.rulebook import Rulebook, as_rulebook
from .conditions import Conditions, Units
from .default_rulebook import rulebook_for
from .hook_plan import Plan, check
from .layer_relevance import Taps, profile
from .multi_target import Several
from .parameter_relevance import Parameters
from .rule_assignment import Assigned, assign

COST = "about 3 gradients"
"""Of a sample: 1 to 3, as the rules want (benchmarks/relevance.md)."""

LOST = 1e-3
"""A relative residual above this is no rounding error."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One backward pass.

    Attributes:
        found: the multipliers of the leaves, of the tapped edges and of the parameters.
        direct: the relevance that first-layer rules made.
        page: what was booked.
    """

    found: tuple[torch.Tensor | None, ...]
    direct: list[tuple[Site, torch.Tensor]]
    page: Page


class Propagation:
    """A forward pass of a borrowed model with the rules of its graph, ready to propagate the score of each target.

    Args:
        model: a borrowed model.
        x: its input.
        targets: what to explain.
        rules: a rulebook, its name, or `"auto"`.
        layers: at which layers' outputs to keep the relevance.
        through: layer -> units that relevance may pass.
        parameters: patterns of names of parameters whose relevance is wanted.
        strict: whether an operation without a rule is an error.
        forward: in place of calling the model.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        targets: Sequence[Spec],
        *,
        rules: str | Rulebook,
        layers: Selection,
        through: Mapping[str, Units] | None,
        parameters: str | Sequence[str],
        strict: bool,
        forward: Forward | None,
    ) -> None:
        refuse_parts(
            model,
            "relevance",
            "Shard the model by FSDP2 (fully_shard), which gathers each layer's weights, or take a gradient method of "
            "saliency, such as input_x_gradient.",
        )
        book = None if rules == "auto" else as_rulebook(rules)
        self.parameters = Parameters(model, parameters)
        if book is None or book.linear:
            _keep_inputs(model)
        else:
            _freeze(model, but=self.parameters.tensors)
        self.model = model
        self.several = Several(targets)
        self.scorer = Scorer(model, x, self.several.target(), forward=forward)
        self.leaves = self.scorer.start()
        graph = Graph(self.leaves.values(), lookup)
        recorder = Recorder(graph, copying=any(is_fsdp(module) for module in model.modules()))
        self.taps = Taps(model, layers)
        conditions = Conditions(model, through)
        with Spans(model) as spans, self.taps, conditions, recorder:
            self.scorer(self.leaves)
        self.spans, self.cuts = spans.found, recorder.notes.cuts
        roots = [_root(score, graph) for score in self.several.scores]
        nodes = list({id(info): info for root in roots for info in graph.reached(root)}.values())
        check(nodes, roots, strict=strict)
        sites = find_sites(nodes, recorder.notes.constants) if book is None or book.linear else []
        self.book, why = rulebook_for(nodes, sites) if book is None else (book, "")
        self.settings = {"rules": self.book.settings() | ({"chosen": why} if why else {}), "strict": strict}
        self.keeper = Bookkeeper(len(self.several.scores[0]), spans.found, recorder.notes.time_major)
        self.plan = conditions.plan = Plan(self.book, recorder.notes, self.keeper)
        self.assigned: list[Assigned] = assign(self.book, sites, model, spans.found)
        self.edges = self.taps.edges()
        self.plan.outputs.update(dict.fromkeys([*(edge.node for edge in self.edges), *conditions.nodes]))
        self.nodes = nodes
        self.multipliers: list[dict[str, torch.Tensor | None]] = []  # of the leaves, one per target once propagated

    def results(self) -> list[Relevance]:
        """Propagate each score in turn."""
        handles, used = self.plan.attach(self.nodes, self.assigned)
        direct = any(isinstance(rule, DIRECT) and not site.at_leaf for site, rule, _ in self.assigned)
        last = len(self.several.scores) - 1
        try:
            sweeps = [self._backward(score, keep=direct or n < last) for n, score in enumerate(self.several.scores)]
        finally:
            for handle in handles:
                handle.remove()
        _warn_of_cuts(self.cuts, self.spans)
        return [self._result(number, sweep, used) for number, sweep in enumerate(sweeps)]

    def _ends(self) -> list[Any]:
        return [*self.leaves.values(), *self.edges]

    def _backward(self, score: torch.Tensor, *, keep: bool) -> Sweep:
        with backward_pass(self.model):
            ends = [*self._ends(), *self.parameters.tensors]
            found = torch.autograd.grad(score, ends, torch.ones_like(score), allow_unused=True, retain_graph=keep)
        direct, page = self.plan.direct.copy(), self.keeper.page
        self.plan.direct.clear()
        self.keeper.page = Page()
        return Sweep(found, direct, page)

    def _result(self, number: int, sweep: Sweep, used: dict[str, str]) -> Relevance:
        score, scorer, keeper, ends = self.several.scores[number], self.scorer, self.keeper, self._ends()
        keeper.page = sweep.page
        multipliers = sweep.found[: len(ends)]
        direct = deliver(sweep.direct, ends, keeper)
        self.multipliers.append(dict(zip(self.leaves, multipliers, strict=False)))
        values = {
            name: _relevance_of(leaf.detach(), multipliers[place], direct[place])
            for place, (name, leaf) in enumerate(self.leaves.items())
        }
        for name, value in values.items():
            keeper.add("input", -1, name, value)
        ledger = keeper.close(score)
        _warn_of_residual(ledger, score.dtype)
        scorer.target = self.several.targets[number]
        fields = scorer.fields(
            values,
            method=f"relevance, {self.book.name}",
            settings=self.settings,
            score=score,
            checks={"conservation gap": ledger.gap, "ledger residual": ledger.relative},
        )
        first = len(self.leaves)
        at_layers = self.taps.relevance(multipliers[first:], direct[first:], self.plan.outputs)
        return Relevance(
            **fields,
            ledger=ledger,
            layers=at_layers,
            profile=profile(at_layers, self.settings) if at_layers else None,
            rules_used=used,
            parameters=self.parameters.relevance(sweep.found[len(ends) :]),
            cost=COST,
        )


def _root(score: torch.Tensor, graph: Graph) -> NodeInfo:
    if score.grad_fn is None:
        raise RelevanceError("the score does not depend on the input by operations that have a gradient.")
    return graph.visit(score.grad_fn)


def _relevance_of(value: torch.Tensor, multiplier: torch.Tensor | None, direct: torch.Tensor | None) -> torch.Tensor:
    relevance = torch.zeros_like(value) if multiplier is None else value * multiplier
    return relevance if direct is None else relevance + direct


def _warn_of_residual(ledger: Ledger, dtype: torch.dtype) -> None:
    """Say when relevance was lost or made that no rule accounts for."""
    worst = float(ledger.relative.max())
    if dtype in (torch.float32, torch.float64) and not worst < LOST:
        warn(
            f"relevance: the ledger does not close, its residual is {worst:.1e} of the largest amount and should be "
            "below 1e-5. An operation adds something that is not accounted for, or numbers overflow; "
            "relevance.ledger.table() shows where the rest went. Please report the model.",
        )


def _warn_of_cuts(cuts: list[int], spans: list[Span]) -> None:
    """Say where the model detaches a signal: what it adds from there on looks like a constant."""
    if cuts:
        places = innermost(spans, sorted(cuts))
        where = ", ".join(dict.fromkeys(repr(path) if path else "the model itself" for path in places.values()))
        warn(
            f"relevance: the model detaches a signal in {where}, so relevance is cut there; what the detached signal "
            "adds is booked with the additive constants.",
        )


def _keep_inputs(model: nn.Module) -> None:
    """Have autograd save the input of every linear operation, which it does for a weight that needs a gradient."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and not parameter.is_inference():
            parameter.requires_grad_(True)


def _freeze(model: nn.Module, but: Sequence[torch.Tensor]) -> None:
    """Have autograd keep neither the inputs of linear operations nor offloaded weights, where no rule reads them."""
    wanted = {id(parameter) for parameter in but}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in wanted:
            parameter.requires_grad_(False)
