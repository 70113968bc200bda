"""Results of the measures of weights, with what they mean."""

from __future__ import annotations

from typing import Any

import torch

from layerlens.analyzers.common.null_model import shuffled_parameters
from layerlens.errors import warn
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from ..local.output_metrics import QUANTITIES
from .fisher import Information, fisher, words
from .hessian import Curvature, Loss
from .measured_effect import Metric, measured
from .prune_and_quantize import pruning, quantization
from .trace_estimators import Traces, hutch_plus_plus, hutchinson
from .weight_task import Job

NOT_EVERYTHING = {
    "fisher": (
        "It is the curvature at these weights and inputs, in the units of the weights: it says nothing of large "
        "changes, such as pruning, and layers whose weights are small by their scale come out large: see "
        "checks['relative']."
    ),
    "hessian_trace": (
        "A sum of curvatures in all directions, in which positive and negative ones cancel, and an estimate with the "
        "given error; it says nothing of large changes of the weights."
    ),
    "pruning": (
        "It holds for one layer at a time with the others intact and without training afterwards, on these samples; "
        "damage to several layers does not add up."
    ),
}


def by_information(job: Job, *, draws: int, empirical: bool) -> LayerProfile:
    """The trace of the Fisher information."""
    if empirical:
        warn(
            "the empirical Fisher is taken at the labels of the data: it vanishes where the model has fitted them, and "
            "is no curvature. empirical=False sums over the model's own labels.",
        )

    def run(parameters: dict[str, torch.Tensor]) -> Information:
        return fisher(
            job.model,
            job.samples,
            job.owners,
            parameters,
            kind=job.likelihood,
            draws=draws,
            empirical=empirical,
            seed=job.seed,
            progress=job.progress,
            forward=job.forward,
        )

    if job.null:
        job.samples.check_again("null=True")
    found = run(job.parameters)
    chance = run(shuffled_parameters(job.model, job.seed)).trace.mean(dim=0) if job.null else None
    count = len(found.trace)
    values = found.trace.mean(dim=0)
    by_draws = (found.scatter / draws).sum(dim=0).sqrt() / count
    error = found.trace.std(dim=0) / count**0.5 if count > 1 else None
    if error is None and not (found.exact or empirical) and draws > 1:
        error = by_draws
    return LayerProfile(
        quantity="trace of the Fisher information",
        layers=tuple(job.owners.rows),
        values=values,
        units="nats per squared unit of weight",
        signed=False,
        method=words(found, draws, empirical) + job.told,
        settings=job.settings(
            measure="fisher",
            likelihood=found.likelihood.kind,
            empirical=empirical,
            draws=None if found.exact or empirical else draws,
            samples=count,
        ),
        error=error,
        null=chance,
        checks={
            "parameters": job.counts,
            "per parameter": values / job.counts,
            "relative": found.relative.mean(dim=0),
            "draw error": by_draws,
        },
        explanation=(
            "Each value is the summed squared slope of the model's log probabilities along every weight of the layer: "
            "half of it times s^2 is how far, in nats, independent noise of variance s^2 on its weights moves the "
            "output's distribution.",
            NOT_EVERYTHING["fisher"],
        ),
    )


def by_curvature(job: Job, *, loss: Loss | None, probes: int, estimator: str) -> LayerProfile:
    """The trace of the Hessian of the loss."""
    plus = estimator == "hutch++"
    if plus or job.null:
        job.samples.check_again("Hutch++" if plus else "null=True")
    used = route = ""

    def run(parameters: dict[str, torch.Tensor]) -> Traces:
        nonlocal used, route
        curvature = Curvature(
            job.model,
            job.samples,
            job.owners,
            parameters,
            kind=job.likelihood,
            loss=loss,
            seed=job.seed,
            progress=job.progress,
            forward=job.forward,
        )
        found = (hutch_plus_plus if plus else hutchinson)(curvature, probes, job.seed)
        used = curvature.used
        route = f"differences of gradients ({curvature.missing})" if curvature.missing else "double backward"
        return found

    values, error = run(job.parameters)
    name = "Hutch++ for each layer" if plus else "Hutchinson for all layers at once"
    method = f"trace of the Hessian, {used}, {name}, {probes} products, {route}"
    chance = run(shuffled_parameters(job.model, job.seed))[0] if job.null else None
    return LayerProfile(
        quantity="trace of the Hessian of the loss",
        layers=tuple(job.owners.rows),
        values=values,
        units="loss per squared unit of weight",
        signed=True,
        method=method + job.told,
        settings=job.settings(measure="hessian_trace", loss=used, probes=probes, estimator=estimator, route=route),
        error=error,
        null=chance,
        checks={"parameters": job.counts, "per parameter": values / job.counts},
        explanation=(
            "Each value is the summed curvature of the mean loss along the weights of the layer: half of it times "
            "s^2 is how much independent noise of variance s^2 on its weights raises the loss.",
            NOT_EVERYTHING["hessian_trace"],
        ),
    )


def by_damage(
    job: Job, measure: str, levels: Any, how: Any, *, metric: Metric, target: Spec, draws: int
) -> LayerProfile:
    """The change of loss, accuracy or output with spoiled weights."""
    damage = pruning(job.model, levels, how) if measure == "pruning" else quantization(job.model, levels, how)
    found = measured(
        job.model,
        job.samples,
        job.owners,
        damage,
        metric=metric,
        target=target,
        kind=job.likelihood,
        null=job.null,
        draws=draws,
        seed=job.seed,
        progress=job.progress,
        forward=job.forward,
    )
    after = "pruning" if measure == "pruning" else "rounding"
    kinds = {
        "loss": (f"rise of the loss after {after}", "loss"),
        "accuracy": (f"drop of the accuracy after {after}", "share of samples"),
    }
    quantity, units = kinds.get(found.metric) or (
        QUANTITIES[found.metric][0].replace("under noise", f"after {after}"),
        QUANTITIES[found.metric][1],
    )
    checks = {"parameters": job.counts[[list(job.owners.rows).index(row) for row in found.rows]]}
    if found.clean is not None:
        checks["clean"] = found.clean
    settings = job.settings(
        measure=measure,
        levels=levels,
        metric=found.metric,
        samples=found.count,
        draws=draws if job.null else None,
        **({"structured": how} if measure == "pruning" else {"granularity": how}),
    )
    settings["left_out"] |= found.left_out
    return LayerProfile(
        quantity=quantity,
        layers=tuple(found.rows),
        values=found.values,
        units=units,
        signed=found.metric in ("loss", "accuracy"),
        method=f"{damage.words}, {found.words}, {found.count} samples{job.told}",
        settings=settings,
        series=damage.series,
        error=found.error,
        null=found.null,
        checks=checks,
        explanation=(
            f"Each value is the {quantity}, as measured with {damage.words}; null, where asked for, is the same amount "
            "of damage at random places.",
            NOT_EVERYTHING["pruning"],
        ),
    )
