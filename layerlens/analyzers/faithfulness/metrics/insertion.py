"""Insertion: how fast the score rises when the places of a map are put in, most important first."""

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


def insertion(
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
    """The score while places are put into the fill in the order of a map; a larger area is better.

    Petsiuk, Das & Saenko 2018, sec. 3.3, who insert into a blurred image (`fill="blur"`).

    Args:
        model: any module; no gradient is needed.
        x: its input, `(batch, ...)`.
        attribution: an `Attribution` of x, an array like x or without its channels, or a coarser map of an image,
            which is enlarged linearly. Signed: what speaks against the target comes last. Equal values come in random
            order.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        fill: what stands in removed places, as `baseline` in `integrated_gradients`.
        steps: parts in which the places are put in.
        measure: `"probability"` of the target's class, `"score"`, or `"auto"`: the probability where the target is one
            of two classes or more.
        features: what is put in at a time, `"places"` (pixels, tokens, steps, columns) or as in `feature_ablation`.
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
        >>> insertion(model, x, x * model.weight.detach(), target=0).area.shape
        torch.Size([2])
    """
    return curve(
        "insertion", model, x, attribution, target, keep=True, fill=fill, steps=steps, measure=measure,
        features=features, seed=seed, batch_size=batch_size, forward=forward,
    )  # fmt: skip
