"""How strongly every layer responds to the input: norms of the Jacobians of all layers at once."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, survey
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import check_count, choose, warn
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Selection
from layerlens.model.placement import GATHERED, refuse_parts
from layerlens.results import LayerProfile

from ..model_run import ModelRun
from ..stepped_runs import (
    Responses,
    SteppedRun,
    draw_directions,
    refuse_none,
    row_lengths,
    stepped_leaves,
)
from .directional_derivatives import ROUTES, Route, measure_responses


@measure(
    question="responds_to_input",
    cost="3 F (2 to 4) for each draw (8), all layers at once",
    needs="a floating-point input, or token ids",
    source="Novak et al. 2018, sec. 3.1; Hutchinson 1990",
    renamed={"probes": "draws"},
)
def jacobian(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    relative: bool = True,
    draws: int = 8,
    route: Route = "auto",
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""Measure how much the output of every layer changes with the input, all layers in the same few passes.

    For a layer h(x) with Jacobian J = dh/dx at x, of n input values, the norm is estimated from random directions:
    ||J||_F^2 = E ||J v||^2, v ~ N(0, I) (Hutchinson 1990; as a measure of sensitivity Novak et al. 2018, sec. 3.1). A
    pass over dual numbers gives J v at all layers at once. Draws share the values and differ in tangents, so that a
    draw costs two to four passes; four to five on a model that does not allow sharing. There are two scales:

    - relative (default): ||J||_F ||x|| / (sqrt(n) ||h||), the relative change of the layer, root mean square over
      directions, per relative change of the input. A layer of value 1 passes noise on unchanged, below 1 it
      damps, above 1 it amplifies. The value does not depend on units, on the layer's size or on a rescaling of its
      weights, so layers of one model, and models, can be compared.
    - absolute: ||J||_F, in units of the layer per unit of the input, which grows with the number of values in a layer.

    Values are means over the batch. All samples get the same directions, so a batch gives what its samples give alone.
    Token models are stepped in their embeddings, models with several inputs in all of them together. Of a nested
    output, the field named in `MAIN_OUTPUTS` is read, else the first floating-point tensor.

    Args:
        layers: which layers, see `Selection`. None takes every distinct activation once, under the first layer that
            returned it: not containers that return their last child's output, identities, or dropout in eval mode.
            What is selected explicitly is never dropped as a duplicate.
        relative: whether the values are relative; the other scale is in `checks`.
        draws: number of random directions. The standard error is at most 1 / sqrt(2 draws) of the value, far less
            where J has many singular values of similar size.
        route: `"forward_ad"` is exact in each direction. Where torch has no dual numbers for a fused kernel of
            attention or recurrent layers, the primitive kernel is used; where it has no rule for draws that share the
            values, they run on copies of the batch. `"finite_differences"` are central, with a step of 1e-5 ||x||.
            `"auto"` takes the first that works; `method` of the result names it.

    Returns:
        A `LayerProfile` by layer and call in order of execution, with the standard error over draws. Its checks are
        `"relative"` and `"absolute"`, `(layers,)`, and `"per sample"`, `(layers, batch)`; `settings["left_out"]`
        maps the layers that could not be measured to the reason.

    Raises:
        InputError: when nothing in the input can be stepped.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is out of range, or the route is impossible.

    Warns:
        UserWarning: when there is only one draw, layers had to be left out, or values are not finite, all zero, or
            close to rounding.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(3 * torch.eye(2))
        >>> profile = jacobian(net, torch.tensor([[1.0, 2.0]]), relative=False, draws=2000)
        >>> profile.layers, [round(value) for value in profile.values.tolist()]  # 3 sqrt(2) = 4.24
        (('0', '1'), [4, 4])
    """
    check_count("draws", draws)
    choose("route", route, ROUTES)
    with borrowed(model, grad=False), layers_called(), said_once() as passes:
        refuse_parts(model, "jacobian", GATHERED)
        run = ModelRun(model, held_input(model, x, hold, forward), forward, seed, progress)
        measured = estimate(run, layers, draws, route)
        null_model = None
        if null:
            paths = list(dict.fromkeys(site.key for site in measured.sites))
            shuffled_run = dataclasses.replace(run, forward=shuffled(model, forward, seed))
            null_model = estimate(shuffled_run, paths, draws, route)
    values, error = root_mean_square(measured.scale(relative))
    _warn(measured, values, draws, layers is not None)
    return LayerProfile(
        quantity="relative sensitivity to the input" if relative else "Jacobian norm",
        layers=tuple(site.name for site in measured.sites),
        values=values,
        units="1" if relative else "units of the layer per unit of input",
        signed=False,
        method=f"Jacobian, {draws} draw{'s' * (draws > 1)}, {measured.route}",
        settings={
            "relative": relative,
            "draws": draws,
            "route": route,
            "seed": seed,
            "inputs": ", ".join(measured.leaves),
            "left_out": measured.left_out,
            **passes,
        },
        error=error if draws > 1 else None,
        null=None if null_model is None else aligned_values(null_model, measured.sites, relative),
        null_name="with shuffled weights",
        checks={
            "relative": root_mean_square(measured.relative)[0],
            "absolute": root_mean_square(measured.absolute)[0],
            "per sample": measured.scale(relative).mean(dim=1).sqrt(),
        },
        explanation=_explanation(relative),
    )


