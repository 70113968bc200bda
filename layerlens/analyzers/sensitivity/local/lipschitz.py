"""How far a small change of the input can grow on its way to every layer: lower bounds of local Lipschitz constants."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import MEMORY, MeasuredCall, survey
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import NO_BATCH, listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import OptionError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Selection
from layerlens.model.placement import GATHERED, refuse_parts
from layerlens.progress import track
from layerlens.results import LayerProfile

from ..model_run import ModelRun
from ..stepped_runs import SteppedRun, Unavailable, draw_directions, refuse_none, row_lengths, stepped_leaves
from .directional_derivatives import ROUTES, Route, measure_responses
from .jacobian_products import Products
from .lanczos import Largest, largest

UNCONVERGED = 0.1
"""Relative residual above which a value is reported as not converged."""


@measure(
    question="responds_to_input",
    cost="dual F (4 F) + B for each layer, start (2) and iteration (at most 20)",
    needs="a floating-point input, or token ids",
    source="Szegedy et al. 2014, sec. 4.3; Lanczos 1950",
    renamed={"starts": "restarts"},
)
def lipschitz(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    iterations: int = 20,
    tolerance: float = 1e-2,
    restarts: int = 2,
    relative: bool = False,
    route: Route = "auto",
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""Measure the largest factor by which a small change of the input grows on its way to every layer.

    For a layer h(x) with Jacobian J = dh/dx at x it is sigma_max(J) = max over v of ||J v|| / ||v||. No Lipschitz
    constant of the layer on a region around x is smaller (Szegedy et al. 2014, sec. 4.3, bound it from above): a
    **local lower bound**. It is found by iterating v <- J' J v / ||J' J v|| from a random start, and the best vector in
    the span of all iterates is taken (Lanczos 1950), which gives at least the value of power iteration and never more
    than sigma_max, except by rounding.

    J v comes from a pass over dual numbers and J' u from a backward pass, for several layers in one run, which ends
    at the last of them. Token models are stepped in their embeddings, models with several inputs in all of them
    together. All samples get the same starts, so a batch gives what its samples give alone. A layer costs at most
    restarts x iterations x (dual F + B), and one F: select the layers of a large model.

    Args:
        layers: which layers, see `Selection`; None for every distinct activation, see `jacobian`. The last one is the
            model's output.
        iterations: largest number of iterations for each layer and start.
        tolerance: a sample is done when ||J' J v - sigma^2 v|| <= tolerance sigma^2: the square of a singular value is
            that close to sigma^2. The distance to the largest is of the order of the tolerance's square.
        restarts: number of random starts; the best one counts, and how far they agree is the error.
        relative: whether to multiply by ||x|| / ||h||, for the relative change of the layer per relative change of
            the input; False is in units of the layer per unit of the input.
        route: route to J v, see `jacobian`. With finite differences, for models without dual numbers, a value may be
            above sigma_max by their error; `method` of the result names the route.

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
        UserWarning: when there is only one start, layers had to be left out, or a value has not converged or is not
            finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh())
        >>> _ = net[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        >>> lipschitz(net, torch.zeros(1, 2)).values.round(decimals=4)
        tensor([3., 3.], dtype=torch.float64)
    """
    check_count("iterations", iterations)
    check_count("restarts", restarts)
    choose("route", route, ROUTES)
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise OptionError(f"tolerance must be a number from 0 to below 1, got {tolerance!r}.")
    options = LanczosOptions(iterations, tolerance, restarts, route)
    with borrowed(model), layers_called(), said_once() as passes:
        refuse_parts(model, "lipschitz", GATHERED)
        run = ModelRun(model, held_input(model, x, hold, forward), forward, seed, progress)
        measured = spectrum(run, layers, options)
        null_model = None
        if null:
            paths = list(dict.fromkeys(site.key for site in measured.sites))
            null_model = spectrum(dataclasses.replace(run, forward=shuffled(model, forward, seed)), paths, options)
    names = tuple(site.name for site in measured.sites)
    sigma = _scaled(measured, relative)  # (layers, restarts, batch)
    by_start = sigma.amax(dim=2)
    residual = measured.residual.amin(dim=1).amax(dim=1)
    values = by_start.amax(dim=1)
    _warn(measured, names, values, residual, layers is not None)
    return LayerProfile(
        quantity="largest relative growth of a change" if relative else "local Lipschitz constant, at least",
        layers=names,
        values=values,
        units="1" if relative else "units of the layer per unit of input",
        signed=False,
        method=f"Lanczos iteration with J'J, {restarts} start{'s' * (restarts > 1)}, {measured.route}",
        settings={
            **dataclasses.asdict(options),
            "seed": seed,
            "relative": relative,
            "inputs": ", ".join(measured.leaves),
            "left_out": measured.left_out,
            **passes,
        },
        error=by_start.std(dim=1) / restarts**0.5 if restarts > 1 else None,
        null=None if null_model is None else _aligned(null_model, names, relative),
        checks={
            "per sample": sigma.amax(dim=1),
            "absolute": _scaled(measured, False).amax(dim=(1, 2)),
            "relative": _scaled(measured, True).amax(dim=(1, 2)),
            "residual": residual,
            "iterations": measured.used.amax(dim=(1, 2)),
            "history": measured.history.amax(dim=(1, 2)),
        },
        explanation=(
            "Each value is the largest factor by which a small change of one of these inputs can grow on its way to "
            "the layer, over all directions"
            + (", both changes being relative." if relative else ": no Lipschitz constant of the layer is smaller."),
            "It is a lower bound, found at these inputs: elsewhere, and for larger changes, the layer may react more, "
            "and a random change will grow far less (see jacobian).",
        ),
    )


