"""Baselines: the input that counts as nothing, from which a path method starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...errors import OptionError, choose
from ...nested import describe
from ..leaves import Leaf
from ..score import Scorer
from .differentiate import Leaves

NAMES = ("zero", "mean", "blur")

BLUR = 0.1
"""Standard deviation of the blur, as a part of the side of the image."""


def baselines(scorer: Scorer, spec: Any) -> tuple[Leaves, str]:
    """One baseline per leaf, shaped like it, and a name for the settings.

    Args:
        scorer: scores a borrowed model.
        spec: `"zero"`; `"mean"`, the mean colour of each image; `"blur"`, a Gaussian blur of each image with a standard
            deviation of a tenth of its sides; a number; a tensor that broadcasts to the input; or a dict of those by
            input name (zero where a name is missing). For token ids zero is the zero embedding, a whole number or
            an integer tensor are ids of reference tokens (padding, mask), a floating-point tensor is an embedding.

    Raises:
        OptionError: when it cannot be used with the input.
    """
    if isinstance(spec, Mapping):
        for name in spec:
            choose("input name in the baseline", name, scorer.leaves)
        by_name = {name: spec.get(name, "zero") for name in scorer.leaves}
        label = ", ".join(f"{name}: {_label(part)}" for name, part in by_name.items())
    else:
        by_name, label = dict.fromkeys(scorer.leaves, spec), _label(spec)
    with torch.no_grad():
        return {name: _baseline(scorer, name, scorer.leaves[name], part) for name, part in by_name.items()}, label


def _label(spec: Any) -> str:
    return describe(spec) if isinstance(spec, (torch.Tensor, np.ndarray)) else str(spec)


def _baseline(scorer: Scorer, name: str, leaf: Leaf, spec: Any) -> torch.Tensor:
    value = leaf.value
    if isinstance(spec, str):
        choose("baseline", spec, NAMES)
        if spec == "zero":
            return torch.zeros_like(value)
        if leaf.layer is not None or value.ndim != 4:
            kind = "token ids" if leaf.layer is not None else describe(value)
            raise OptionError(
                f"baseline {spec!r} is for images (batch, channel, height, width), but input {name!r} is {kind}. "
                "Use 'zero', a number or a tensor."
            )
        return value.mean(dim=(-2, -1), keepdim=True).expand_as(value).clone() if spec == "mean" else blur(value)
    if isinstance(spec, bool) or not isinstance(spec, (int, float, torch.Tensor, np.ndarray)):
        raise OptionError(
            f"cannot read a baseline from {describe(spec)}. Give {', '.join(map(repr, NAMES))}, a number, a tensor "
            "that broadcasts to the input, or a dict of those by input name."
        )
    given = torch.as_tensor(spec, device=value.device)
    if leaf.layer is None:
        return _broadcast(given.to(value.dtype), value, name)
    if given.is_floating_point():
        if given.ndim == 0:
            raise OptionError(
                f"baseline {spec!r} for the token ids {name!r}: give 'zero' (the zero embedding), the id of a "
                "reference token (a whole number), or an embedding."
            )
        return _broadcast(given.to(value.dtype), value, name)
    ids = scorer.inputs.tensors()[name]
    embedding: torch.Tensor = scorer.model.get_submodule(leaf.layer)(_broadcast(given.to(ids.dtype), ids, name))
    return embedding.reshape(value.shape).clone()


def _broadcast(given: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    try:
        return given.broadcast_to(value.shape).clone()
    except RuntimeError as error:
        raise OptionError(
            f"a baseline of shape {tuple(given.shape)} does not broadcast to input {name!r} of shape "
            f"{tuple(value.shape)}."
        ) from error


def blur(images: torch.Tensor) -> torch.Tensor:
    """Images `(batch, channel, height, width)` under a Gaussian with a standard deviation of a tenth of each side."""
    channels = images.shape[1]
    blurred = images.to(torch.promote_types(images.dtype, torch.float32))
    for axis in (-2, -1):
        sigma = BLUR * images.shape[axis]
        radius = max(1, round(3 * sigma))
        places = torch.arange(-radius, radius + 1, device=images.device, dtype=blurred.dtype)
        kernel = torch.exp(-0.5 * (places / sigma) ** 2)
        shape, padding = (
            ((1, 1, -1, 1), (0, 0, radius, radius)) if axis == -2 else ((1, 1, 1, -1), (radius, radius, 0, 0))
        )
        weight = (kernel / kernel.sum()).reshape(shape).repeat(channels, 1, 1, 1)
        blurred = torch.nn.functional.pad(blurred, padding, mode="replicate")
        blurred = torch.nn.functional.conv2d(blurred, weight, groups=channels)
    return blurred.to(images.dtype)
