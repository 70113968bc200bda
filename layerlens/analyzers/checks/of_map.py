"""Checks of the map: what it adds up to, what it depends on, and what other methods say."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from layerlens.analyzers.common.registry import METHODS
from layerlens.analyzers.common.statistics import spearman
from layerlens.analyzers.faithfulness.controls import control_maps
from layerlens.analyzers.faithfulness.explaining import flat_map
from layerlens.analyzers.faithfulness.metrics.random_logit import random_logit
from layerlens.errors import LayerLensError, OptionError, TargetError
from layerlens.results import Matrix

from .examined import FEATURES, Examined, Found, similar

ENOUGH = 10
"""Fewest places whose ranks are compared; two random orders of fewer are often alike."""

FEW_FEATURES = f"the input has {{}} features, too few to compare ranks (at least {FEATURES})"
FEW = f"the map has {{}} places, too few to compare ranks (at least {ENOUGH})"

MANY = 32
"""Fewest places at which a rank correlation near 1 cannot be chance."""

STEPS: dict[str, Any] = {"steps": 16, "tolerance": float("inf")}
OTHERS: dict[str, dict[str, Any]] = {"input_x_gradient": {}, "integrated_gradients": STEPS, "relevance": {}}
"""Methods that cost little; leaving out is measured in any case."""


def completeness(examined: Examined) -> Found:
    """What the method proves about its sum."""
    found = examined.attribution
    gap = found.checks.get("completeness gap", found.checks.get("efficiency gap"))  # both relative
    if gap is None:
        if "ledger residual" in found.checks:
            own = float(found.checks["ledger residual"].abs().max())
            return "fine", f"every amount of {found.method} is accounted for: residual {own:.1e}"
        return "not run", f"{found.method} does not promise that its values add up to a difference of scores"
    worst, limit = float(gap.abs().max()), float(found.settings.get("tolerance") or 0.05)
    text = f"the sum of the values is off by {worst:.2g} of the difference of the scores"
    if worst <= max(limit, 0.05):
        return "fine", text
    return (
        "worth knowing",
        text,
        "the path has a kink or a jump that its steps miss, or the two scores are almost equal",
        "lens.saliency(x, method='integrated_gradients', steps=200, max_steps=2000)",
    )


def weights(examined: Examined) -> Found:
    """The map of the model with the entries of its weights in random order."""
    if next(examined.model.parameters(), None) is None:
        return "not run", "the model has no weights"
    if examined.places.count < ENOUGH:
        return "not run", FEW.format(examined.places.count)
    count = examined.places.count
    values, sizes = similar(examined.map, examined.random_map)
    text = f"rank correlation with the map of random weights {values:.2f}, of sizes {sizes:.2f} ({count} places)"
    do = "take another method: lens.evaluate(x, [...]) compares them with controls"
    signed = examined.attribution.signed
    if count >= MANY and sizes > 0.95 and (values > 0.95 or not signed):
        return "serious", text, "the map is the same whatever the model learned: it shows the input", do
    if sizes > 0.8 or abs(values) > 0.8:
        return "worth knowing", text, "much of the map is from the input, and not from what was learned", do
    return "fine", text


def other_class(examined: Examined) -> Found:
    """The map of another class."""
    if examined.places.count < ENOUGH:
        return "not run", FEW.format(examined.places.count)
    try:
        found = random_logit(
            examined.model, examined.inputs, examined.method, target=examined.target, seed=examined.seed,
            forward=examined.counted, **examined.options,
        )  # fmt: skip
    except TargetError:
        return "not run", "the target is not one of several classes"
    same = float(found.mean())
    text = f"rank correlation with the map of another class {same:.2f}"
    if same > 0.95:
        return (
            "worth knowing",
            text,
            "the map hardly depends on the class",
            "lens.relevance(x, target=layerlens.contrast(a, b))",
        )
    return "fine", text


def controls(examined: Examined) -> Found:
    """Maps of the input alone."""
    if examined.places.count < ENOUGH:
        return "not run", FEW.format(examined.places.count)
    own, count = examined.map, examined.places.count
    made = control_maps(examined.scorer.leaves, examined.seed)
    found = {name: examined.of_groups(maps, examined.places) for name, maps in made.items()}
    ranks = {name: similar(own, one)[1] for name, one in found.items()}
    worst = max(ranks, key=lambda name: ranks[name])
    text = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
    text = f"rank correlation of sizes with {text}"
    if ranks[worst] <= 0.8:
        return "fine", text
    frozen = count >= MANY and worst != "random" and "random_map" in vars(examined)
    if frozen and similar(examined.random_map, found[worst])[1] > 0.9 and ranks[worst] > 0.9:
        return (
            "serious",
            f"{text}; the map of random weights is as close to {worst}",
            f"the map is one of {worst}: it shows the input, not the model",
            "take another method: lens.evaluate(x, [...]) ranks them next to these controls",
        )
    return (
        "worth knowing",
        text,
        f"the map looks like one of {worst}, made without the model",
        "lens.evaluate(x, [...])",
    )


def agreement(examined: Examined) -> Found:
    """Rank correlations of methods that cost little, over groups of features."""
    count = examined.groups.count
    if count < FEATURES:
        return "not run", FEW_FEATURES.format(count)
    maps = {"leaving out": examined.effects}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, options in OTHERS.items() if examined.differentiable else ():
            try:
                maps[name] = examined.of_groups(examined.explain(method=name, **options))
            except (LayerLensError, RuntimeError):
                continue
    own = examined.attribution
    method = own.method.partition(",")[0]  # without its rulebook
    maps[method] = examined.of_groups(own)
    names = tuple(maps)
    if len(names) < 2:
        return "not run", "no second method runs on this model"
    values = torch.stack([torch.stack([spearman(maps[a], maps[b]).mean() for b in names]) for a in names]).cpu()
    examined.agreement = Matrix(
        "rank correlation", names, names, values, ("method", "method"), "1", True, "maps of several methods",
        {"groups": count, "target": examined.target.label}, explanation=(
            "How alike methods rank the parts of the input; 1 is the same order.",
            "Methods that agree may be wrong together.",
        ),
    )  # fmt: skip
    pairs = values[~torch.eye(len(names), dtype=torch.bool)]
    middle = float(pairs.median())
    at = names.index(method)
    left = float(values[at, 0])
    text = f"median {middle:.2f} among {', '.join(names)}; {method} with leaving out {left:.2f} ({count} groups)"
    if not own.signed:
        return "fine", f"{text}; {method} has no signs, so ranks differ by nature"
    if middle < 0.3 or left < 0.3:
        return (
            "worth knowing",
            text,
            "methods disagree about what mattered: the story depends on the method",
            "lens.evaluate(x, [...]) measures which one is right; result.agreement.plot() shows who agrees",
        )
    return "fine", text


def baseline(examined: Examined) -> Found:
    """Integrated gradients from two baselines."""
    if not examined.differentiable:
        return "not run", "whole numbers have no gradient"
    count = examined.groups.count
    if count < FEATURES:
        return "not run", FEW_FEATURES.format(count)
    maps, names = [], []
    for one in ("zero", "mean", "noise"):
        try:
            found = examined.explain(method="integrated_gradients", baseline=one, **STEPS)
        except OptionError:
            continue
        maps.append(examined.of_groups(found))
        names.append(one)
        if len(maps) == 2:
            break
    rank = float(spearman(*maps).mean())
    text = f"rank correlation of integrated gradients from {' and '.join(names)} {rank:.2f}"
    if rank < 0.5:
        return (
            "worth knowing",
            text,
            "what mattered depends on what it is compared with",
            "lens.saliency(x, method='gradient_shap', baselines=data[:100])",
        )
    return "fine", text


def seed(examined: Examined) -> Found:
    """The method with another seed."""
    found = examined.attribution
    name = found.method.partition(",")[0]  # without its rulebook
    row = METHODS.get(name)
    if row is None and not callable(examined.method):
        return "not run", f"{name} is not a method by name"
    if row is None or "seed" not in row.parameters:
        own, repeated = flat_map(found), flat_map(examined.explain())
        if torch.allclose(repeated, own, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
            return "fine", f"{name} draws no random numbers, and gives the same map again"
        rank = float(spearman(repeated, own).mean())
        text = f"two maps of {name} have a rank correlation of {rank:.2f}, though it draws no random numbers"
        return "worth knowing", text, "the model does", "average maps of several runs"
    if examined.groups.count < FEATURES:
        return "not run", FEW_FEATURES.format(examined.groups.count)
    kept: dict[str, Any] = {
        k: v for k, v in found.settings.items() if k in row.parameters and isinstance(v, (int, float))
    }
    kept = {k: v for k, v in kept.items() if k not in ("batch_size", "features")}
    again = examined.explain(method=name, **{**kept, "seed": examined.seed + 1})
    rank = similar(examined.of_groups(found), examined.of_groups(again))[0]
    text = f"rank correlation of {name} with seeds {examined.seed} and {examined.seed + 1}: {rank:.2f}"
    if rank < 0.9:
        options = ", ".join(k for k in ("samples", "permutations", "draws") if k in row.parameters)
        do = f"more of {options or 'its draws'}; .standard_error says how much is noise"
        return "worth knowing", text, "small values of the map are chance", do
    return "fine", text