def _scaled(measured: Spectrum, relative: bool) -> torch.Tensor:
    if not relative:
        return measured.sigma
    return torch.where(measured.sigma == 0, 0.0, measured.sigma * measured.stretch.unsqueeze(1))


def _aligned(null_model: Spectrum, names: tuple[str, ...], relative: bool) -> torch.Tensor:
    """Return the values of the null by name; NaN where it took another route."""
    values = _scaled(null_model, relative).amax(dim=(1, 2)).tolist()
    known = dict(zip([site.name for site in null_model.sites], values, strict=True))
    return torch.tensor([known.get(name, float("nan")) for name in names], dtype=torch.float64)


def _warn(
    measured: Spectrum, names: tuple[str, ...], values: torch.Tensor, residual: torch.Tensor, explicit: bool
) -> None:
    """Warn of what would mislead."""
    warn_left_out("lipschitz", measured.left_out, explicit)
    if measured.sigma.shape[1] == 1:
        warn("lipschitz: one start gives no standard error. Use restarts=2.")
    not_finite = [name for name, value in zip(names, values.tolist(), strict=True) if not abs(value) < float("inf")]
    if not_finite:
        warn(f"lipschitz: the values of {listed(not_finite)} are not finite.")
    unconverged = [name for name, far in zip(names, residual.tolist(), strict=True) if far > UNCONVERGED]
    if unconverged:
        worst = float(residual[residual > UNCONVERGED].max())
        warn(
            f"lipschitz: the values of {listed(unconverged)} have not converged and may be far below the largest; give "
            f"more iterations (residual {worst:.2g} of the square; see checks).",
        )


MOST_ROWS = 64
"""Largest number of rows in one run: each holds the graph of the whole model."""

GAP = 0.1
"""Relative difference between v' (J' J v) and ||J v||^2 above which they belong to two different functions."""

GRADIENT = "its backward pass does not belong to its forward pass (detach, numpy, or a custom gradient)"
MIXED = "samples influence each other in it, or are in another order than in the input: give one sample, such as x[:1]"


