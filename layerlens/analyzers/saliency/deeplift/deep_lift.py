"""DeepLIFT on autograd's graph: the runs on the input and on a baseline compared operation by operation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.messages import check_baseline, of_samples, sample_numbers
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.samples import warn_of_joint_scores
from layerlens.analyzers.common.scorer import Leaves, Scorer, scoring, warn_of_zeros
from layerlens.analyzers.relevance.differences.compare import Comparison, compare as compare_runs
from layerlens.errors import choose, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from ..path.completeness import completeness_gap
from . import reveal_cancel
from .combine import Combine, attributed, check_combine, combine_setting, units_of

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
    found, said = lifted(
        model, x, target=target, where=where, baseline=baseline, rule=rule, multiply_by_inputs=multiply_by_inputs,
        custom_attribution_func=custom_attribution_func, forward=forward,
    )  # fmt: skip
    if said:
        warn(said)
    return found


def lifted(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline = "zero",
    rule: str = "rescale",
    multiply_by_inputs: bool = True,
    custom_attribution_func: Combine | None = None,
    forward: Forward | None = None,
) -> tuple[Attribution, str]:
    """What `deep_lift` returns, and which samples miss the difference of the scores, in words; empty where none do."""
    choose("rule", rule, RULES)
    check_combine(custom_attribution_func, multiply_by_inputs)
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        warn_of_joint_scores(scorer, scorer.start(), "contribution", run=scorer.run)
        scorer.refuse_joint("deep_lift")
        starts, label = baselines(scorer, baseline)
        comparison = compare(scorer, starts, rule)
        gap = completeness_gap(comparison.values, comparison.score, comparison.baseline_score)
        values = attributed(
            comparison.multipliers, scorer.values(), starts, comparison.values, multiply_by_inputs,
            custom_attribution_func,
        )  # fmt: skip
        warn_of_zeros(values, "deep_lift")
        found = scorer.attribution(
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
        return found, missed("deep_lift", gap, comparison)


def compare(scorer: Scorer, starts: Leaves, rule: str) -> Comparison:
    """Compare a borrowed, frozen model on its input with one baseline per leaf, shaped like it.

    Raises:
        TargetError: when no gradient reaches the input, or the score of the baseline is not finite.
    """
    more = (reveal_cancel.WANTED, reveal_cancel.reveal_cancel) if rule == "reveal_cancel" else (frozenset[str](), None)
    found = compare_runs(scorer, lambda: scorer, starts, *more)
    check_baseline(found.baseline_score, scorer.target.label)
    return found


def missed(method: str, gap: torch.Tensor, comparison: Comparison) -> str:
    """Name the samples whose values do not sum to the difference of the scores; empty where all do."""
    score, baseline_score = comparison.score.double(), comparison.baseline_score.double()
    rounding = ROUNDING * torch.finfo(comparison.score.dtype).eps * torch.maximum(score.abs(), baseline_score.abs())
    allowed = LOST + rounding / (score - baseline_score).abs().clamp_min(torch.finfo(torch.float64).tiny)
    rows = (~(gap <= allowed)).nonzero().flatten().tolist()
    if not rows or comparison.score.dtype not in (torch.float32, torch.float64):
        return ""
    of = (
        of_samples([f"{sample_numbers([row])[0]} ({float(gap[row]):.3g})" for row in rows], len(gap))
        or f" (gap {float(gap[0]):.3g})"
    )
    why = f"{', '.join(comparison.moved)} chose otherwise for the baseline, or an" if comparison.moved else "an"
    return (
        f"{method}: the values{of} miss S(x) - S(baseline) by more than {LOST:g} of it: {why} "
        "operation has no rule, the model detaches a signal, or samples depend on each other."
    )
