"""Deletion: how fast the score falls when the places of a map are removed, most important first."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.inputs.inputs import Forward, Input
from layerlens.results import FaithfulnessCurve
from layerlens.targets.target import Spec

from .curves import curve
from .input_places import Given


def deletion(
    model: nn.Module,
    x: Input,
    attribution: Given,
    *,
    target: Spec = None,
    fill: Any = "zero",
    steps: int = 32,
    measure: str = "auto",
    features: FeatureSpec = "places",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> FaithfulnessCurve:
    """The score while places are replaced by the fill in the order of a map; a smaller area is better.

    Petsiuk, Das & Saenko 2018, sec. 3.3. With few places at a time it is pixel flipping (Bach et al. 2015), whose area
    over the curve, the mean fall of the score (Samek et al. 2017, eq. 12), is the score of x less `.area`.

    Args:
        model: any module; no gradient is needed.
        x: its input, `(batch, ...)`.
        attribution: a map of x, as in `insertion`.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        fill: what stands in removed places, as `baseline` in `integrated_gradients`.
        steps: parts in which the places are removed.
        measure: as in `insertion`.
        features: what is removed at a time, as in `insertion`.
        seed: of the order of equal values.
        batch_size: rows in one forward pass.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `FaithfulnessCurve` of `steps + 1` points; `.area` is `(batch,)`.

    Raises:
        InputError: when the map does not fit the input, or holds NaN or infinity.
        OptionError: when an option is out of range, or the fill does not fit.
        TargetError: when the target does not fit the output.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 1, bias=False)
        >>> x = torch.rand(2, 4)
        >>> deletion(model, x, x * model.weight.detach(), target=0).scores.shape
        torch.Size([2, 33])
    """
    return curve(
        "deletion", model, x, attribution, target, keep=False, fill=fill, steps=steps, measure=measure,
        features=features, seed=seed, batch_size=batch_size, forward=forward,
    )  # fmt: skip