@dataclasses.dataclass(frozen=True)
class LanczosOptions:
    """Options of `lipschitz` that say how to iterate."""

    iterations: int
    tolerance: float
    restarts: int
    route: Route


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The largest singular values; arrays are `(layers, restarts, batch)` unless stated otherwise.

    Attributes:
        sites: the layers.
        sigma: the largest singular value.
        residual: ||J' J v - sigma^2 v|| / sigma^2.
        used: number of iterations.
        history: sigma after each iteration, `(layers, restarts, batch, iterations)`.
        stretch: ||x|| / ||h||, `(layers, batch)`, the factor of relative values.
        route: description of the route.
        leaves: names of the inputs that were stepped.
        left_out: name of a layer -> why it has no value.
    """

    sites: list[MeasuredCall]
    sigma: torch.Tensor
    residual: torch.Tensor
    used: torch.Tensor
    history: torch.Tensor
    stretch: torch.Tensor
    route: str
    leaves: list[str]
    left_out: dict[str, str]


def spectrum(run: ModelRun, layers: Selection, options: LanczosOptions) -> Spectrum:
    """Iterate with J' J of every layer.

    Raises:
        InputError: when nothing in the input can be stepped.
        LayerNotFound: when no layer can be measured.
        OptionError: when the route is impossible.
    """
    seed_torch(run.seed)
    leaves, restarts = stepped_leaves(run), options.restarts
    with torch.no_grad():
        clean = survey(run.model, run.inputs, layers, run.forward, seed=run.seed, apart=True)
        steps, count = draw_directions(leaves, restarts, run.seed)
        first = {name: step[:1] for name, step in steps.items()}
        stepped = SteppedRun(dataclasses.replace(run, progress=False), leaves, "lipschitz", first, clean.sites)
        responses, route_text, kind = measure_responses(stepped, options.route, shared=False)
    left_out = {**clean.left_out, **responses.left_out}
    for site in clean.sites:
        if site.axes[site.main] is None:
            left_out.setdefault(site.name, NO_BATCH)
    sites = [site for site in clean.sites if site in responses.norms and site.name not in left_out]
    wide = torch.promote_types(next(iter(leaves.values())).value.dtype, torch.float32)
    starts = torch.cat([step.reshape(restarts, -1).to(wide) for step in steps.values()], dim=1)  # (restarts, n)
    nbytes = options.iterations * count * starts.element_size() * run.batch  # of the vectors of one copy
    copies = max(1, min(clean.copies(MOST_ROWS), MOST_ROWS // run.batch, MEMORY // nbytes))
    copies = stepped.together(copies)
    pairs = [(site, start) for site in sites for start in range(restarts)]
    kept: dict[tuple[MeasuredCall, int], tuple[Largest, torch.Tensor]] = {}
    chunks = [pairs[place : place + copies] for place in range(0, len(pairs), copies)]
    ticks = iter(track(range(len(chunks) * options.iterations), "lipschitz", enabled=run.progress))
    for chunk in chunks:
        products = Products(stepped, [site for site, _ in chunk], kind)
        kept.update(_iterate(products, chunk, starts, options, left_out, ticks))
    for _ in ticks:
        pass
    sites = [site for site in sites if site.name not in left_out]
    refuse_none(sites, len(clean.sites), left_out)

    def stacked(read: Callable[[Largest], torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.stack([read(kept[site, start][0]) for start in range(restarts)]) for site in sites])

    sizes = torch.stack([kept[site, 0][1] for site in sites])
    return Spectrum(
        sites,
        stacked(lambda one: one.value.sqrt()),
        stacked(lambda one: one.residual),
        stacked(lambda one: one.used),
        stacked(lambda one: one.history.sqrt()),
        row_lengths(stepped.start) / sizes,
        route_text,
        list(leaves),
        left_out,
    )


def _iterate(
    products: Products,
    pairs: list[tuple[MeasuredCall, int]],
    starts: torch.Tensor,
    options: LanczosOptions,
    left_out: dict[str, str],
    ticks: Iterator[int],
) -> dict[tuple[MeasuredCall, int], tuple[Largest, torch.Tensor]]:
    """Return, for each site and start, its eigenvalues, `(batch,)`, and the lengths of the layer's outputs."""
    batch, count = products.batch, options.iterations
    start = torch.cat([starts[number].expand(batch, -1) for _, number in pairs])
    shown = (step for step, _ in zip(range(count), itertools.chain(ticks, itertools.repeat(0)), strict=False))
    try:
        eigenvalues = largest(products, start, shown, count, options.tolerance)
    except Unavailable as error:
        left_out.update({site.name: str(error) for site, _ in pairs})
        return {}
    kept = {}
    for place, pair in enumerate(pairs):
        rows = slice(place * batch, (place + 1) * batch)
        pair_values = Largest(
            **{field.name: getattr(eigenvalues, field.name)[rows] for field in dataclasses.fields(eigenvalues)}
        )
        if _apart(pair_values.forms, GAP):  # the batch as a whole has one J, also where samples are mixed
            left_out[pair[0].name] = GRADIENT if _apart(pair_values.forms.sum(dim=0), GAP / 10) else MIXED
        kept[pair] = pair_values, products.sizes[place].double()
    return kept


def _apart(forms: torch.Tensor, gap: float) -> bool:
    """Whether ||J v||^2 and v' (J' J v), the last axis, differ."""
    direct, pulled = forms.unbind(dim=-1)
    return bool(((pulled - direct).abs() > gap * direct).any())
