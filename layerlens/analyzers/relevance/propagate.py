"""Layer-wise relevance propagation on autograd's own graph, for any model, in one backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...borrow import borrowed
from ...errors import RelevanceError
from ...layers import Selection
from ...probe import Spans
from ...results import Ledger, Relevance
from ...target import Spec
from ..score import Scorer, backward_pass
from .assign import assign
from .automatic import rulebook_for
from .conditions import Conditions, Units
from .graph import Graph, NodeInfo
from .ledger import Bookkeeper, Span, innermost
from .linear.direct import deliver
from .linear.rules import DIRECT
from .linear.sites import find_sites
from .plan import Plan, check
from .recorder import Recorder
from .rulebook import Rulebook, as_rulebook
from .taps import Taps, profile

LOST = 1e-3
"""A relative residual above this is no rounding error."""


def relevance(
    model: nn.Module,
    x: Any,
    *,
    target: Spec = None,
    rules: str | Rulebook = "auto",
    layers: Selection = (),
    through: Mapping[str, Units] | None = None,
    strict: bool = False,
    forward: Callable[..., Any] | None = None,
) -> Relevance:
    """Propagate a score back to the input by layer-wise relevance propagation (LRP), with a ledger of all of it.

    Every tensor a gets a multiplier g, and its relevance is R = a g (Bach et al. 2015). Linear operations pass g as
    the gradient does, which is the epsilon rule in the limit epsilon -> 0 (their eq. 58; Ancona et al. 2018); an
    elementwise f passes g (f(x) - f(0)) / x; normalisations keep their scale constant (Ali et al. 2022); products and
    attention follow the rulebook. The rules are hooks on autograd's nodes, so any model works as it is.

    Args:
        model: any module.
        x: its input: a tensor `(batch, ...)`, a tuple, or a dict; token ids are attributed at their embedding.
        target: what to explain, see `as_target`; None for the predicted class.
        rules: a rulebook or the name of one in `RULEBOOKS`; `"auto"` (default) takes what fits the graph: `"cp"` where
            there is attention, `"epsilon_plus"` for other networks with convolutions, `"gate"` for those with gates
            (LSTM, GRU), else `"epsilon"`. `settings["rules"]` says which it was, and why.
        layers: at which layers' outputs to keep the relevance (see `Selection`); none by default, None for all.
        through: layer -> units: of the relevance that passes the layer's output only that of these units goes on, and
            what is held back is absorbed (see `concepts`). An index, several, a list for each sample, or a boolean
            mask. What goes around the layer, by a skip connection, is not held back: name the block instead.
        strict: raise on an operation without a rule; otherwise warn and use its gradient.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `Relevance`: values shaped like the input in units of the score, the ledger (inputs + additive constants +
        absorbed = score), and the relevance at each layer that was asked for.

    Raises:
        InputError: when the input cannot carry a gradient.
        TargetError: when the target does not fit the output.
        RelevanceError: when no relevance can reach the input.
        UnknownOperation: under `strict`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = relevance(net, torch.ones(1, 3), target=1)
        >>> bool(result.ledger.relative.max() < 1e-5)
        True
    """
    book = None if rules == "auto" else as_rulebook(rules)
    with borrowed(model):
        if book is None or book.linear:
            _keep_inputs(model)
        scorer = Scorer(model, x, target, forward=forward)
        leaves = scorer.start()
        graph = Graph(leaves.values())
        recorder = Recorder(graph)
        taps = Taps(model, layers)
        conditions = Conditions(model, through)
        with Spans(model) as spans, taps, conditions, recorder:
            score = scorer(leaves)
        keeper = Bookkeeper(len(score), spans.found, recorder.notes.time_major)
        root = _root(score, graph)
        nodes = graph.reached(root)
        check(nodes, root, strict=strict)
        sites = find_sites(nodes, recorder.notes.constants) if book is None or book.linear else []
        book, why = rulebook_for(nodes, sites) if book is None else (book, "")
        plan = conditions.plan = Plan(book, recorder.notes, keeper)
        assigned = assign(book, sites, model, spans.found)
        handles, used = plan.attach(nodes, assigned)
        edges = taps.edges()
        ends: list[Any] = [*leaves.values(), *edges]
        plan.outputs.update(dict.fromkeys([*(edge.node for edge in edges), *conditions.nodes]))
        try:
            keep = any(isinstance(rule, DIRECT) and not site.at_leaf for site, rule, _ in assigned)
            with backward_pass(model):
                multipliers = torch.autograd.grad(
                    score, ends, torch.ones_like(score), allow_unused=True, retain_graph=keep
                )
        finally:
            for handle in handles:
                handle.remove()
        direct = deliver(plan.direct, ends, keeper)
        values = {
            name: _relevance_of(leaf.detach(), multipliers[place], direct[place])
            for place, (name, leaf) in enumerate(leaves.items())
        }
        for name, value in values.items():
            keeper.add("input", -1, name, value)
        ledger = keeper.close(score)
        _warn_of_cuts(recorder.notes.cuts, spans.found)
        _warn_of_residual(ledger, score.dtype)
        settings: dict[str, Any] = {"rules": book.settings() | ({"chosen": why} if why else {}), "strict": strict}
        fields = scorer.fields(
            values,
            method=f"relevance, {book.name}",
            settings=settings,
            score=score,
            checks={"conservation gap": ledger.gap, "ledger residual": ledger.relative},
        )
        first = len(leaves)
        at_layers = taps.relevance(multipliers[first:], direct[first:], plan.outputs)
        by_layer = profile(at_layers, settings) if at_layers else None
        return Relevance(**fields, ledger=ledger, layers=at_layers, profile=by_layer, rules_used=used)


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
        warnings.warn(
            f"relevance: the ledger does not close, its residual is {worst:.1e} of the largest amount and should be "
            "below 1e-5. An operation adds something that is not accounted for, or numbers overflow; "
            "relevance.ledger.table() shows where the rest went. Please report the model.",
            stacklevel=3,
        )


def _warn_of_cuts(cuts: list[int], spans: list[Span]) -> None:
    """Say where the model detaches a signal: what it adds from there on looks like a constant."""
    if cuts:
        places = innermost(spans, sorted(cuts))
        where = ", ".join(dict.fromkeys(repr(path) if path else "the model itself" for path in places.values()))
        warnings.warn(
            f"relevance: the model detaches a signal in {where}, so relevance is cut there; what the detached signal "
            "adds is booked with the additive constants.",
            stacklevel=3,
        )


def _keep_inputs(model: nn.Module) -> None:
    """Have autograd save the input of every linear operation, which it does for a weight that needs a gradient."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point() and not parameter.is_inference():
            parameter.requires_grad_(True)
