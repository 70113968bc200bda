"""Squared Jacobian norms of every layer from random directions, and what follows from them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import Site, survey
from layerlens.analyzers.common.leaves.leaves import Leaf, find_leaves
from layerlens.errors import InputError, LayerNotFound
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import Selection

from .forward_mode import Route, answer
from .probe_run import Answers, Job, Values, lengths


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


def directions(leaves: dict[str, Leaf], probes: int, seed: int) -> tuple[Values, int]:
    """The directions u by leaf, `(probes, ...)`, and the number n of values they step.

    Drawn probe by probe on the main processor, so that they are the same whatever the batch, dtype and device.
    """
    generator = torch.Generator().manual_seed(seed)
    count = sum(leaf.value[0].numel() for leaf in leaves.values())
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in leaves}
    for _ in range(probes):
        for name, leaf in leaves.items():
            drawn[name].append(torch.randn(leaf.value.shape[1:], generator=generator, dtype=torch.float32))
    return {name: (torch.stack(drawn[name]) / count**0.5).to(leaf.value) for name, leaf in leaves.items()}, count


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
