"""How strongly every layer responds to the input: norms of the Jacobians of all layers at once."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import Site, survey
from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.leaves.leaves import find_leaves
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.analyzers.common.null_model import shuffled
from layerlens.errors import InputError, LayerNotFound, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.placement import GATHERED, refuse_parts
from layerlens.results import LayerProfile

from ..stepped_runs import Answers, Job, directions, lengths
from .directional_derivatives import ROUTES, Route, answer


@measure(
    question="responds_to_input",
    cost="3 F (2 to 4) for each probe (8), all layers at once",
    needs="a floating-point input, or token ids",
    source="Novak et al. 2018, sec. 3.1; Hutchinson 1990",
)
def jacobian(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    relative: bool = True,
    probes: int = 8,
    route: Route = "auto",
    null: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> LayerProfile:
    r"""How much the output of every layer changes with the input, all layers measured in the same few passes.

    For a layer h(x) with Jacobian J = dh/dx at x, of n input values, the norm is estimated from random directions:
    ||J||_F^2 = E ||J v||^2, v ~ N(0, I) (Hutchinson 1990; as a measure of sensitivity Novak et al. 2018, sec. 3.1). A
    pass over dual numbers gives J v at all layers at once. Probes share the values and differ in tangents, so that a
    probe costs two to four plain passes; four to five on a model that does not bear it. Two scales:

    - relative (default): ||J||_F ||x|| / (sqrt(n) ||h||), the relative change of the layer, root mean square over
      directions, per relative change of the input. 1 is a layer that passes noise on as it is, less damps, more
      amplifies. It does not depend on units, on the layer's size or on a rescaling of its weights, so layers of one
      model, and models, can be compared.
    - absolute: ||J||_F, in units of the layer per unit of the input. It grows with the number of values of a layer.

    Values are means over the batch; all samples get the same directions, so that a batch gives what its samples give
    alone. Token models are stepped in their embeddings, models with several inputs in all of them together. Of a layer
    with a nested output the field named as in `MAIN_OUTPUTS` is read, else the first floating-point
    tensor.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers, as in `Selection`. None takes every distinct activation once, under the
            first layer that returned it: not containers that hand on their last child's output, identities, or dropout
            in eval mode. What is selected explicitly is never dropped as a duplicate.
        relative: which scale the values have; the other one is in `checks`.
        probes: directions. The standard error is at most 1 / sqrt(2 probes) of the value, far less where J has many
            singular values of like size.
        route: `"forward_ad"` is exact in each direction. Where torch has no dual numbers for a fused kernel of
            attention or recurrent layers, the plain kernel is used; where it has no rule for probes that share the
            values, they run on copies of the batch. `"finite_differences"`: central, with a step of 1e-5 ||x||, for
            whatever else. `"auto"` takes the first that works; `method` of the result names it.
        null: also measure the model with the entries of each parameter tensor in random order (buffers stay), as a
            mark for what the architecture alone gives.
        seed: of the directions, of the null, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `LayerProfile` by layer and call in order of execution, with the standard error over probes. Its checks are
        `"relative"` and `"absolute"`, `(layers,)`, and `"per sample"`, `(layers, batch)`; `settings["left_out"]` says
        which layers could not be measured, and why.

    Raises:
        InputError: when nothing in the input can be stepped.
        LayerNotFound: when the selection matches no layer that can be measured.
        OptionError: when an option is out of range, or the route is impossible.

    Warns:
        UserWarning: when there is one probe only, when layers had to be left out, or when values are not finite, all
            zero, or close to rounding.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(3 * torch.eye(2))
        >>> profile = jacobian(net, torch.tensor([[1.0, 2.0]]), relative=False, probes=2000)
        >>> profile.layers, [round(value) for value in profile.values.tolist()]  # 3 sqrt(2) = 4.24
        (('0', '1'), [4, 4])
    """
    check_count("probes", probes)
    choose("route", route, ROUTES)
    with borrowed(model, grad=False), layers_called():
        refuse_parts(model, "jacobian", GATHERED)
        inputs = as_inputs(x)
        own = estimate(model, inputs, layers, probes=probes, route=route, seed=seed, progress=progress, forward=forward)
        chance = None
        if null:
            chance = estimate(
                model,
                inputs,
                list(dict.fromkeys(site.path for site in own.sites)),
                probes=probes,
                route=route,
                seed=seed,
                progress=progress,
                forward=shuffled(model, forward, seed),
            )
    values, error = mean(own.scale(relative))
    _warn(own, values, probes, layers is not None)
    return LayerProfile(
        quantity="relative sensitivity to the input" if relative else "Jacobian norm",
        layers=tuple(site.name for site in own.sites),
        values=values,
        units="1" if relative else "units of the layer per unit of input",
        signed=False,
        method=f"Jacobian, {probes} probe{'s' * (probes > 1)}, {own.route}",
        settings={
            "relative": relative,
            "probes": probes,
            "route": route,
            "seed": seed,
            "inputs": ", ".join(own.leaves),
            "left_out": own.left_out,
        },
        error=error if probes > 1 else None,
        null=None if chance is None else aligned(chance, own.sites, relative),
        checks={
            "relative": mean(own.relative)[0],
            "absolute": mean(own.absolute)[0],
            "per sample": own.scale(relative).mean(dim=1).sqrt(),
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
        "It is local to these inputs and says nothing of whether the model's output depends on the layer: ask "
        "question='matters_to_output' for that."
    )


def _warn(own: Estimate, values: torch.Tensor, probes: int, explicit: bool) -> None:
    """Say what would mislead."""
    warn_left_out("jacobian", own.left_out, explicit)
    names = [site.name for site in own.sites]
    if probes == 1:
        warn("jacobian: one probe gives no standard error, and a value that may be far off. Use probes=8.")
    odd = [name for name, value in zip(names, values.tolist(), strict=True) if not abs(value) < float("inf")]
    if odd:
        warn(
            f"jacobian: the values of {listed(odd)} are not finite: the layer's output is zero or overflows there. "
            "relative=False does not divide by it.",
        )
    if not bool(values.any()):
        warn("jacobian: no layer responds to the input at all; does the selection lie behind it?")
    if own.doubtful:
        warn(
            f"jacobian: the finite differences at {listed(own.doubtful)} are close to rounding; use float64: "
            "model.double(), x.double().",
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Squares of what each direction u showed, `(layers, probes, batch)`; u = v / sqrt(n), v ~ N(0, I).

    Attributes:
        sites: the layers.
        absolute: n ||J u||^2, whose mean over u is ||J||_F^2.
        relative: ||J u||^2 ||x||^2 / ||h||^2; zero where the layer does not respond.
        route: in words.
        leaves: what was stepped.
        left_out: name of a layer -> why it has no value.
        doubtful: names of layers whose values are close to rounding.
    """

    sites: list[Site]
    absolute: torch.Tensor
    relative: torch.Tensor
    route: str
    leaves: list[str]
    left_out: dict[str, str]
    doubtful: list[str]

    def scale(self, relative: bool) -> torch.Tensor:
        """The one or the other."""
        return self.relative if relative else self.absolute


