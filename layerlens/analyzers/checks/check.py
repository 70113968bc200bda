"""All checks of a model, an input and a method in one call: what would make an explanation mislead."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.inner_gradients import InnerGradients
from layerlens.analyzers.common.registry import method_named
from layerlens.analyzers.common.scorer import scoring
from layerlens.analyzers.faithfulness.explaining import Explain
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.errors import OptionError, RelevanceError, TargetError, check_seed, choose, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed, generator_states, modules_of, restore_generators
from layerlens.model.layers import Selection
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe
from layerlens.progress import counting
from layerlens.results import Finding, ModelChecks
from layerlens.results.reports.checks import NOT_ASKED
from layerlens.signatures import public, refuse_unknown
from layerlens.targets.target import Spec

from .check_gradient import check_gradient
from .examined import Check, Counted, Examined, Found, constant, of_the_map, planned
from .of_gradient import NO_GRADIENT, finite, parameters, precision, saturation
from .of_map import agreement, baseline, completeness, controls, other_class, seed as other_seed, weights
from .of_model import NOISE, batch, hooks, hung, mode, padding, random, shared, unused
from .of_perturbation import scaffold, shortcut

CLOSED = 1e-5
"""A relative residual of the ledger above this is not accepted without a second run in float64."""

CLOSED_IN_FLOAT64 = 1e-9
"""The same in float64."""


def _method_name(examined: Examined) -> str:
    return examined.method if isinstance(examined.method, str) else getattr(examined.method, "__name__", "a function")


def _found(one: Check, examined: Examined) -> Found:
    """What a check found, or why it was not run.

    Raises:
        MemoryError: as Python raises it.
        OutOfMemoryError: as torch raises it.
    """
    try:
        if one.still and examined.noise > NOISE:
            return "unclear", "two runs differ, so what a change does cannot be separated from chance"
        return one.run(examined)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever the model raises: the other checks run
        return "unclear", f"could not be checked, {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _gradient(examined: Examined) -> Found:
    """The gradient of the score by the input, against finite differences."""
    if not examined.differentiable:
        return "not run", "the input holds whole numbers, which have no gradient"
    try:
        found = check_gradient(
            examined.model, examined.inputs, target=examined.target, layers=examined.layers, seed=examined.seed,
            forward=examined.counted,
        )  # fmt: skip
    except TargetError as error:
        return _no_gradient(examined, str(error))
    examined.gradient = found
    rows = dict(found.summary())
    text = f"gap {rows['gap']}" + (f", {rows['wrong layers']}" if found.wrong else "")
    if found.passed is False:
        means = (
            "the backward pass, or what cuts it, does not belong to the forward pass: every map by gradients is wrong"
        )
        return "serious", text, means, found.advice()
    return ("fine", text) if found.passed else ("unclear", text, "", found.advice())


def _no_gradient(examined: Examined, error: str) -> Found:
    """Say why no gradient reaches the input: a signal that is cut, or an operation that has none."""
    scorer = examined.scorer
    scorer.inner = InnerGradients()
    scorer.inner.watching = True

    def carries(output: object) -> bool:
        return any(tensor.requires_grad for _, tensor in named_tensors(output))

    with Probe(scorer.model, lambda path, module: True, reduce=carries) as record:
        scorer(scorer.start())
    at = [call.layer or "the model itself" for call in record.order if call.output is False]
    ways = scorer.inner.take_cuts()
    text = f"no gradient reaches the input; the first output without one is that of {at[0]}" if at else error
    if ways:
        return (
            "serious",
            f"{text}; the signal is cut by {', '.join(ways)}",
            "the score has no gradient at all",
            NO_GRADIENT,
        )
    means = "hard decisions, whole numbers, or an input that does not count"
    return "worth knowing", text, means, NO_GRADIENT


def _ledger(examined: Examined) -> Found:
    """The residual of the ledger of relevance, and in float64 if it is large."""
    model, x, target, forward = examined.model, examined.inputs, examined.target, examined.counted
    advice = "see .ledger.table() of lens.relevance(x), and report the model"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="relevance: the ledger does not close")
        try:
            own = relevance(model, x, target=target, forward=forward)
            residual = float(own.ledger.relative.max())
            found = f"residual {residual:.1e} (at most {CLOSED:g})"
            if residual <= CLOSED:
                return "fine", found
            if own.score.dtype is torch.float64:
                return "serious", found, "an operation is not accounted for", advice
            twin, reason = examined.twin
            if twin is None:
                return "unclear", f"{found}, {reason}", "", advice
            inputs, rules = twin.inputs, own.settings["rules"]["name"]
            exact = relevance(twin.model, inputs, target=twin.target, rules=rules, forward=twin.forward)
        except (TargetError, RelevanceError) as error:
            return "unclear", "cannot be checked", str(error)
    there = float(exact.ledger.relative.max())
    found = f"{found}, {there:.1e} in float64"
    if there <= CLOSED_IN_FLOAT64:
        return "fine", f"{found}: rounding"
    return "serious", found, "an operation is not accounted for: parts of the score are booked nowhere", advice


CHECKS = (
    Check("finite", "every number is finite", finite, constant(2)),
    Check("random", "the score is the same in every run", random, constant(3)),
    Check("mode", "the model is explained as it was given", mode, constant(3)),
    Check("hooks", "nothing is attached to the model", hooks, constant(2)),
    Check("batch", "a sample has its own score", batch, constant(2)),
    Check("padding", "padding does not count", padding, constant(2)),
    Check("gradient", "the gradient is right", _gradient, constant(15)),
    Check(
        "saturation", "the gradient sees what the score depends on", saturation, constant(8), still=True, left_out=True
    ),
    Check("parameters", "the gradient of the weights is right", parameters, constant(15)),
    Check("ledger", "the ledger accounts for the score", _ledger, constant(6)),
    Check("unused", "every input and every layer counts", unused, lambda e: 2 + 2 * len(e.values)),
    Check("shared", "every weight belongs to one layer", shared, constant(0)),
    Check("precision", "the numbers are exact enough", precision, constant(5), still=True),
    Check(
        "scaffold", "perturbed samples are answered by the same function", scaffold, lambda e: 80 * e.runs(), still=True
    ),
    Check("completeness", "the values add up", completeness, constant(0), mapped=True),
    Check(
        "shortcut", "the score does not depend on a few places alone", shortcut, constant(23), still=True, mapped=True
    ),
    Check("agreement", "methods agree", agreement, constant(20), still=True, mapped=True, left_out=True),
    Check("baseline", "the baseline does not decide", baseline, constant(36)),
    Check("weights", "the map depends on what was learned", weights, of_the_map(1), mapped=True),
    Check("controls", "the map is not one of the input alone", controls, constant(0), mapped=True),
    Check("seed", "the map does not depend on chance", other_seed, of_the_map(1), mapped=True),
    Check("class", "the map depends on the class", other_class, of_the_map(2), mapped=True),
)
"""The checks, in the order in which they run."""


@public
def check(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    method: str | Explain = "auto",
    method_options: Mapping[str, Any] | None = None,
    checks: str | Sequence[str] | None = None,
    budget: float = 500,
    layers: Selection = (),
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> ModelChecks:
    """Look for what would make an explanation mislead: a page of findings by severity, with what to do.

    - The model: numbers that are not finite, runs that differ, train mode, hooks, samples and padding that change the
      score of others, inputs and layers that do not count, weights that are shared.
    - The gradient: by the input and by the weights against finite differences, see `check_gradient`; saturated, or
      hiding a part of the input; rounding. A wrong backward pass closes the ledger of relevance all the same.
    - The map of the method: whether it adds up, depends on the weights, the class, the seed; whether it is one of the
      input alone; whether other methods and baselines agree.
    - Perturbed samples: whether another function answers them (Slack et al. 2020), which fools LIME and SHAP; whether
      a few places make the score.

    The ledger accounts for the score if its residual is below 1e-5 of the largest amount. A larger one is computed
    again on a copy of the model in float64: rounding is gone there, an operation that is not accounted for is not.

    Args:
        method: name of the method whose map is checked, or a function `(model, x, target=..., forward=...) ->
            Attribution`.
        method_options: options of the method, such as `{"steps": 20}`.
        checks: short names of the checks to run, such as `"gradient"` or `["batch", "scaffold"]`; None for all.
        budget: most passes, in runs of the batch; a check that is expected to take more than what is left is listed
            with what it needs. 0 runs none, and lists what each would take.
        layers: layers whose gradients are checked one by one; by default all if the whole is wrong, else none.

    Returns:
        `ModelChecks`: `.of("serious")`, `result["scaffold"]`, `.to_html(path)`, `.to_pandas()`; `gradient` has that
        check in full, `agreement` the rank correlations of methods.

    Raises:
        InputError, TargetError: as for `saliency`.
        OptionError: when there is no such check or method, or the budget is negative.
        UnknownOption: when the method has no such option.

    Cost:
        About 250 passes and five maps of the method; `budget=0` says it for your model.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> found = check(net, torch.ones(1, 3), target=1)
        >>> found.passed, found["gradient"].severity
        (True, 'fine')
    """
    check_seed(seed)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget >= 0:
        raise OptionError(f"budget must be a number of passes, not negative, such as budget=500; got {budget!r}.")
    names = [one.name for one in CHECKS]
    asked = names if checks is None else [checks] if isinstance(checks, str) else list(checks)
    asked = [choose("check", one, names) for one in asked]
    if isinstance(method, str):
        known = [one for one in method_named(method).parameters if one not in ("x", "target", "forward", "progress")]
        refuse_unknown(method, method_options or (), known)
    training = [module for module in modules_of(model) if module.training] if isinstance(model, nn.Module) else []
    hooks_before = hung(model) if isinstance(model, nn.Module) else []
    with borrowed(model):
        inputs = as_inputs(x).named_for(model, forward)
        counted = Counted(forward, inputs.batch, model)
        with scoring(model, inputs, target, forward=counted, whole="always") as scorer:
            with torch.no_grad():
                scores, output = scorer.scored(scorer.values())
            if bool(scores.isfinite().all()):
                scorer.check(scorer.values(), scores, output)
            else:
                asked = ["finite"]
            examined = Examined(scorer, counted, method, method_options or {}, seed, training, hooks_before)
            examined.score, examined.layers = scores.detach().double(), layers
            return _run(examined, asked, budget)


def _run(examined: Examined, asked: Sequence[str], budget: float) -> ModelChecks:
    """Run the checks that are asked for, as far as the budget reaches."""
    states, rows = generator_states(), []
    plan = planned([one for one in CHECKS if one.name in asked], examined)
    said: dict[str, None] = {}
    with counting(f"checks, about {plan} passes", len(asked)) as done:
        for one in CHECKS:
            if one.name not in asked:
                why = NOT_ASKED if bool(examined.score.isfinite().all()) else "the score is not finite"
                rows.append(Finding(one.claim, "not run", why, name=one.name))
                continue
            before = examined.counted.passes
            need, left = planned([one], examined), max(budget - before, 0)
            if need > left:
                enough = budget + need - left
                why = f"not in the budget: needs about {need} passes, and {left:.0f} are left: budget={enough:.0f}"
                rows.append(Finding(one.claim, "not run", why, name=one.name, in_budget=False))
                done(1)
                continue
            restore_generators(states)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = _found(one, examined)
            took = examined.counted.passes - before
            for warning in caught if one.name == "ledger" else ():  # such as an operation without a rule
                warn(str(warning.message))
            severity, measured, means, do = (*found, "", "")[:4]
            rows.append(Finding(one.claim, severity, measured, means, do, took, one.name))
            said |= dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)
            done(1)
    name = examined.attribution.method if "attribution" in vars(examined) else _method_name(examined)
    if said:
        more = f" (and {len(said) - 2} more)" * (len(said) > 2)
        text = " / ".join(" ".join(one.split())[:300] for one in list(said)[:2]) + more
        rows.append(Finding("layerlens has nothing to warn of", "worth knowing", text, name="warnings"))
    return ModelChecks(
        tuple(rows), examined.gradient, examined.agreement, examined.target.label, name, examined.counted.passes,
        plan, float(budget),
    )  # fmt: skip
