"""How far an attack drives every layer from what it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import Site, by_row, floating, survey
from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import warn_left_out
from layerlens.errors import LayerNotFound, check_count, choose
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import LayerProfile
from layerlens.targets.target import Spec

from ..stepped_runs import Values
from .attack_curve import draw_seed
from .attack_options import plan, warn_flat
from .attacks import METHODS, Norm
from .prediction_change import Loss
from .sample_chunks import Part, parts


@measure(
    question="responds_to_input",
    cost="as attack_curve, and 1 + draws (8) passes of 2 F for each eps (7), all layers at once",
    needs="a floating-point input, or token ids; a gradient",
    source="Liao et al. 2018, fig. 2 (error amplification)",
)
def attack_drift(
    model: nn.Module,
    x: Input,
    labels: Any = None,
    layers: Selection = None,
    *,
    eps: Sequence[float] | None = None,
    method: str = "pgd",
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: tuple[Any, Any] | None = None,
    loss: Loss = "cross_entropy",
    target: Spec = None,
    null: bool = True,
    draws: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    """How far an attack drives the output of every layer from what it was: ||h(x + d) - h(x)|| / ||h(x)||.

    The change d is that of `attack_curve`, for each eps. Beside it stands what random signs (l2: random directions) of
    the same size do: a layer that amplifies the attack and not the noise is where the two part (Liao et al. 2018,
    fig. 2).

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        labels: the class index of each sample; None for what the model says without an attack.
        layers: which layers, as in `Selection`; None for every distinct activation, see `jacobian`.
        eps: sizes, rising, as in `attack_curve`; 0 gives no drift.
        method: `"pgd"` or `"fgsm"`.
        norm: `"linf"` or `"l2"`.
        steps: of PGD.
        step_size: of a step, in units of eps; None for 2.5 / steps.
        restarts: random starts of PGD.
        bounds: least and largest value of the input; None sets none.
        loss: `"cross_entropy"` or `"margin"`.
        target: a score that shall fall, in place of classes.
        null: also measure random changes of the same size.
        draws: of them.
        batch_size: samples that run together.
        seed: of random starts and noise, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` with values `(layers, eps)`: means over samples, with the standard error over samples, and the
        null. Its checks are `"per sample"`, `(layers, eps, batch)`, `"eps"`, `(eps,)`, and `"held"`, `(eps, batch)`, 1
        where the answer held; `settings["left_out"]` says which layers could not be measured, and why.

    Raises:
        InputError: when input or labels cannot be used, values lie outside of the bounds, or no gradient passes.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is unknown or out of range.
        TargetError: when the output is not `(batch, classes)` and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when the loss of a sample has no gradient, or when layers had to be left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(torch.eye(2))
        >>> attack_drift(net, torch.tensor([[3.0, 4.0]]), [1], eps=(0.0, 0.5), method="fgsm").values
        tensor([[0.0000, 0.1414],
                [0.0000, 0.1414]], dtype=torch.float64)
    """
    choose("attack", method, METHODS)
    made = plan(method, norm, eps, steps, step_size, restarts, bounds, loss, seed)
    check_count("draws", draws)
    with borrowed(model), layers_called():
        inputs = as_inputs(x)
        with torch.no_grad():
            found = survey(model, inputs, layers, forward, seed=seed)
        left_out = dict(found.left_out)
        sites = [site for site in found.sites if site.axes[site.main] is not None]
        left_out.update({site.name: "its output has no batch axis" for site in found.sites if site not in sites})
        drift: list[dict[Site, torch.Tensor]] = []
        noise: list[dict[Site, torch.Tensor]] = []
        held, flat = list[torch.Tensor](), list[torch.Tensor]()
        sizes: list[float] | None = list(made.eps) if made.eps is not None else None
        pieces = parts(
            model, inputs, labels, target=target, loss=loss, batch_size=batch_size, seed=seed, forward=forward,
            label="attack drift",
        )  # fmt: skip
        for part in track(pieces, "attack drift", enabled=progress):
            sizes = made.sizes(part) if sizes is None else sizes
            attack = made.attack(part, method)
            best = list(attack(sizes))
            held.append(torch.stack([one.held for one in best]))
            flat.append(torch.zeros(part.batch, dtype=torch.bool) if attack.flat is None else attack.flat)
            with torch.no_grad():
                clean = _outputs(part, part.job.start, sites)
                drift.append(_stacked([_drift(part, one.values, clean) for one in best]))
                if null:
                    noise.append(_stacked([_noise(part, made.ball, clean, size, draws, seed) for size in sizes]))
    assert sizes is not None
    kept = [site for site in sites if all(site in one for one in [*drift, *noise])]
    left_out.update({site.name: "did not run in the same way under the attack" for site in sites if site not in kept})
    if not kept:
        raise LayerNotFound(f"none of {len(sites)} layer(s) ran in the same way under the attack.")
    warn_left_out("attack_drift", left_out, layers is not None)
    warn_flat("attack_drift", torch.cat(flat), loss)
    values = torch.stack([torch.cat([one[site] for one in drift], dim=1) for site in kept])  # (layers, eps, batch)
    count = values.shape[2]
    return LayerProfile(
        quantity="relative change under attack",
        layers=tuple(site.name for site in kept),
        values=values.mean(dim=2),
        units="1",
        signed=False,
        method=made.words(method),
        settings={**made.settings(), "method": method, "eps": tuple(sizes), "draws": draws, "left_out": left_out},
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
            "It says where the attack is amplified and not which layer is at fault: a layer can move far in directions "
            "that the output does not depend on (see noise_response).",
        ),
    )


def _outputs(part: Part, values: Values, sites: list[Site]) -> dict[Site, torch.Tensor]:
    """The outputs of the sites as rows, `(batch, m)`."""
    found: dict[Site, torch.Tensor] = {}

    def read(site: Site, output: Any) -> None:
        axis = site.axes[site.main]
        assert axis is not None
        found[site] = by_row(floating(output)[site.main].clone(), axis, part.batch)

    part(values, read, sites)
    return found


def _drift(part: Part, values: Values, clean: dict[Site, torch.Tensor]) -> dict[Site, torch.Tensor]:
    """||h' - h|| / ||h|| of each sample, `(batch,)`; zero where nothing changed."""
    moved = _outputs(part, values, list(clean))
    found = {}
    for site, before in clean.items():
        after = moved.get(site)
        if after is not None and after.shape == before.shape:
            wide = torch.promote_types(before.dtype, torch.float32)
            change = torch.linalg.vector_norm(after - before, dim=1, dtype=wide).double().cpu()
            size = torch.linalg.vector_norm(before, dim=1, dtype=wide).double().cpu()
            found[site] = torch.where(change == 0, 0.0, change / size)
    return found


def _noise(
    part: Part, ball: Any, clean: dict[Site, torch.Tensor], size: float, draws: int, seed: int
) -> dict[Site, torch.Tensor]:
    """The mean drift over draws of random changes."""
    start = part.job.start
    each = _stacked(
        [_drift(part, ball.random(start, size, draw_seed(seed, draw), edge=True), clean) for draw in range(draws)]
    )
    return {site: values.mean(dim=0) for site, values in each.items()}


def _stacked(several: list[dict[Site, torch.Tensor]]) -> dict[Site, torch.Tensor]:
    """The sites that are in all, stacked."""
    return {site: torch.stack([one[site] for one in several]) for site in several[0] if all(site in o for o in several)}
