"""The checks of a report: numbers that say whether its other numbers can be trusted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from layerlens.analyzers.common.statistics import spearman
from layerlens.model.trees import named_tensors
from layerlens.results import Attribution, GradientCheck, Leaderboard, Relevance

from .content import Check
from .samples import Sample

SLOPE = "per unit of input"
"""What units of gradients end with."""

SUM = (0.0, 2.0)
"""Sums of a map, as multiples of the score, that miss it by no more than its size."""

GAP = 0.05
"""The largest completeness gap of a method without its own tolerance."""


def rounding(sample: Sample) -> float:
    """Return the relative error allowed for rounding: the square root of the step size of the output's data type."""
    kinds = (tensor.dtype for _, tensor in named_tensors(sample.output) if tensor.is_floating_point())
    return math.sqrt(torch.finfo(next(kinds, torch.float32)).eps)


def of_ledger(sample: Sample, relevance: Relevance) -> Check:
    """Check that the ledger accounts for the score."""
    residual, limit = float(relevance.ledger.relative[0]), rounding(sample)
    return Check(
        "The ledger accounts for the score: relative residual", sample.label, f"{residual:.1e}", f"at most {limit:.1e}",
        residual <= limit,
    )  # fmt: skip


def of_gradient(sample: Sample, found: GradientCheck) -> Check:
    """Check that torch's gradient agrees with finite differences; a wrong one names its layers."""
    name, shown = "The gradient agrees with finite differences: relative gap", dict(found.summary())
    value = f"{float(found.gap.max()):.1e}" + (f", wrong in {shown['wrong layers']}" if found.wrong else "")
    return Check(name, sample.label, value, f"at most {found.tolerance:g}", found.passed)


def of_attribution(sample: Sample, found: Attribution) -> list[Check]:
    """Check that a method explains the score of a plain run, and that its values are complete."""
    checks = []
    if sample.score is not None:
        off = abs(float(found.score[0]) - sample.score) / max(abs(sample.score), 1e-12)
        checks.append(
            Check(
                f"{found.how} explains the score of a plain run: relative difference",
                sample.label,
                f"{off:.1e}",
                f"at most {rounding(sample):.1e}",
                off <= rounding(sample),
            )
        )
    if "completeness gap" in found.checks:
        gap, limit = float(found.checks["completeness gap"][0]), float(found.settings.get("tolerance", GAP))
        checks.append(
            Check(
                f"{found.how} is complete: gap of its sum to the difference of scores",
                sample.label,
                f"{gap:.2%}",
                f"at most {limit:.2%}",
                gap <= limit,
            )
        )
    return checks


def of_sum(sample: Sample, found: Attribution) -> list[Check]:
    """Check that a map in units of the score adds to it; a complete one adds to a difference, see `of_attribution`."""
    score = float(found.score[0])
    if found.units != "score" or not found.signed or "completeness gap" in found.checks or not score:
        return []
    values = found.values.values() if isinstance(found.values, dict) else [found.values]
    ratio = sum(float(one[0].double().sum()) for one in values) / score
    low, high = SUM
    return [
        Check(
            f"{found.how} adds to the score: sum of the map over the score",
            sample.label,
            f"{ratio:.3g}",
            f"{low:g} to {high:g}",
            low <= ratio <= high,
            f"the map of {found.how} adds to {ratio:.3g} times the score: its values are not shares of the score.",
        )
    ]


def of_agreement(sample: Sample, maps: Sequence[Attribution]) -> list[Check]:
    """Check that no two maps of a sample rank its places in opposite ways; without signs where one has none.

    A slope, the score per unit of input, and a share of the score may differ in sign, and are not compared.
    """
    checks = []
    for first, second in itertools.combinations(maps, 2):
        a, b = _places(first), _places(second)
        if (
            first.units.endswith(SLOPE) != second.units.endswith(SLOPE)
            or a.keys() != b.keys()
            or any(a[name].shape != b[name].shape for name in a)
        ):
            continue
        flat, other = (torch.cat([one.flatten() for one in part.values()]) for part in (a, b))
        if not (first.signed and second.signed):
            flat, other = flat.abs(), other.abs()
        found = float(spearman(flat.unsqueeze(0), other.unsqueeze(0)))
        checks.append(
            Check(
                f"{first.how} and {second.how} agree: rank correlation of their maps",
                sample.label,
                f"{found:.2f}",
                "at least 0",
                found >= 0,
                f"{first.how} and {second.how} contradict each other (rank correlation of the maps {found:.2f}): show "
                "neither without a check of its own, such as lens.evaluate(x, maps).",
            )
        )
    return checks


def _places(found: Attribution) -> dict[str, torch.Tensor]:
    """The values of the first sample by input, each place of a picture or series as the sum over its channels."""
    named = found.values if isinstance(found.values, dict) else {"": found.values}
    places = {}
    for name, values in named.items():
        axes = found.axes_of(name or None) or ()
        channel = axes.index("channel") if "channel" in axes and len(axes) == values.ndim else None
        places[name] = (values if channel is None else values.sum(dim=channel))[0].double()
    return places


def of_controls(sample: Sample, board: Leaderboard) -> list[Check]:
    """Check that each map says more about the model than maps that never look at it."""
    name = "{} beats its controls: insertion less deletion"
    methods = [method for method in board.methods if method not in board.controls]
    if not board.controls:
        why = "there are no controls for inputs of this kind"
        return [Check(name.format(method), sample.label, why, "", None) for method in methods]
    best = max(board.controls, key=lambda control: float(board.of(control)[0]))
    limit = float(board.of(best)[0])
    return [
        Check(
            name.format(method),
            sample.label,
            f"{value:.3g}",
            f"above {limit:.3g} ({best})",
            value > limit,
            f"the map of {method} is no better than {best!r}, which never looks at the model ({value:.3g} and "
            f"{limit:.3g}).",
        )
        for method, value in ((method, float(board.of(method)[0])) for method in methods)
    ]


def of_weights(before: str, after: str) -> Check:
    """Check that the model is unchanged."""
    return Check(
        "The weights are the same after the run: SHA-256", "model", after[:12], f"equal to {before[:12]}",
        before == after,
    )  # fmt: skip


def missing(name: str, where: str, reason: Exception) -> Check:
    """Return a check that could not be made."""
    return Check(name, where, " ".join(str(reason).split()), "", None)


def ordered(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return failed checks first, then those that could not be made, then the passed ones."""
    rank = {False: 0, None: 1, True: 2}
    return tuple(sorted(checks, key=lambda check: rank[check.passed]))
