"""Checks of the gradient and of the numbers: finite, right, nothing hidden, exact enough."""

from __future__ import annotations

import copy

import torch
from torch import nn

from layerlens.analyzers.common.directional_slope import NOISE, along, moved_from_kinks, replica, slope_of
from layerlens.analyzers.common.messages import first_not_finite
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.common.statistics import spearman
from layerlens.analyzers.faithfulness.randomization import restored
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe

from .check_gradient import TOLERANCES
from .examined import FEATURES, Examined, Found, named, percent

NO_GRADIENT = "lens.saliency(x, method='shapley_sampling'), which needs no gradient"
SATURATED, WEAK = 0.01, 0.2
"""Share of what leaving out changes that the gradient predicts: below these it says nothing, or little."""


def finite(examined: Examined) -> Found:
    """Score, gradient, and outputs of layers."""
    if not bool(examined.score.isfinite().all()):
        why = first_not_finite(examined.model, examined.counted, examined.inputs, {})
        return "serious", f"score {examined.score.tolist()[:4]}", f"nothing can be explained. {why}", "fix that layer"

    def holds_nan(output: object) -> bool:
        return any(bool(one.isnan().any()) for _, one in named_tensors(output) if one.is_floating_point())

    with torch.no_grad(), Probe(examined.model, lambda path, module: True, reduce=holds_nan) as record:
        examined.run()
    layers = [call.layer for call in record.order if call.output is True]
    if examined.differentiable:
        bad = {name: int((~slope.isfinite()).sum()) for name, slope in examined.slopes.items()}
        if any(bad.values()):
            where = f", and NaN in the output of {named(layers)}" if layers else ""
            return (
                "serious",
                f"{sum(bad.values())} values of the gradient are NaN or infinite{where}",
                "a root or logarithm of 0, a division by 0, or an overflow is on the way: every map by gradients is "
                "broken there",
                f"add a small number under the root or quotient, or {NO_GRADIENT}",
            )
    if layers:
        return (
            "worth knowing",
            f"NaN in the output of {named(layers)}; score and gradient are finite",
            "the NaN are not used for this input, and may be for another one",
            f"lens.capture(x, {layers[0]!r}) shows them",
        )
    return "fine", "score, gradient and the output of every layer hold no NaN"


def parameters(examined: Examined) -> Found:
    """The gradient by the weights, along random directions, on a copy of the model."""
    exact, reason = examined.twin
    if exact is None:
        exact = Scorer(copy.deepcopy(examined.model), examined.inputs, examined.target, forward=examined.counted)
    weights = {n: p for n, p in exact.model.named_parameters() if p.is_floating_point()}
    if not weights:
        return "not run", "the model has no weights that can have a gradient"
    with restored(list(weights.values())):
        return _weights_along(examined, exact, weights, reason)