def _explanation(relative: bool) -> tuple[str, str]:
    means = (
        "Each value is the relative change of a layer's output for a small relative change of the input, in a random "
        "direction: above 1 the layer amplifies, below 1 it damps."
        if relative
        else "Each value is the norm of the layer's Jacobian, in the layer's units per unit of input: how far the "
        "layer moves for a small change of the input; it grows with the number of values in the layer."
    )
    return means, (
        "It is local to these inputs and does not say whether the model's output depends on the layer: ask "
        "question='matters_to_output' for that."
    )


def _warn(measured: Estimate, values: torch.Tensor, draws: int, explicit: bool) -> None:
    """Warn of what would mislead."""
    warn_left_out("jacobian", measured.left_out, explicit)
    names = [site.name for site in measured.sites]
    if draws == 1:
        warn("jacobian: one draw gives no standard error, and a value that may be far off. Use draws=8.")
    not_finite = [name for name, value in zip(names, values.tolist(), strict=True) if not abs(value) < float("inf")]
    if not_finite:
        warn(
            f"jacobian: the values of {listed(not_finite)} are not finite: the layer's output is zero or overflows "
            "there. relative=False does not divide by it.",
        )
    if not bool(values.any()):
        warn("jacobian: no layer responds to the input at all; does the selection lie behind it?")
    if measured.doubtful:
        warn(
            f"jacobian: the finite differences at {listed(measured.doubtful)} are close to rounding; use float64: "
            "model.double(), x.double().",
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Squared responses to each direction u, `(layers, draws, batch)`; u = v / sqrt(n), v ~ N(0, I).

    Attributes:
        sites: the layers.
        absolute: n ||J u||^2, whose mean over u is ||J||_F^2.
        relative: ||J u||^2 ||x||^2 / ||h||^2; zero where the layer does not respond.
        route: description of the route.
        leaves: names of the inputs that were stepped.
        left_out: name of a layer -> why it has no value.
        doubtful: names of layers whose values are close to rounding.
    """

    sites: list[MeasuredCall]
    absolute: torch.Tensor
    relative: torch.Tensor
    route: str
    leaves: list[str]
    left_out: dict[str, str]
    doubtful: list[str]

    def scale(self, relative: bool) -> torch.Tensor:
        """Return the squares of one scale."""
        return self.relative if relative else self.absolute


def estimate(run: ModelRun, layers: Selection, draws: int, route: Route) -> Estimate:
    """Step the input in random directions and read the responses of the layers.

    Raises:
        InputError: when nothing in the input can be stepped.
        LayerNotFound: when no layer can be measured.
        OptionError: when the route is impossible.
    """
    seed_torch(run.seed)
    leaves = stepped_leaves(run)
    clean = survey(run.model, run.inputs, layers, run.forward, seed=run.seed, apart=True)
    steps, count = draw_directions(leaves, draws, run.seed)
    stepped = SteppedRun(run, leaves, "jacobian", steps, clean.sites)
    stepped = dataclasses.replace(stepped, copies=stepped.together(clean.copies(draws)))
    responses, route_text, _ = measure_responses(stepped, route)
    left_out = {**clean.left_out, **responses.left_out}
    sites = _complete_sites(clean.sites, responses, draws, left_out)
    norms = torch.stack([torch.cat(responses.norms[site]) for site in sites]).square()  # (layers, draws, batch)
    sizes = torch.stack([torch.cat(responses.sizes[site]) for site in sites]).square()
    relative = torch.where(norms == 0, 0.0, norms * row_lengths(stepped.start).square() / sizes)
    doubtful = [site.name for site in sites if site in responses.doubtful]
    return Estimate(sites, count * norms, relative, route_text, list(leaves), left_out, doubtful)


def _complete_sites(
    sites: list[MeasuredCall], responses: Responses, draws: int, left_out: dict[str, str]
) -> list[MeasuredCall]:
    """Return the sites that responded to every draw, and note the others in `left_out`.

    Raises:
        LayerNotFound: when none did.
    """
    kept = []
    for site in sites:
        if site.name in responses.left_out:
            continue
        if sum(len(part) for part in responses.norms.get(site, [])) == draws:
            kept.append(site)
        else:
            left_out[site.name] = "did not run for every draw: the route of this model changes"
    refuse_none(kept, len(sites), left_out)
    return kept


def root_mean_square(squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the root mean square over draws, mean over the batch, `(layers,)`, and its standard error over draws.

    The error is that of the mean of g_p = sum over samples of (s_p - m) / (2 sqrt(m)), the linear term of the square
    roots in the squares s_p around their mean m (the delta method); samples share draws, so their errors add up.

    Args:
        squares: `(layers, draws, batch)`.
    """
    average = squares.mean(dim=1, keepdim=True)
    roots = average.sqrt()
    slopes = torch.where(roots > 0, (squares - average) / (2 * roots), 0.0).mean(dim=2)  # (layers, draws)
    count = squares.shape[1]
    error = slopes.std(dim=1) / count**0.5 if count > 1 else torch.zeros(len(squares), dtype=squares.dtype)
    return roots.mean(dim=(1, 2)), error


def aligned_values(other: Estimate, sites: list[MeasuredCall], relative: bool) -> torch.Tensor:
    """Return the values of `other` at the sites, `(layers,)`; NaN where it took another route."""
    values = dict(
        zip([site.name for site in other.sites], root_mean_square(other.scale(relative))[0].tolist(), strict=True)
    )
    return torch.tensor([values.get(site.name, float("nan")) for site in sites], dtype=torch.float64)
