"""The methods of the benchmark of image maps, each `(model, x, target) -> values`, and the controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens import Rulebook, relevance, saliency
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.faithfulness import controls
from layerlens.rules import Gamma, Part

Map = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]


def by(method: str, **options: Any) -> Map:
    """A saliency method."""
    return lambda model, x, target: saliency(model, x, target=target, method=method, **options).tensor


def magnitude(of: Map) -> Map:
    """The absolute values."""
    return lambda model, x, target: of(model, x, target).abs()


def gamma(size: float) -> Rulebook:
    """Gamma for convolutions, epsilon for dense layers."""
    return Rulebook(f"gamma {size}", linear=[(Part.CONVOLUTION, Gamma(size))])


def rules(book: str | Rulebook) -> Map:
    """Relevance by a rulebook."""
    return lambda model, x, target: relevance(model, x, target=target, rules=book).tensor


def noisy(of: Map, copies: int, noise: float = 0.1) -> Map:
    """The mean over noisy copies; the noise is a part of the range of x."""

    def mean(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        size = noise * (x.max() - x.min())
        found = [of(model, x + size * torch.randn(x.shape, generator=generator), target) for _ in range(copies)]
        return torch.stack(found).mean(dim=0)

    return mean


def ranked(*parts: Map) -> Map:
    """The mean of the ranks of the places by several maps."""

    def mean(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        total = torch.zeros(len(x), *x.shape[2:])
        for part in parts:
            values = part(model, x, target)
            flat = (values.sum(dim=1) if values.ndim == 4 else values).flatten(1)
            total += flat.argsort(dim=1).argsort(dim=1).reshape(total.shape)
        return total

    return mean


METHODS: dict[str, Map] = {
    "relevance z+": rules("epsilon_plus"),
    "relevance z+, 8 noisy copies": noisy(rules("epsilon_plus"), 8),
    "relevance gamma .25": rules(gamma(0.25)),
    "relevance gamma .05": rules(gamma(0.05)),
    "relevance gamma .05, 8 noisy copies": noisy(rules(gamma(0.05)), 8),
    "relevance gamma .05, 8 noisier copies": noisy(rules(gamma(0.05)), 8, 0.2),
    "relevance epsilon": rules("epsilon"),
    "relevance alpha 2 beta 1": rules("epsilon_alpha2_beta1"),
    "rise, 50 masks": by("rise", samples=50),
    "rise, 200 masks": by("rise", samples=200),
    "rise as published, 200 masks": by("rise", samples=200, sampling="random", estimate="mean"),
    "z+ and rise 50, mean rank": ranked(rules("epsilon_plus"), by("rise", samples=50)),
    "gamma .05, 8 noisy copies, and rise 50, mean rank": ranked(noisy(rules(gamma(0.05)), 8), by("rise", samples=50)),
    "z+ and grad_cam, mean rank": ranked(rules("epsilon_plus"), by("grad_cam")),
    "grad_cam": by("grad_cam"),
    "hi_res_cam": by("hi_res_cam"),
    "layer_cam": by("layer_cam"),
    "eigen_cam": by("eigen_cam"),
    "smooth_grad": by("smooth_grad"),
    "smooth_grad, absolute": magnitude(by("smooth_grad")),
    "gradient, absolute": magnitude(by("gradient")),
    "integrated_gradients, zero": by("integrated_gradients"),
    "integrated_gradients, blur": by("integrated_gradients", baseline="blur"),
    "integrated_gradients, absolute": magnitude(by("integrated_gradients")),
    "deep_lift": by("deep_lift"),
    "occlusion": by("occlusion"),
    "kernel_shap": by("kernel_shap", samples=200),
    "guided_backprop": by("guided_backprop"),
    "input_x_gradient": by("input_x_gradient"),
    "gradient": by("gradient"),
}

CONTROLS: dict[str, Map] = {
    "control: Sobel edges": lambda model, x, target: controls.sobel(Leaf(x), 0),
    "control: center": lambda model, x, target: controls.center(Leaf(x), 0),
    "control: random": lambda model, x, target: controls.random(Leaf(x), 0),
}
