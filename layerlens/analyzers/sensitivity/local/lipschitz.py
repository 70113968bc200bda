"""How far a small change of the input can grow on its way to every layer: local Lipschitz constants from below."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import MEMORY, Site, survey
from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.leaves.leaves import find_leaves
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import NO_BATCH, listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import InputError, LayerNotFound, OptionError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.placement import GATHERED, refuse_parts
from layerlens.progress import track
from layerlens.results import LayerProfile

from ..stepped_runs import Job, Unavailable, directions, lengths
from .directional_derivatives import ROUTES, Kind, Route, answer
from .jacobian_products import Products
from .lanczos import Largest, largest

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


MOST_ROWS = 64
"""Rows of one run: each keeps the graph of the whole model."""

GAP = 0.1
"""Relative difference between v' (J' J v) and ||J v||^2 from which on they belong to two different functions."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What was found; arrays are `(layers, starts, batch)` where nothing else is said.

    Attributes:
        sites: the layers.
        sigma: the largest singular value.
        residual: ||J' J v - sigma^2 v|| / sigma^2.
        used: iterations.
        history: sigma after each iteration, `(layers, starts, batch, iterations)`.
        stretch: ||x|| / ||h||, `(layers, batch)`, which makes relative values.
        route: in words.
        leaves: what was stepped.
        left_out: name of a layer -> why it has no value.
    """

    sites: list[Site]
    sigma: torch.Tensor
    residual: torch.Tensor
    used: torch.Tensor
    history: torch.Tensor
    stretch: torch.Tensor
    route: str
    leaves: list[str]
    left_out: dict[str, str]


def spectrum(
    model: nn.Module,
    inputs: Inputs,
    layers: Selection,
    *,
    iterations: int,
    tolerance: float,
    starts: int,
    route: Route,
    seed: int,
    progress: bool | None,
    forward: Forward | None,
) -> Spectrum:
    """Iterate with J' J of every layer of a borrowed model.

    Raises:
        InputError: when nothing in the input can be stepped.
        LayerNotFound: when no layer can be measured.
        OptionError: when the route is impossible.
    """
    torch.manual_seed(seed)
    leaves = {name: leaf for name, leaf in find_leaves(model, inputs, forward).items() if leaf.value.ndim}
    if not leaves:
        raise InputError("the input holds single numbers only, and no floating-point tensor with a batch axis.")
    with torch.no_grad():
        found = survey(model, inputs, layers, forward, seed=seed)
        steps, count = directions(leaves, starts, seed)
        first = {name: step[:1] for name, step in steps.items()}
        job = Job(model, inputs, forward, leaves, first, found.sites, 1, seed, False, "lipschitz")
        answers, words, kind = answer(job, route, shared=False)
    left_out = {**found.left_out, **answers.left_out}
    for site in found.sites:
        if site.axes[site.main] is None:
            left_out.setdefault(site.name, NO_BATCH)
    sites = [site for site in found.sites if site in answers.norms and site.name not in left_out]
    wide = torch.promote_types(next(iter(leaves.values())).value.dtype, torch.float32)
    begin = torch.cat([step.reshape(starts, -1).to(wide) for step in steps.values()], dim=1)  # (starts, n)
    own = iterations * count * begin.element_size() * inputs.batch
    copies = max(1, min(found.copies(MOST_ROWS), MOST_ROWS // inputs.batch, MEMORY // own))
    pairs = [(site, start) for site in sites for start in range(starts)]
    kept: dict[tuple[Site, int], tuple[Largest, torch.Tensor]] = {}
    parts = [pairs[place : place + copies] for place in range(0, len(pairs), copies)]
    ticks = iter(track(range(len(parts) * iterations), "lipschitz", enabled=progress))
    for part in parts:
        kept.update(_run(job, part, kind, begin, iterations, tolerance, left_out, ticks))
    for _ in ticks:
        pass
    sites = [site for site in sites if site.name not in left_out]
    if not sites:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"no layer of {len(found.sites)} could be measured. {reasons}.")

    def stacked(read: Callable[[Largest], torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.stack([read(kept[site, start][0]) for start in range(starts)]) for site in sites])

    sizes = torch.stack([kept[site, 0][1] for site in sites])
    return Spectrum(
        sites,
        stacked(lambda one: one.value.sqrt()),
        stacked(lambda one: one.residual),
        stacked(lambda one: one.used),
        stacked(lambda one: one.history.sqrt()),
        lengths(job.start) / sizes,
        words,
        list(leaves),
        left_out,
    )


def _run(
    job: Job,
    pairs: list[tuple[Site, int]],
    kind: Kind,
    begin: torch.Tensor,
    iterations: int,
    tolerance: float,
    left_out: dict[str, str],
    ticks: Iterator[int],
) -> dict[tuple[Site, int], tuple[Largest, torch.Tensor]]:
    """(site, start) -> what was found of it, `(batch,)` each, and the lengths of the layer's outputs."""
    batch = job.inputs.batch
    products = Products(job, [site for site, _ in pairs], kind)
    start = torch.cat([begin[number].expand(batch, -1) for _, number in pairs])
    shown = (step for step, _ in zip(range(iterations), itertools.chain(ticks, itertools.repeat(0)), strict=False))
    try:
        found = largest(products, start, shown, iterations, tolerance)
    except Unavailable as error:
        left_out.update({site.name: str(error) for site, _ in pairs})
        return {}
    kept = {}
    for place, pair in enumerate(pairs):
        rows = slice(place * batch, (place + 1) * batch)
        own = Largest(**{field.name: getattr(found, field.name)[rows] for field in dataclasses.fields(found)})
        if bool((own.asymmetry > GAP).any()):
            left_out[pair[0].name] = (
                "its backward pass is not that of its forward pass (detach, numpy, or a gradient of its own)"
            )
        kept[pair] = own, products.sizes[place].double()
    return kept
