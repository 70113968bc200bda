"""All checks of a model on an input in one call."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from layerlens.analyzers.common.float64_twin import double_twin
from layerlens.analyzers.common.scorer import scoring
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.errors import RelevanceError, TargetError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import GradientCheck, ModelChecks
from layerlens.results.reports.checks import Verdict
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .check_gradient import check_gradient

CLOSED = 1e-5
"""A relative residual of the ledger above this is not accepted without a second run in float64."""

CLOSED_IN_FLOAT64 = 1e-9
"""The same in float64."""


@public
def check(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    layers: Selection = (),
    seed: int = 0,
    forward: Forward | None = None,
) -> ModelChecks:
    """Check what attribution relies on: the ledger of relevance, and the gradient of torch itself.

    - The ledger accounts for the score: its residual is below 1e-5 of the largest amount. A larger one is computed
      again on a copy of the model in float64: rounding is gone there, an operation that is not accounted for is not.
    - The gradient agrees with finite differences, see `check_gradient`. A wrong backward pass of an operation closes
      the ledger all the same, so neither check replaces the other.

    Args:
        layers: layers whose gradients are checked one by one; by default all if the whole is wrong, else none.

    Returns:
        `ModelChecks`: a row for each check with its verdict, what was found, and what to do; `gradient` has the second
        one in full.

    Raises:
        InputError, TargetError: as for `saliency`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> check(net, torch.ones(1, 3), target=1).passed
        True
    """
    found: GradientCheck | None = None
    try:
        found = check_gradient(model, x, target=target, layers=layers, seed=seed, forward=forward)
        row = (found.passed, dict(found.summary())["gap"], found.advice())
    except TargetError as error:
        row = (None, "cannot be checked", str(error))
    if found is not None and found.wrong:
        row = (row[0], f"{row[1]}, {dict(found.summary())['wrong layers']}", row[2])
    ledger = _ledger(model, x, target, forward)
    return ModelChecks((("the ledger accounts for the score", *ledger), ("the gradient is right", *row)), found)


def _ledger(model: nn.Module, x: Input, target: Spec, forward: Forward | None) -> tuple[Verdict, str, str]:
    """Verdict, residual, and what to do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="relevance: the ledger does not close")
        try:
            own = relevance(model, x, target=target, forward=forward)
            residual = float(own.ledger.relative.max())
            found = f"residual {residual:.1e} (at most {CLOSED:g})"
            advice = "see .ledger.table() of lens.relevance(x), and report the model"
            if residual <= CLOSED:
                return True, found, ""
            if own.score.dtype is torch.float64:
                return False, found, advice
            with scoring(model, x, target, forward=forward) as scorer:
                with torch.no_grad():
                    scorer(scorer.values())
                twin, reason = double_twin(scorer)
                if twin is None:
                    return None, f"{found}, {reason}", advice
                inputs, rules = twin.inputs, own.settings["rules"]["name"]
                exact = relevance(twin.model, inputs, target=twin.target, rules=rules, forward=twin.forward)
        except (TargetError, RelevanceError) as error:
            return None, "cannot be checked", str(error)
    there = float(exact.ledger.relative.max())
    found = f"{found}, {there:.1e} in float64"
    if there <= CLOSED_IN_FLOAT64:
        return True, f"{found}: rounding", ""
    return False, f"{found}: an operation is not accounted for", advice
