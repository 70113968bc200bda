"""The methods of the benchmark of image maps, each `(model, x, target) -> values`, and the controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens import Rulebook, relevance, saliency
from layerlens.analyzers.common.features.baselines import blur
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.faithfulness import controls
from layerlens.rules import Gamma, Part

from .image_candidates import corrected, posterior, strided, views
from .image_masks import LOG_PROBABILITY, LOGIT, masked

Map = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]


def by(method: str, **options: Any) -> Map:
    """A saliency method."""
    return lambda model, x, target: saliency(model, x, target=target, method=method, **options).tensor


def magnitude(of: Map) -> Map:
    """The absolute values."""
    return lambda model, x, target: of(model, x, target).abs()


def summed(of: Map) -> Map:
    """One number for each place."""
    return lambda model, x, target: of(model, x, target).sum(dim=1)


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


def rise(samples: int, score: int = LOGIT) -> Map:
    """RISE, from masks that the rows share."""
    return lambda model, x, target: masked(model, x, target).rise(samples, score)


def partition(samples: int) -> Map:
    """Shapley values by halves of the picture (Owen values), of the package shap, against a blur."""

    def explain(model: nn.Module, x: torch.Tensor, target: int) -> torch.Tensor:
        import shap

        shared = masked(model, x, target)

        def scores(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return shared.of(torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous())[:, :1].numpy()

        def places(images: torch.Tensor) -> np.ndarray[Any, Any]:
            return images.permute(0, 2, 3, 1).numpy()

        masker = shap.maskers.Image(places(blur(x, (2, 3)))[0], x[0].permute(1, 2, 0).shape)
        found = shap.PartitionExplainer(scores, masker)(places(x), max_evals=samples, batch_size=16, silent=True)
        return torch.from_numpy(found.values[..., 0]).permute(0, 3, 1, 2).double()

    return explain


METHODS: dict[str, Map] = {
    "relevance z+": rules("epsilon_plus"),
    "grad_cam": by("grad_cam"),
    "rise, 200 masks": rise(200),
    "rise, 50 masks": rise(50),
    "z+ and rise 50, mean rank": ranked(rules("epsilon_plus"), rise(50)),
    "relevance gamma .05, 8 noisy copies": noisy(rules(gamma(0.05)), 8),
    "z+ and grad_cam, mean rank": ranked(rules("epsilon_plus"), by("grad_cam")),
    "relevance z+ at stride 16": strided((16,)),
    "relevance z+ at strides 1 to 32": strided(),
    "relevance z+ at strides 1 to 32, 5 views": views(strided()),
    "relevance z+, 5 views": views(summed(rules("epsilon_plus"))),
    "8 masks, prior of strides 1 to 32": posterior(8, strided()),
    "8 masks, prior, log-probability": posterior(8, strided(), LOG_PROBABILITY),
    "8 masks, prior, log-probability, and z+, mean rank": ranked(
        posterior(8, strided(), LOG_PROBABILITY), rules("epsilon_plus")
    ),
    "48 masks, prior, log-probability": posterior(48, strided(), LOG_PROBABILITY),
    "48 masks, prior, log-probability, and z+, mean rank": ranked(
        posterior(48, strided(), LOG_PROBABILITY), rules("epsilon_plus")
    ),
    "198 masks, prior, log-probability": posterior(198, strided(), LOG_PROBABILITY),
    "198 masks, prior, log-probability, and z+, mean rank": ranked(
        posterior(198, strided(), LOG_PROBABILITY), rules("epsilon_plus")
    ),
    "48 masks, prior of z+, log-probability, and z+, mean rank": ranked(
        posterior(48, summed(rules("epsilon_plus")), LOG_PROBABILITY), rules("epsilon_plus")
    ),
    "198 masks, prior of z+, log-probability, and z+, mean rank": ranked(
        posterior(198, summed(rules("epsilon_plus")), LOG_PROBABILITY), rules("epsilon_plus")
    ),
    "z+ corrected by 3 steps": corrected(rules("epsilon_plus"), 3),
    "z+ corrected by 4 steps": corrected(rules("epsilon_plus"), 4),
    "48 masks, prior of z+, and z+, mean rank": ranked(
        posterior(48, summed(rules("epsilon_plus"))), rules("epsilon_plus")
    ),
    "198 masks, prior of z+, and z+, mean rank": ranked(
        posterior(198, summed(rules("epsilon_plus"))), rules("epsilon_plus")
    ),
    "z+ and rise 200, mean rank": ranked(rules("epsilon_plus"), rise(200)),
    "z+ and rise 200, log-probability, mean rank": ranked(rules("epsilon_plus"), rise(200, LOG_PROBABILITY)),
    "rise, 50 masks, log-probability": rise(50, LOG_PROBABILITY),
    "rise, 200 masks, log-probability": rise(200, LOG_PROBABILITY),
    "rise, 400 masks, log-probability": rise(400, LOG_PROBABILITY),
    "rise, 400 masks": rise(400),
    "SHAP partition, 500 passes": partition(500),
    "integrated_gradients, blur": by("integrated_gradients", baseline="blur"),
    "occlusion": by("occlusion"),
    "relevance z+, 8 noisy copies": noisy(rules("epsilon_plus"), 8),
    "relevance gamma .05": rules(gamma(0.05)),
    "deep_lift": by("deep_lift"),
    "layer_cam": by("layer_cam"),
    "smooth_grad, absolute": magnitude(by("smooth_grad")),
    "gamma .05, 8 noisy copies, and rise 50, mean rank": ranked(noisy(rules(gamma(0.05)), 8), rise(50)),
    "relevance gamma .25": rules(gamma(0.25)),
    "relevance epsilon": rules("epsilon"),
    "eigen_cam": by("eigen_cam"),
    "input_x_gradient": by("input_x_gradient"),
    "gradient, absolute": magnitude(by("gradient")),
    "integrated_gradients, zero": by("integrated_gradients"),
    "guided_backprop": by("guided_backprop"),
    "rise as published, 200 masks": by("rise", samples=200, sampling="random", estimate="mean"),
    "kernel_shap": by("kernel_shap", samples=200),
    "relevance gamma .05, 8 noisier copies": noisy(rules(gamma(0.05)), 8, 0.2),
    "relevance alpha 2 beta 1": rules("epsilon_alpha2_beta1"),
    "hi_res_cam": by("hi_res_cam"),
    "smooth_grad": by("smooth_grad"),
    "integrated_gradients, absolute": magnitude(by("integrated_gradients")),
    "gradient": by("gradient"),
}
"""In the order in which they are measured; a row is a line."""

CONTROLS: dict[str, Map] = {
    "control: Sobel edges": lambda model, x, target: controls.sobel(Leaf(x), 0),
    "control: center": lambda model, x, target: controls.center(Leaf(x), 0),
    "control: random": lambda model, x, target: controls.random(Leaf(x), 0),
}

FIRST = ("relevance z+", "grad_cam", "rise, 400 masks", "z+ and rise 200, log-probability, mean rank",
         "z+ and rise 200, mean rank", "198 masks, prior of z+, log-probability, and z+, mean rank",
         "48 masks, prior of z+, and z+, mean rank", "control: Sobel edges")  # fmt: skip
"""What is measured on every picture before the others are."""

RIVALS = ("relevance z+", "grad_cam", "rise, 400 masks", "SHAP partition, 500 passes")
"""What a new default must be better than: the differences to these are in the tables."""

DEFAULTS = ("relevance z+", "integrated_gradients, zero", "integrated_gradients, blur")
"""What `method="auto"` may take: integrated gradients for networks with recurrent layers."""

CANDIDATES = tuple(
    name for name in METHODS if any(word in name for word in ("stride", "views", "prior", "probability"))
)
"""What may become a better default, next."""

SECOND = ("rise, 200 masks", "relevance gamma .05, 8 noisy copies",
          "z+ and grad_cam, mean rank", "integrated_gradients, blur", "occlusion", "control: random")  # fmt: skip
"""What is measured next, on every network."""

PLAIN = (*(name for name in METHODS if "stride" not in name and "prior," not in name), *CONTROLS)
"""What needs no blocks of several strides: the rows of the digit net, which has none."""
