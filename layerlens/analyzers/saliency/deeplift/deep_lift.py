"""DeepLIFT on autograd's graph: the runs on the input and on a baseline compared operation by operation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.messages import check_baseline, of_samples, sample_numbers
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.samples import warn_of_joint_scores
from layerlens.analyzers.common.scorer import Leaves, Scorer, backward_pass, scoring, warn_of_zeros
from layerlens.analyzers.graph.graph import ACCUMULATE, Graph
from layerlens.analyzers.graph.operation import Gradients
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.analyzers.relevance.rules.operation_table import TABLE
from layerlens.errors import TargetError, choose, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.layers import Selection
from layerlens.model.placement import refuse_sharded
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from ..path.completeness import completeness_gap
from . import reveal_cancel
from .combine import Combine, attributed, check_combine, combine_setting, units_of
from .operation_calls import OperationCalls
from .pairs import Pair, Rule, Run, pair_up
from .table import WANTED, changed_choices, rule_of

RULES = ("rescale", "reveal_cancel")

LOST = 1e-3
"""A relative completeness gap above this is more than rounding."""

ROUNDING = 16
"""Rounding errors of the scores that a sum may be off by."""


@method(
    family="path",
    passes="1 gradient and 1 forward pass",
    needs="a baseline",
    source="Shrikumar, Greenside & Kundaje 2017",
)
def deep_lift(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline = "zero",
    rule: Literal["rescale", "reveal_cancel"] = "rescale",
    multiply_by_inputs: bool = True,
    custom_attribution_func: Combine | None = None,
    forward: Forward | None = None,
) -> Attribution:
    """Explain the difference of the score from the score of a baseline, S(x) - S(x'), to which the values sum.

    Every operation passes, instead of its gradient, multipliers m with m (x - x') = y - y' (Shrikumar, Greenside &
    Kundaje 2017, ICML, eq. 2 and 3). Nonlinearities follow the rescale rule, m = (y - y') / (x - x') (sec. 3.5.2), or
    reveal-cancel (sec. 3.5.3); products of two signals, softmax, norms and attention are composed of such steps, so
    that nothing is lost in them.
    The operations are the nodes of autograd's graph: functional calls, reused modules and residual additions count.

    Args:
        baseline: x', as in `integrated_gradients`: a name such as `"zero"` or `"blur"`, a number, a tensor, or a
            dict by input name.
        rule: rule of nonlinearities: `"rescale"`, or `"reveal_cancel"`, which explains what raises and what lowers
            their input separately, so that causes that cancel show (sec. 3.5.3). It holds for nonlinearities whose
            input is made by a linear operation, a batch norm of one or an addition; others are rescaled.

    Returns:
        ... Its check is the relative `"completeness gap"` |sum - (S(x) - S(x'))| / |S(x) - S(x')| of each sample.

    Warns:
        UserWarning: when an operation has no rule, so that its gradient is used; when the gap is above 0.001; when
            the values of a sample are zero everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = deep_lift(net, torch.ones(1, 3), target=1)
        >>> bool(result.checks["completeness gap"] < 1e-3)
        True
    """
    choose("rule", rule, RULES)
    check_combine(custom_attribution_func, multiply_by_inputs)
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        warn_of_joint_scores(scorer, scorer.start(), "contribution", run=scorer.run)
        scorer.refuse_joint("deep_lift")
        starts, label = baselines(scorer, baseline)
        comparison = compare(scorer, starts, rule)
        gap = completeness_gap(comparison.values, comparison.score, comparison.baseline_score)
        warn_of_gap("deep_lift", gap, comparison)
        values = attributed(
            comparison.multipliers, scorer.values(), starts, comparison.values, multiply_by_inputs,
            custom_attribution_func,
        )  # fmt: skip
        warn_of_zeros(values, "deep_lift")
        return scorer.attribution(
            values,
            method="deep_lift",
            settings={
                "baseline": label,
                "rule": rule,
                "multiply_by_inputs": multiply_by_inputs,
                **combine_setting(custom_attribution_func),
            },
            score=comparison.score,
            units=units_of(multiply_by_inputs, custom_attribution_func),
            checks={"completeness gap": gap},
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The contribution of every value to the difference of the scores of the input and of one baseline.

    Attributes:
        values: contributions by leaf, shaped like it.
        multipliers: m by leaf, shaped like it: the values are m (x - x').
        score: score of the input, `(batch,)`.
        baseline_score: score of the baseline, `(batch,)`.
        moved: operations that chose otherwise for the baseline.
    """

    values: Leaves
    multipliers: Leaves
    score: torch.Tensor
    baseline_score: torch.Tensor
    moved: list[str]


def compare(scorer: Scorer, starts: Leaves, rule: str) -> Comparison:
    """Compare a borrowed, frozen model on its input with one baseline per leaf, shaped like it.

    Raises:
        TargetError: when no gradient reaches the input.
    """
    refuse_sharded(scorer.model, "deep_lift", "Take integrated_gradients, or relevance with the model under FSDP2.")
    wanted = WANTED | reveal_cancel.WANTED if rule == "reveal_cancel" else WANTED
    leaves = scorer.start()
    states = generator_states()
    one = _run(scorer, leaves, wanted)
    if one.score.grad_fn is None or not one.graph.visit(one.score.grad_fn).depends:
        raise TargetError(f"no gradient flows from the score {scorer.target.label!r} to the input.")
    restore_generators(states)  # a model that draws random numbers draws the same ones
    other = _run(scorer, {name: _in_layout_of(leaves[name], start) for name, start in starts.items()}, wanted)
    check_baseline(other.score.detach(), scorer.target.label)
    pairs = pair_up(one, other)
    special = reveal_cancel.reveal_cancel(pairs) if rule == "reveal_cancel" else {}
    found = _multipliers(scorer.model, one, leaves, pairs, special)
    multipliers = {
        name: torch.zeros_like(leaf) if multiplier is None else multiplier
        for (name, leaf), multiplier in zip(leaves.items(), found, strict=True)
    }
    values = {name: (leaf.detach() - starts[name]) * multipliers[name] for name, leaf in leaves.items()}
    return Comparison(values, multipliers, one.score.detach(), other.score.detach(), changed_choices(pairs))


def _in_layout_of(leaf: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """A baseline in the memory layout of its leaf; torch runs other operations on another layout."""
    return torch.empty_like(leaf, requires_grad=False).copy_(start).requires_grad_()


def _run(scorer: Scorer, leaves: Leaves, wanted: frozenset[str]) -> Run:
    """The model's forward pass on `leaves`, with fused attention in primitives."""
    graph, calls = Graph(leaves.values(), TABLE), OperationCalls(wanted)
    with sdpa_kernel(SDPBackend.MATH), Recorder(graph, noting=False), calls:
        score = scorer(leaves)
    return Run(score, graph, calls)


def _multipliers(model: nn.Module, one: Run, leaves: Leaves, pairs: list[Pair], special: dict[int, Rule]) -> Gradients:
    """The multiplier of each leaf: one backward pass with the rules instead of the gradients."""
    handles: list[Any] = []
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
                f"deep_lift: no rule is known for {', '.join(sorted(unknown))}: the gradient is used, so the values "
                "need not sum to the difference of the scores; the completeness gap shows by how much.",
            )
        # .backward, as .grad would keep nodes that rules call on the way from computing anything outside of its graph
        # in primitives again, for blocks that are computed again
        with sdpa_kernel(SDPBackend.MATH), backward_pass(model), _gradients_restored(one.score.grad_fn):
            one.score.sum().backward()  # type: ignore[no-untyped-call]
            return tuple(leaf.grad for leaf in leaves.values())
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


def warn_of_gap(method: str, gap: torch.Tensor, comparison: Comparison) -> None:
    """Warn of samples whose values do not sum to the difference of the scores."""
    score, baseline_score = comparison.score.double(), comparison.baseline_score.double()
    rounding = ROUNDING * torch.finfo(comparison.score.dtype).eps * torch.maximum(score.abs(), baseline_score.abs())
    allowed = LOST + rounding / (score - baseline_score).abs().clamp_min(torch.finfo(torch.float64).tiny)
    missed = (~(gap <= allowed)).nonzero().flatten().tolist()
    if missed and comparison.score.dtype in (torch.float32, torch.float64):
        of = (
            of_samples([f"{sample_numbers([row])[0]} ({float(gap[row]):.3g})" for row in missed], len(gap))
            or f" (gap {float(gap[0]):.3g})"
        )
        why = f"{', '.join(comparison.moved)} chose otherwise for the baseline, or an" if comparison.moved else "an"
        warn(
            f"{method}: the values{of} miss S(x) - S(baseline) by more than {LOST:g} of it: {why} "
            "operation has no rule, the model detaches a signal, or samples depend on each other.",
        )
