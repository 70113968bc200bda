"""How far an attack moves the output of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, by_row, floating, survey
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import LayerNotFound, check_count, choose
from layerlens.inputs.inputs import Forward, Hold, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from ..stepped_runs import Values
from .attacks import METHODS, Attack, AttackOptions, attack_options, random_changes, warn_zero_gradient
from .ball import Bounds, Norm
from .prediction_change import Labels, Loss
from .sample_chunks import LabeledSamples, SampleChunk, sample_chunks


@measure(
    question="responds_to_input",
    cost="as attack_curve, and 1 + draws (8) passes of 2 F for each eps (7), all layers at once",
    needs="a floating-point input, or token ids; a gradient",
    source="Liao et al. 2018, fig. 2 (error amplification)",
)
def attack_drift(
    model: nn.Module,
    x: Input,
    labels: Labels | None = None,
    layers: Selection = None,
    *,
    eps: Sequence[float] | None = None,
    method: str = "pgd",
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: Bounds | None = None,
    loss: Loss = "cross_entropy",
    target: Spec = None,
    null: bool = True,
    draws: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """Measure how far an attack moves the output of every layer: ||h(x + d) - h(x)|| / ||h(x)||.

    The change d is that of `attack_curve`, for each eps. The null is the response to random signs (l2: random
    directions) of the same size: a layer that amplifies the attack but not the noise is where the two part (Liao et al.
    2018, fig. 2).

    Args:
        labels: the class index of each sample; None for the model's answer without an attack.
        layers: which layers, see `Selection`; None for every distinct activation, see `jacobian`.
        eps: sizes, rising, as in `attack_curve`; 0 gives no drift.
        method: `"pgd"` or `"fgsm"`.
        norm: `"linf"` or `"l2"`.
        steps: number of steps of PGD.
        step_size: size of a step of PGD, in units of eps; None for 2.5 / steps.
        restarts: number of random starts of PGD.
        bounds: smallest and largest value of the input; None sets none.
        loss: `"cross_entropy"` or `"margin"`.
        target: a score to lower instead of classes.
        null: whether to measure random changes of the same size too.
        draws: number of draws of the null.

    Returns:
        A `LayerProfile` with values `(layers, eps)`: means over samples, with the standard error over samples, and the
        null. Its checks are `"per sample"`, `(layers, eps, batch)`, `"eps"`, `(eps,)`, and `"held"`, `(eps, batch)`, 1
        where the answer held; `settings["left_out"]` maps the layers that could not be measured to
        the reason.

    Raises:
        InputError: when input or labels cannot be used, values lie outside the bounds, or the input gets no gradient.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is unknown or out of range.
        TargetError: when the output is not `(batch, classes)` and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when the loss of a sample has no gradient, or layers had to be left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(torch.eye(2))
        >>> attack_drift(net, torch.tensor([[3.0, 4.0]]), [1], eps=(0.0, 0.5), method="fgsm").values
        tensor([[0.0000, 0.1414],
                [0.0000, 0.1414]], dtype=torch.float64)
    """
    choose("attack", method, METHODS)
    options = attack_options(method, norm, eps, steps, step_size, restarts, bounds, loss, seed)
    check_count("draws", draws)
    with borrowed(model), layers_called(), said_once() as passes:
        inputs = as_inputs(x)
        with torch.no_grad():
            clean = survey(model, inputs, layers, forward, seed=seed, apart=True)
        left_out = dict(clean.left_out)
        sites = [site for site in clean.sites if site.axes[site.main] is not None]
        left_out.update({site.name: "its output has no batch axis" for site in clean.sites if site not in sites})
        drift: list[dict[MeasuredCall, torch.Tensor]] = []
        noise: list[dict[MeasuredCall, torch.Tensor]] = []
        held, zero_gradient = list[torch.Tensor](), list[torch.Tensor]()
        sizes: list[float] | None = list(options.eps) if options.eps is not None else None
        samples = LabeledSamples(inputs, labels, target, loss, batch_size, seed, forward, hold)
        for chunk in track(sample_chunks(model, samples), "attack drift", enabled=progress):
            sizes = options.sizes(chunk) if sizes is None else sizes
            attack = Attack(chunk, options, method)
            best = list(attack(sizes))
            held.append(torch.stack([change.held for change in best]))
            zero_gradient.append(attack.has_zero_gradient)
            with torch.no_grad():
                outputs = _outputs(chunk, chunk.stepped.start, sites)
                drift.append(_stack_common([_drift(chunk, change.values, outputs) for change in best]))
                if null:
                    noise.append(_stack_common([_null_drift(chunk, options, outputs, size, draws) for size in sizes]))
    assert sizes is not None
    kept = [site for site in sites if all(site in chunk_drift for chunk_drift in [*drift, *noise])]
    left_out.update({site.name: "did not run the same way under the attack" for site in sites if site not in kept})
    if not kept:
        raise LayerNotFound(f"none of {len(sites)} layer(s) ran the same way under the attack.")
    warn_left_out("attack_drift", left_out, layers is not None)
    warn_zero_gradient("attack_drift", torch.cat(zero_gradient), loss)
    values = torch.stack([torch.cat([one[site] for one in drift], dim=1) for site in kept])  # (layers, eps, batch)
    count = values.shape[2]
    return LayerProfile(
        quantity="relative change under attack",
        layers=tuple(site.name for site in kept),
        values=values.mean(dim=2),
        units="1",
        signed=False,
        method=options.describe(method),
        settings={
            **options.settings(),
            "method": method,
            "eps": tuple(sizes),
            "draws": draws,
            "left_out": left_out,
            **passes,
        },
        series=tuple(f"eps {size:.4g}" for size in sizes),
        error=values.std(dim=2) / count**0.5 if count > 1 else None,
        null=torch.stack([torch.cat([one[site] for one in noise], dim=1).mean(dim=1) for site in kept])
        if null
        else None,
        checks={
            "per sample": values,
            "eps": torch.tensor(sizes, dtype=torch.float64),
            "held": torch.cat(held, dim=1),
        },
        explanation=(
            "Each value is how far the attack moves a layer's output, relative to its length, for changes of the input "
            "of at most eps; the null is what random changes of the same size do.",
            "It shows where the attack is amplified, not which layer is at fault: a layer can move far in directions "
            "that the output does not depend on (see noise_response).",
        ),
    )


def _outputs(chunk: SampleChunk, values: Values, sites: list[MeasuredCall]) -> dict[MeasuredCall, torch.Tensor]:
    """Return the outputs of the sites as rows, `(batch, m)`."""
    outputs: dict[MeasuredCall, torch.Tensor] = {}

    def read(site: MeasuredCall, output: Any) -> None:
        axis = site.axes[site.main]
        assert axis is not None
        outputs[site] = by_row(floating(output)[site.main].clone(), axis, chunk.batch)

    chunk(values, read, sites)
    return outputs


def _drift(
    chunk: SampleChunk, values: Values, clean: dict[MeasuredCall, torch.Tensor]
) -> dict[MeasuredCall, torch.Tensor]:
    """Return ||h' - h|| / ||h|| of each sample, `(batch,)`; zero where nothing changed."""
    moved = _outputs(chunk, values, list(clean))
    drifts = {}
    for site, before in clean.items():
        after = moved.get(site)
        if after is not None and after.shape == before.shape:
            wide = torch.promote_types(before.dtype, torch.float32)
            change = torch.linalg.vector_norm(after - before, dim=1, dtype=wide).double().cpu()
            size = torch.linalg.vector_norm(before, dim=1, dtype=wide).double().cpu()
            drifts[site] = torch.where(change == 0, 0.0, change / size)
    return drifts


def _null_drift(
    chunk: SampleChunk, options: AttackOptions, clean: dict[MeasuredCall, torch.Tensor], size: float, draws: int
) -> dict[MeasuredCall, torch.Tensor]:
    """Return the mean drift over draws of random changes."""
    by_draw = [_drift(chunk, values, clean) for values in random_changes(chunk, options, size, draws)]
    return {site: values.mean(dim=0) for site, values in _stack_common(by_draw).items()}


def _stack_common(by_run: list[dict[MeasuredCall, torch.Tensor]]) -> dict[MeasuredCall, torch.Tensor]:
    """Stack the values of the sites that all runs have."""
    common = [site for site in by_run[0] if all(site in values for values in by_run)]
    return {site: torch.stack([values[site] for values in by_run]) for site in common}
