"""Candidates for a better default for images: relevance at several layers and views, and as the prior of few masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from layerlens import relevance
from layerlens.analyzers.common.features.baselines import blur, gaussian_blur
from layerlens.analyzers.generation.source_regression import fit

from .image_curves import probabilities
from .image_masks import LOGIT, masked

STRIDES = (1, 8, 16, 32)
"""Of the pixels and of the layers at which relevance is read: the last layer of each resolution."""

BLUR = 4.0
"""Deviation of the blur of the pixels' relevance, in pixels."""

CORNER = 7 / 8
"""Side of a crop."""

Map = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]


def strided(strides: Sequence[int] = STRIDES) -> Map:
    """Relevance at several resolutions, each positive part with sum 1, added up: from one sweep."""

    def read(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        layers = {stride: last_of(model, x.shape[2:], stride) for stride in strides if stride > 1}
        found = relevance(model, x, target=target, rules="epsilon_plus", layers=[*layers.values()])
        total = torch.zeros(1, *x.shape[2:])
        for stride in strides:
            values = (
                (found.tensor if stride == 1 else found.layers[layers[stride]][0]).detach().sum(dim=1, keepdim=True)
            )
            values = gaussian_blur(values, {2: BLUR, 3: BLUR}) if stride == 1 else values
            positive = F.interpolate(values.float(), x.shape[2:], mode="bilinear")[:, 0].clamp_min(0)
            total += positive / positive.sum().clamp_min(1e-12)
        return total

    return read


@functools.cache
def last_of(model: nn.Module, sides: torch.Size, stride: int) -> str:
    """The last block of an image classifier whose output has a stride."""
    size = tuple(-(-side // stride) for side in sides)
    found: list[str] = []
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, name=name: found.append(name) if out.shape[2:] == size else None
        )
        for name, block in model.named_modules()
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ModuleList)
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *sides))
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1]


def views(of: Map) -> Map:
    """The sum over the picture and its four corners."""

    def total_of(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        side = x.shape[2]
        cut = int(CORNER * side)
        total = of(model, x, target).clone()
        for top in (0, side - cut):
            for left in (0, side - cut):
                part = F.interpolate(x[:, :, top : top + cut, left : left + cut], (side, side), mode="bilinear")
                values = F.interpolate(of(model, part, target)[:, None], (cut, cut), mode="bilinear")[:, 0]
                total[:, top : top + cut, left : left + cut] += values * (side / cut) ** 2
        return total

    return total_of


def posterior(masks: int, prior: Map, score: int = LOGIT) -> Map:
    """The Bayesian regression of `explain_answer` on the scores of masks, with a map as the prior of its effects."""

    def estimate(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        shared = masked(model, x, target)
        scores = shared(masks)[:, score, None]
        expected = shared.masks.pooled(prior(model, x, target)).double()
        values, _, _ = fit(shared.pooled(masks).numpy(), scores.numpy(), expected.numpy())
        return shared.masks.enlarged(torch.from_numpy(values))

    return estimate


def ranks(values: torch.Tensor) -> torch.Tensor:
    """The ranks, 0 to 1, of the places of a map `(1, ..., height, width)` added over channels, `(1, 1, ...)`."""
    flat = values.detach().double().reshape(1, -1, *values.shape[-2:]).sum(dim=1).flatten(1)
    return (flat.argsort(dim=1).argsort(dim=1).float() / flat.shape[1]).reshape(1, 1, *values.shape[-2:])


STEPS = ((0.2, "blur"), (0.2, "mean"), (0.1, "blur"), (0.4, "mean"))
"""Shares and fills of the steps of `corrected`."""


def corrected(prior: Map, steps: int, weight: float = 3.0) -> Map:
    """A map corrected by gradients at pictures in which its own first places are alone kept, or are removed.

    Each step takes a share and a fill, a blur or the mean color: the gradient of the probability where the first
    places of the ranks so far are alone kept, plus that where they are removed, times the change from the fill to the
    picture. Its ranks are added to those before; the ranks of the map count `weight` times. A step is two passes.
    """

    def read(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        fills = {"blur": blur(x, (2, 3)), "mean": x.mean(dim=(2, 3), keepdim=True).expand_as(x)}
        order = weight * ranks(prior(model, x, target))
        for share, name in STEPS[:steps]:
            first = ranks(order) >= 1 - share
            shown = torch.cat([torch.where(kept, x, fills[name]) for kept in (first, ~first)]).requires_grad_()
            score = probabilities(model)(model(shown))[:, target].sum()
            (slopes,) = torch.autograd.grad(score, shown)
            order = order + ranks(slopes.sum(dim=0, keepdim=True) * (x - fills[name]))
        return order[:, 0]

    return read
