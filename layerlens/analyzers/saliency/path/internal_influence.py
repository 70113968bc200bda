"""Internal influence: the mean gradient at each unit of a layer, from a baseline to the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import baselines
from layerlens.analyzers.common.layer_gradient import Tap
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Scorer, freeze, warn_of_zeros
from layerlens.errors import check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .straight import check_layer, points


@method(
    family="path",
    passes="50 gradients (steps)",
    needs="a layer (where=), a baseline",
    source="Leino et al. 2018",
)
def internal_influence(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Any = "zero",
    steps: int = 50,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """The gradient of the score at each unit y of a layer, averaged while the input goes straight from x' to x.

    Influence(y) = integral over a in 0..1 of dS/dy at x' + a (x - x') (Leino et al. 2018, eq. 1, with the uniform
    distribution of interest on that way), by Gauss-Legendre quadrature.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments; token ids count by
            their embeddings.
        target: what to score, as in `layerlens.as_target`; None is the class predicted at x.
        where: the layer, or a call of one (`"rnn#1"`).
        baseline: x', as in `integrated_gradients`.
        steps: gradients along the way.
        batch_size: points in one pass; `"auto"` bounds it by memory.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the layer's output with the batch first, in units of score per activation.

    Raises:
        OptionError: when no layer is given, an option is out of range, or the baseline does not fit the input.
        LayerNotFound: when `where` matches no layer; SelectionError when it matches several layers or calls.
        TargetError: when the score does not depend on the layer.

    Warns:
        UserWarning: when the values of a sample are zero everywhere.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = internal_influence(net, torch.ones(1, 3), target=1, where="1")
        >>> bool(torch.allclose(result.tensor[0], net[2].weight[1]))
        True
    """
    check_count("steps", steps)
    check_layer("internal_influence", where)
    with borrowed(model):
        freeze(model)
        scorer = Scorer(model, x, target, forward=forward)
        ends = {name: leaf.value.clone() for name, leaf in scorer.leaves.items()}
        score, batch = first_score(scorer, ends, batch_size)
        tap = Tap(scorer, where)
        starts, label = baselines(scorer, baseline)
        places, weights = (torch.as_tensor(part) / 2 for part in np.polynomial.legendre.leggauss(steps))
        values = torch.zeros_like(tap.value, dtype=torch.float64)
        for rows in track(torch.split(scorer.rows, batch), "internal_influence"):
            together = max(1, batch // len(rows))
            for ways, shares in zip(torch.split(places + 0.5, together), torch.split(weights, together), strict=True):
                slopes = tap.gradients(points(starts, ends, rows, ways), rows.repeat(len(ways)))[2]
                each = slopes.double().reshape(len(ways), len(rows), *slopes.shape[1:])
                values[rows] += torch.tensordot(shares.to(each.device), each, dims=1)
        warn_of_zeros({tap.place.name: values}, "internal_influence")
        return tap.attribution(
            values,
            method="internal_influence",
            settings={"baseline": label, "steps": steps, "batch_size": batch},
            score=score,
            units="score per activation",
        )
