"""RISE: the score under random smooth masks, and where the masks were that raised it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.leaves.leaves import place_axes
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Scorer, warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed, choose
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .ridge import ridge_map
from .smooth_masks import Sampling, SmoothMasks


@method(
    family="perturbation",
    passes="400 forward passes (samples)",
    needs="a baseline",
    source="Petsiuk, Das & Saenko 2018",
)
def rise(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 400,
    cells: int = 7,
    probability: float = 0.5,
    sampling: Sampling = "balanced",
    estimate: Literal["regression", "mean"] = "regression",
    baseline: Any = "zero",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """How the score depends on which places are kept, from random smooth masks.

    The input is multiplied with masks that keep each cell of a coarse grid with some probability, enlarged linearly and
    shifted at random. As published the value of a place is the mean score of the masks that keep it, sum over i of S_i
    M_i / (N p) (Petsiuk et al. 2018, eq. 6): `sampling="random", estimate="mean"`. Most of its noise is the score's
    dependence on all other places. The default removes that: masks come in pairs with their complements from a
    quasi-random sequence, so that each cell is kept equally often beside every other; and the map is the ridge
    regression of the scores on the masks, whose penalty generalized cross-validation chooses (Golub, Heath & Wahba
    1979).

    Args:
        model: any module; no gradient is needed.
        x: its input, `(batch, ...)`, one tensor.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        where: None for the input, or a layer, or a call of one (`"rnn#1"`), whose output is attributed to.
        samples: masks, the same for all samples of the batch.
        cells: of the grid along the shorter side; of tokens and columns each is a cell.
        probability: that a cell is kept; 0.5 for balanced sampling.
        sampling: `"balanced"` or `"random"`.
        estimate: `"regression"`: signed, score per place kept; or `"mean"`: the published one.
        baseline: what a mask leaves instead, as in `integrated_gradients`.
        seed: of the masks.
        batch_size: rows in one forward pass; `"auto"` reads the memory of the layers in a first pass.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the input, with its standard error. All channels of a place have its number.

    Raises:
        OptionError: when an option is out of range, there are several inputs, or the baseline does not fit.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when the values of a sample are zero everywhere.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))
        >>> _ = net[1].weight.data.zero_()[0, :8].fill_(1.0)
        >>> found = rise(net, torch.ones(1, 1, 8, 8), target=0, cells=4).tensor[0, 0]
        >>> bool(found[0].mean() > found[1:].mean())
        True
    """
    check_count("samples", samples)
    check_seed(seed)
    check_count("cells", cells)
    choose("estimate", estimate, ("regression", "mean"))
    if not 0 < probability < 1 or (sampling == "balanced" and probability != 0.5):
        raise OptionError(f"probability={probability!r} must be between 0 and 1, and 0.5 for balanced sampling.")
    with borrowed(model, grad=False):
        scorer = Scorer(model, x, target, where=where, forward=forward)
        if len(scorer.leaves) > 1:
            raise OptionError(
                f"rise masks one input; the model takes {', '.join(scorer.leaves)}. shapley_sampling takes several."
            )
        coalitions = Coalitions(scorer, baseline, batch_size)
        ((name, leaf),) = scorer.leaves.items()
        axes = place_axes(leaf)
        places = [leaf.value.shape[1 + axis] for axis in axes] or [1]  # a single id for each sample
        separate = leaf.layer is not None or leaf.value.ndim <= 2
        masks = SmoothMasks(places, 0 if separate else cells, samples, probability, sampling, seed)
        shape = [leaf.value.shape[1 + axis] if axis in axes else 1 for axis in range(leaf.value.ndim - 1)]
        scores = torch.zeros(samples, coalitions.batch, dtype=torch.float64)
        coarse = torch.zeros(samples, masks.coarse)
        first, second = (torch.zeros(coalitions.batch, *places, dtype=torch.float64) for _ in range(2))

        def make(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
            made.clear()
            made.append(masks(chosen))
            return {name: made[0].reshape(len(chosen), *shape)}

        made: list[torch.Tensor] = []
        for chosen, found in coalitions.every(samples, make, "RISE"):
            scores[chosen] = found.double().cpu()
            coarse[chosen] = masks.pooled(made[0])
            if estimate == "mean":
                weighted = torch.einsum("mb,m...->mb...", scores[chosen], made[0].double()) / probability
                first += weighted.sum(dim=0)
                second += weighted.square().sum(dim=0)
        if estimate == "mean":
            mean = first / samples
            error = ((second / samples - mean**2).clamp_min(0) / max(1, samples - 1)).sqrt()
        else:
            mean, error = (masks.enlarged(part) for part in ridge_map(coarse.double(), scores))
        values = _laid(mean, shape, leaf.value)
        warn_of_zeros({name: values}, "rise")
        errors = error.reshape(len(error), *shape)
        return scorer.attribution(
            {name: values / leaf.value.shape[-1] if leaf.layer is not None else values},
            method="rise",
            settings={
                "samples": samples,
                "cells": cells,
                "probability": probability,
                "sampling": sampling,
                "estimate": estimate,
                "baseline": coalitions.label,
                "seed": seed,
                "batch_size": coalitions.batch_size,
            },
            score=coalitions.score,
            signed=estimate == "regression",
            units="score per place kept" if estimate == "regression" else "score",
            standard_error={name: (errors[..., 0] if leaf.layer is not None else errors.expand(values.shape)).clone()},
        )


def _laid(values: torch.Tensor, shape: list[int], like: torch.Tensor) -> torch.Tensor:
    return values.reshape(len(values), *shape).expand(like.shape).to(like).clone()
