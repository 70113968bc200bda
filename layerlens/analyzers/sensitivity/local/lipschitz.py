"""How far a small change of the input can grow on its way to every layer: local Lipschitz constants from below."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import OptionError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.tensor_parallel import GATHERED, refuse_parts
from layerlens.results import LayerProfile

from .forward_mode import ROUTES, Route
from .spectrum import Spectrum, spectrum

LOOSE = 0.1
"""Relative residual from which on a value is said not to have settled."""


@measure(
    question="responds_to_input",
    cost="dual F (4 F) + B for each layer, start (2) and iteration (at most 20)",
    needs="a floating-point input, or token ids",
    source="Szegedy et al. 2014, sec. 4.3; Lanczos 1950",
)
def lipschitz(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    iterations: int = 20,
    tolerance: float = 1e-2,
    starts: int = 2,
    relative: bool = False,
    route: Route = "auto",
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""The largest factor by which a small change of the input grows on its way to every layer, and to the output.

    For a layer h(x) with Jacobian J = dh/dx at x it is sigma_max(J) = max over v of ||J v|| / ||v||. Whatever region
    holds x, no Lipschitz constant of the layer on it is smaller (Szegedy et al. 2014, sec. 4.3, bound it from above):
    a **local lower bound**. It is found by iterating v <- J' J v / ||J' J v|| from a random start; of the span of all
    iterates the best vector is taken (Lanczos 1950), which is at least what power iteration gives and never above
    sigma_max, but for rounding.

    J v comes from a pass over dual numbers and J' u from a backward pass, for several layers in one run, which ends
    at the last of them. Token models are stepped in their embeddings, models with several inputs in all of them
    together. All samples get the same starts, so that a batch gives what its samples give alone. A layer costs at
    most starts x iterations x (dual F + B), and one F: select the layers of a large model.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers, as in `Selection`; None for every distinct activation, see `jacobian`.
            The last one is the model's output.
        iterations: at most, for each layer and start.
        tolerance: a sample is done when ||J' J v - sigma^2 v|| <= tolerance sigma^2: so near to sigma^2 lies the square
            of a singular value. The distance to the largest is of the order of the tolerance's square.
        starts: random starts; the best counts, and how far they agree is the error.
        relative: times ||x|| / ||h||: the relative change of the layer per relative change of the input, at worst.
            False is in units of the layer per unit of the input.
        route: of J v, as in `jacobian`. With finite differences, for models without dual numbers, a value may be
            above sigma_max by their error; `method` of the result names the route.
        null: also measure the model with the entries of each parameter tensor in random order.
        seed: of the starts, of the null, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` by layer and call in order of execution: the largest value over the batch, with its standard
        error over starts. Its checks are `"per sample"`, `(layers, batch)`, `"absolute"` and `"relative"`, `(layers,)`,
        `"residual"` and `"iterations"`, `(layers,)`, the largest over samples of the better start, and `"history"`,
        `(layers, iterations)`, the value after each iteration in absolute units.

    Raises:
        InputError: when nothing in the input can be stepped, or the model cannot be differentiated.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is out of range, or the route is impossible.

    Warns:
        UserWarning: when there is one start only, when layers had to be left out, when a value has not settled, or
            when values are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh())
        >>> _ = net[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> lipschitz(net, torch.zeros(1, 2)).values.round(decimals=4)
        tensor([3., 3.], dtype=torch.float64)
    """
    check_count("iterations", iterations)
    check_count("starts", starts)
    choose("route", route, ROUTES)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise OptionError(f"tolerance must be a number from 0 to below 1, got {tolerance!r}.")
    options: dict[str, Any] = {
        "iterations": iterations,
        "tolerance": tolerance,
        "starts": starts,
        "route": route,
        "seed": seed,
    }
    with borrowed(model), layers_called():
        refuse_parts(model, "lipschitz", GATHERED)
        inputs = as_inputs(x)
        own = spectrum(model, inputs, layers, **options, progress=progress, forward=forward)
        chance = None
        if null:
            paths = list(dict.fromkeys(site.path for site in own.sites))
            chance = spectrum(
                model, inputs, paths, **options, progress=progress, forward=shuffled(model, forward, seed)
            )
    names = tuple(site.name for site in own.sites)
    sigma = _scaled(own, relative)  # (layers, starts, batch)
    by_start = sigma.amax(dim=2)
    residual = own.residual.amin(dim=1).amax(dim=1)
    values = by_start.amax(dim=1)
    _warn(own, names, values, residual, layers is not None)
    return LayerProfile(
        quantity="largest relative growth of a change" if relative else "local Lipschitz constant, at least",
        layers=names,
        values=values,
        units="1" if relative else "units of the layer per unit of input",
        signed=False,
        method=f"Lanczos iteration with J'J, {starts} start{'s' * (starts > 1)}, {own.route}",
        settings={**options, "relative": relative, "inputs": ", ".join(own.leaves), "left_out": own.left_out},
        error=by_start.std(dim=1) / starts**0.5 if starts > 1 else None,
        null=None if chance is None else _aligned(chance, names, relative),
        checks={
            "per sample": sigma.amax(dim=1),
            "absolute": _scaled(own, False).amax(dim=(1, 2)),
            "relative": _scaled(own, True).amax(dim=(1, 2)),
            "residual": residual,
            "iterations": own.used.amax(dim=(1, 2)),
            "history": own.history.amax(dim=(1, 2)),
        },
        explanation=(
            "Each value is the largest factor by which a small change of one of these inputs can grow on its way to "
            "the layer, over all directions"
            + (", both changes being relative." if relative else ": no Lipschitz constant of the layer is smaller."),
            "It is a lower bound, found at these inputs: elsewhere, and for larger changes, the layer may react more, "
            "and a random change will grow far less (see jacobian).",
        ),
    )


def _scaled(own: Spectrum, relative: bool) -> torch.Tensor:
    if not relative:
        return own.sigma
    return torch.where(own.sigma == 0, 0.0, own.sigma * own.stretch.unsqueeze(1))


def _aligned(chance: Spectrum, names: tuple[str, ...], relative: bool) -> torch.Tensor:
    """The null by name; NaN where it took another route."""
    values = _scaled(chance, relative).amax(dim=(1, 2)).tolist()
    known = dict(zip([site.name for site in chance.sites], values, strict=True))
    return torch.tensor([known.get(name, float("nan")) for name in names], dtype=torch.float64)


def _warn(own: Spectrum, names: tuple[str, ...], values: torch.Tensor, residual: torch.Tensor, explicit: bool) -> None:
    """Say what would mislead."""
    warn_left_out("lipschitz", own.left_out, explicit)
    if own.sigma.shape[1] == 1:
        warn("lipschitz: one start gives no standard error. Use starts=2.")
    odd = [name for name, value in zip(names, values.tolist(), strict=True) if not abs(value) < float("inf")]
    if odd:
        warn(f"lipschitz: the values of {listed(odd)} are not finite.")
    loose = [name for name, far in zip(names, residual.tolist(), strict=True) if far > LOOSE]
    if loose:
        warn(
            f"lipschitz: the values of {listed(loose)} have not settled and may be far below the largest; give more "
            f"iterations (residual {float(residual[residual > LOOSE].max()):.2g} of the square; see checks).",
        )