def _weights_along(examined: Examined, exact: Scorer, weights: dict[str, nn.Parameter], reason: str) -> Found:
    """The same for the weights of a copy, which are moved."""
    draw, own = torch.Generator().manual_seed(examined.seed), exact.values()
    with torch.no_grad():
        for weight in weights.values():
            noise = torch.randn(weight.shape, generator=draw).to(weight)
            weight.mul_(1 + NOISE * noise) if bool(weight.any()) else weight.add_(NOISE * noise)
    points = {
        name: moved_from_kinks(value, draw)[0] if value.is_floating_point() else value for name, value in own.items()
    }
    states = generator_states()
    for weight in weights.values():
        weight.requires_grad_(True)
    with torch.enable_grad():
        score = exact(points).sum()
        found = torch.autograd.grad(score, list(weights.values()), allow_unused=True) if score.requires_grad else []
    slopes = {
        name: torch.zeros_like(weights[name]) if g is None else g for name, g in zip(weights, found, strict=False)
    }
    for weight in weights.values():
        weight.requires_grad_(False)
    dtype = next(iter(weights.values())).dtype
    limit = TOLERANCES.get(torch.float64 if not reason else dtype, 0.1)

    def gap(names: list[str]) -> tuple[float, float]:
        """The gap along one random direction of some weights, and its error, relative to the slope."""
        steps = {
            n: torch.randn(weights[n].shape, generator=draw).to(weights[n]) * weights[n].std(correction=0)
            for n in names
        }
        kept = {n: weights[n].detach().clone() for n in names}

        def at(step: float) -> torch.Tensor:
            restore_generators(states)
            with torch.no_grad():
                for name in names:
                    weights[name].copy_(kept[name] + step * steps[name])
                return exact(points).sum().reshape(1)

        try:
            measured = slope_of(at, dtype)
        finally:
            at(0.0)
        products = [(slopes[n].double() * steps[n].double()) for n in names if n in slopes]
        predicted = sum(float(one.sum()) for one in products)
        typical = sum(float(one.square().sum()) for one in products) ** 0.5
        size = max(abs(predicted), abs(float(measured.value)), typical) or 1.0
        return abs(predicted - float(measured.value)) / size, float(measured.error) / size

    worst, error = max((gap(list(weights)) for _ in range(2)), key=lambda pair: pair[0] - pair[1])
    if worst <= limit + error:
        return "fine", f"gap {worst:.1e} along two random directions of all weights (at most {limit:g})"
    owners = [
        path for path, module in exact.model.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    wrong = []
    for path in owners[:64]:
        names = [
            f"{path}.{n}" if path else n for n, _ in exact.model.get_submodule(path).named_parameters(recurse=False)
        ]
        own_gap, own_error = gap([name for name in names if name in weights] or list(weights))
        wrong += [path] * (own_gap > limit + own_error)
    return (
        "serious",
        f"gap {worst:.1e} (at most {limit:g}); wrong by the weights of {named(wrong) or 'no single layer'}",
        "training, influence and sensitivity of weights follow a wrong gradient",
        "lens.check_gradient(x, layers=None) checks each layer; fix its backward",
    )


def saturation(examined: Examined) -> Found:
    """What the gradient predicts, and what leaving out measures."""
    first_order = examined.of_groups(examined.slope_times_change)
    measured, predicted = examined.effects.abs().sum(dim=1), first_order.abs().sum(dim=1)
    if missed := _missed(examined, first_order):
        return "serious", missed, "the backward pass hides a part of the input", f"fix it, or {NO_GRADIENT}"
    flat = measured <= 1e-6 * examined.scale
    if bool(flat.all()):
        return (
            "worth knowing",
            f"leaving out any of {examined.groups.count} groups changes the score by less than a millionth",
            "the score does not depend on any one part of this input: a map of it shows noise",
            "score a logit instead of a probability, or another class",
        )
    ratio = torch.where(flat, 1.0, predicted / measured.clamp_min(1e-300))
    worst = int(ratio.argmin())
    share, text = float(ratio[worst]), f"leaving out changes the score by {float(measured[worst]):.3g} in all"
    text += f", of which the gradient predicts {percent(float(ratio[worst]))} (sample {worst})"
    if share >= WEAK:
        return "fine", text
    do = "lens.saliency(x, method='integrated_gradients') or 'shapley_sampling'; score a logit, not a probability"
    if share < SATURATED:
        return "serious", text, "the score is saturated here: every map of plain gradients shows noise", do
    return "worth knowing", text, "the gradient sees little of what the score depends on", do


def _missed(examined: Examined, first_order: torch.Tensor) -> str:
    """What the gradient misses of the slope along the groups that it predicts worst; empty for nothing."""
    off = (examined.effects - first_order).abs()
    sample = int(off.amax(dim=1).argmax())
    effects, predicted = examined.effects[sample].abs(), first_order[sample]
    silent = effects * (predicted.abs() < 0.01 * effects)  # where the gradient says nothing at all
    return next(
        (
            missed
            for group in {int(off[sample].argmax()), int(silent.argmax())}
            if (missed := _slope(examined, sample, group, predicted))
        ),
        "",
    )


def _slope(examined: Examined, sample: int, group: int, predicted: torch.Tensor) -> str:
    """Compare the gradient along one group of features with finite differences there."""
    exact = examined.twin[0]
    scorer = exact or examined.scorer
    scorer.interacting = examined.scorer.interacting  # known by larger changes than these
    keep = torch.ones(len(examined.score), examined.groups.count, device=examined.scorer.rows.device)
    keep[:, group] = 0
    masks = examined.groups.masks(keep, examined.scorer.rows)
    values, starts = examined.values, examined.coalitions.starts
    dtype = torch.float64 if exact else next(iter(values.values())).dtype
    steps = {name: ((1 - masks[name].to(value)) * (value - starts[name])).to(dtype) for name, value in values.items()}
    points = {name: replica(value, dtype) for name, value in values.items()}
    states = generator_states()

    def at(step: float) -> torch.Tensor:
        restore_generators(states)
        with torch.no_grad():
            return scorer(along(points, steps, step), scorer.rows)

    slope = slope_of(at, dtype)
    own, error, said = float(slope.value[sample]), float(slope.error[sample]), float(predicted[group])
    if abs(own - said) <= 0.02 * max(float(examined.effects[sample].abs().max()), abs(own)) + 2 * error:
        return ""
    return f"along group {group} of sample {sample} the score changes by {own:.3g}, and the gradient says {said:.3g}"


def precision(examined: Examined) -> Found:
    """Score and gradient in the model's own numbers, and in float64."""
    twin, reason = examined.twin
    own = next((v.dtype for v in examined.values.values() if v.is_floating_point()), torch.float32)
    if own is torch.float64:
        return "fine", "the model computes in float64"
    if twin is None:
        return "unclear", reason, "rounding cannot be separated from the rest", "check(model.double(), x.double())"
    exact = Examined(twin, examined.counted, examined.method, examined.options, examined.seed)
    off = float(((exact.score - examined.score).abs() / exact.scale).max())
    flat = [torch.cat([one.double().flatten(1) for one in e.slopes.values()], dim=1) for e in (examined, exact)]
    few = flat[0].shape[1] < FEATURES
    rank = 1.0 if few or all(not bool(one.any()) for one in flat) else float(spearman(*flat).min())
    text = f"score off by {off:.1e} of itself" + f", rank correlation of the gradients {rank:.4f}" * (not few)
    text += " (float64)"
    do = "explain lens = Lens(model.double()) with x.double()"
    if rank < 0.5:
        return "serious", text, "the map is rounding noise", do
    if rank < 0.99 or off > 0.01:
        return "worth knowing", text, f"small values of a map in {str(own).removeprefix('torch.')} are rounding", do
    return "fine", text
