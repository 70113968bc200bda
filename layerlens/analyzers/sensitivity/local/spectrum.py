"""The largest singular value of the Jacobian of every layer, sample by sample."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import MEMORY, Site, survey
from layerlens.analyzers.common.leaves.leaves import find_leaves
from layerlens.analyzers.common.messages import NO_BATCH
from layerlens.errors import InputError, LayerNotFound
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import Selection
from layerlens.progress import track

from .estimate import directions
from .forward_mode import Kind, Route, answer
from .jacobian_products import Products
from .lanczos import Largest, largest
from .probe_run import Job, Unavailable, lengths

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