def estimate(
    model: nn.Module,
    inputs: Inputs,
    layers: Selection,
    *,
    probes: int,
    route: Route,
    seed: int,
    progress: bool | None,
    forward: Forward | None,
) -> Estimate:
    """Step the input of a borrowed model along random directions and read the layers' answers.

    Raises:
        InputError: when nothing in the input can be stepped.
        LayerNotFound: when no layer can be measured.
        OptionError: when the route is impossible.
    """
    torch.manual_seed(seed)
    leaves = {name: leaf for name, leaf in find_leaves(model, inputs, forward).items() if leaf.value.ndim}
    if not leaves:
        raise InputError("the input holds single numbers only, and no floating-point tensor with a batch axis.")
    found = survey(model, inputs, layers, forward, seed=seed)
    steps, count = directions(leaves, probes, seed)
    job = Job(model, inputs, forward, leaves, steps, found.sites, found.copies(probes), seed, progress, "jacobian")
    answers, words, _ = answer(job, route)
    left_out = {**found.left_out, **answers.left_out}
    sites = _complete(found.sites, answers, probes, left_out)
    norms = torch.stack([torch.cat(answers.norms[site]) for site in sites]).square()  # (layers, probes, batch)
    sizes = torch.stack([torch.cat(answers.sizes[site]) for site in sites]).square()
    relative = torch.where(norms == 0, 0.0, norms * lengths(job.start).square() / sizes)
    doubtful = [site.name for site in sites if site in answers.doubtful]
    return Estimate(sites, count * norms, relative, words, list(leaves), left_out, doubtful)


def _complete(sites: list[Site], answers: Answers, probes: int, left_out: dict[str, str]) -> list[Site]:
    """The sites that answered to every probe; the others are noted in `left_out`."""
    kept = []
    for site in sites:
        if site.name in answers.left_out:
            continue
        if sum(len(part) for part in answers.norms.get(site, [])) == probes:
            kept.append(site)
        else:
            left_out[site.name] = "did not run for every probe: the route of this model changes"
    if not kept:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"no layer of {len(sites)} could be measured. {reasons}.")
    return kept


def mean(squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Root mean square over probes, mean over the batch, `(layers,)`, and its standard error over probes.

    The error is that of the mean of g_p = sum over samples of (s_p - m) / (2 sqrt(m)), the linear term of the square
    roots in the squares s_p around their mean m (the delta method); samples share probes, so their errors add up.

    Args:
        squares: `(layers, probes, batch)`.
    """
    average = squares.mean(dim=1, keepdim=True)
    roots = average.sqrt()
    slopes = torch.where(roots > 0, (squares - average) / (2 * roots), 0.0).mean(dim=2)  # (layers, probes)
    count = squares.shape[1]
    error = slopes.std(dim=1) / count**0.5 if count > 1 else torch.zeros(len(squares), dtype=squares.dtype)
    return roots.mean(dim=(1, 2)), error


def aligned(other: Estimate, sites: list[Site], relative: bool) -> torch.Tensor:
    """The values of `other` at the sites, `(layers,)`; NaN where it took another route."""
    values = dict(zip([site.name for site in other.sites], mean(other.scale(relative))[0].tolist(), strict=True))
    return torch.tensor([values.get(site.name, float("nan")) for site in sites], dtype=torch.float64)
