"""Baselines: reference inputs that stand for the absence of a signal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from layerlens.errors import OptionError, choose
from layerlens.model.trees import describe

from ..leaves.leaves import Leaf, leaf_name, spread_axes
from ..scorer import Leaves, Scorer
from ..token_inputs import used_places

Baseline: TypeAlias = "str | float | torch.Tensor | np.ndarray[Any, Any] | Mapping[str, Baseline]"
"""What may be given as a baseline; `baselines` says how it is read."""

NAMES = ("zero", "mean", "blur", "black", "white", "noise")

NAMED = "input name in the baseline"

MEAN = (
    " For the mean over {} references: kernel_shap, shapley_sampling, deep_shap, gradient_shap or auto, with "
    "baselines= instead of baseline=."
)

BLUR = 0.1
"""Standard deviation of the blur, as a share of the side of the image."""

REACH = 3
"""Reach of the kernel to each side, in standard deviations."""

WIDE, LONGEST = 16, 2048
"""A kernel above a sixteenth of such a side, for as many lines, is a matrix: a third to a tenth of the convolution."""


def baselines(scorer: Scorer, spec: Baseline) -> tuple[Leaves, str]:
    """Return one baseline per leaf, shaped like it, and a name for the settings.

    Args:
        scorer: scores a borrowed model.
        spec: `"zero"`; `"noise"`, normal with the mean and the deviation of each sample (seed 0); for images, volumes,
            video and series `"mean"`, the mean of each channel over places, `"blur"`, a Gaussian blur with a standard
            deviation of a tenth of each side, `"black"` and `"white"`, the smallest and the largest value of each
            channel of the sample, which are black and white however pictures were normalized, if both occur; a number;
            a tensor that broadcasts to the input; or a dict of those by input name (zero where a name is missing). For
            token ids zero is the zero embedding, a whole number or an integer tensor are ids of reference tokens
            (padding, mask), a floating-point tensor is an embedding.

    Raises:
        OptionError: when it cannot be used with the input.
    """
    if isinstance(spec, Mapping):
        spec = {leaf_name(scorer.inputs, scorer.leaves, name, NAMED): part for name, part in spec.items()}
        by_name = {name: spec.get(name, "zero") for name in scorer.leaves}
        label = ", ".join(f"{name}: {labeled(part)}" for name, part in by_name.items())
    else:
        by_name, label = dict.fromkeys(scorer.leaves, spec), labeled(spec)
    with torch.no_grad():
        found = {name: _baseline(scorer, name, scorer.leaves[name], part) for name, part in by_name.items()}
    if isinstance(spec, (torch.Tensor, np.ndarray)) and spec.ndim > 1 and len(spec) == len(scorer.rows) > 1:
        label += ", one for each sample" * any(spec.ndim == one.ndim for one in scorer.inputs.tensors().values())
        if all(torch.equal(found[name], leaf.value) for name, leaf in scorer.leaves.items()):
            raise OptionError(f"the baseline is the input itself, each sample with its own.{MEAN.format(len(spec))}")
    return found, label


def mean_or_zero(scorer: Scorer) -> dict[str, Baseline]:
    """Return what usually replaces a part of each leaf: `"mean"` where places lie next to each other, else `"zero"`."""
    return {name: "mean" if spread_axes(leaf) else "zero" for name, leaf in scorer.leaves.items()}


def labeled(spec: Baseline) -> str:
    """Return a name for a baseline."""
    return describe(spec) if isinstance(spec, (torch.Tensor, np.ndarray)) else str(spec)


def _baseline(scorer: Scorer, name: str, leaf: Leaf, spec: Baseline) -> torch.Tensor:
    value = leaf.value
    if isinstance(spec, str):
        choose("baseline", spec, NAMES)
        if spec == "zero":
            return torch.zeros_like(value)
        used = used_places(scorer, name)
        if used is not None and not bool(used.all()):
            found = value.clone()  # padding stays as it is
            for row, own in enumerate(used):
                alone = dataclasses.replace(leaf, value=value[row : row + 1, own])
                found[row, own] = _drawn(name, alone, spec)[0]
            return found
        return _drawn(name, leaf, spec)
    number = not isinstance(spec, bool) or value.dtype == torch.bool
    if not number or not isinstance(spec, (int, float, torch.Tensor, np.ndarray)):
        raise OptionError(
            f"cannot read a baseline from {describe(spec)}. Give {', '.join(map(repr, NAMES))}, a number, a tensor "
            "that broadcasts to the input, or a dict of those by input name."
        )
    given = torch.as_tensor(spec, device=value.device)
    if given.is_floating_point() and not bool(given.isfinite().all()):
        raise OptionError(f"the baseline of input {name!r} holds NaN or infinity; every number made from it would too.")
    if leaf.layer is None:
        if not value.is_floating_point() and not torch.equal(given.to(value.dtype).double(), given.double()):
            kind = "booleans" if value.dtype == torch.bool else "whole numbers"
            raise OptionError(
                f"the baseline of input {name!r} must be of {kind}, as the input is; got {labeled(spec)}."
            )
        return _broadcast(scorer, given.to(value.dtype), name, value.ndim)
    if given.is_floating_point():
        if given.ndim == 0:
            raise OptionError(
                f"baseline {spec!r} for the token ids {name!r}: give 'zero' (the zero embedding), the id of a "
                "reference token (a whole number), or an embedding."
            )
        return _broadcast(scorer, given.to(value.dtype), name, value.ndim)
    ids = _broadcast(scorer, given.to(scorer.inputs.tensors()[name].dtype), name, value.ndim - 1)
    embedding: torch.Tensor = scorer.model.get_submodule(leaf.layer)(ids)
    return embedding.reshape(value.shape).clone()


def _drawn(name: str, leaf: Leaf, spec: str) -> torch.Tensor:
    """Return the baseline that is made of the values of each sample.

    Raises:
        OptionError: when the leaf has no such baseline.
    """
    value = leaf.value
    if spec == "noise":
        return noise(value, torch.Generator().manual_seed(0))
    axes = spread_axes(leaf)
    if not axes:
        kind = "token ids" if leaf.layer is not None else describe(value)
        raise OptionError(
            f"baseline {spec!r} is for images, volumes, video and series (batch, channel, ...), but input {name!r} "
            f"is {kind}. Use 'zero', 'noise', a number or a tensor."
        )
    if spec == "blur":
        return blur(value, axes)
    if spec == "mean":
        numbers = value if value.is_floating_point() else value.double()
        return in_dtype_of(value, numbers.mean(dim=axes, keepdim=True)).expand_as(value).clone()
    extreme = value.amin(dim=axes, keepdim=True) if spec == "black" else value.amax(dim=axes, keepdim=True)
    return extreme.expand_as(value).clone()


def _broadcast(scorer: Scorer, given: torch.Tensor, name: str, ndim: int) -> torch.Tensor:
    """Return a tensor like the first axes of a leaf, from one that broadcasts to those of the input.

    Raises:
        OptionError: when it does not.
    """
    padding, shape = scorer.padding.get(name), scorer.leaves[name].value.shape[:ndim]
    try:
        return (given.broadcast_to(shape) if padding is None else padding.fitted(given, ndim)).clone()
    except RuntimeError as error:
        own = tuple(shape if padding is None else (padding.whole, *padding.padded.shape[1:ndim]))
        several = given.ndim == len(own) and given.shape[1:] == own[1:]
        raise OptionError(
            f"a baseline of shape {tuple(given.shape)} does not broadcast to input {name!r} of shape {own}."
            + MEAN.format(len(given)) * several
        ) from error


def blur(value: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Blur by a Gaussian with a standard deviation of a tenth of each axis."""
    return gaussian_blur(value, {axis: BLUR * value.shape[axis] for axis in axes})


def noise(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw normal noise with the mean and deviation of each sample; all samples of the batch get the same draws."""
    flat = value.double().reshape(len(value), -1)
    shape = [-1] + [1] * (value.ndim - 1)
    mean, spread = flat.mean(dim=1).reshape(shape), flat.std(dim=1, unbiased=False).reshape(shape)
    normal = torch.randn(value.shape[1:], generator=generator, dtype=torch.float64).to(value.device)
    return in_dtype_of(value, mean + spread * normal)


def gaussian_blur(value: torch.Tensor, sigmas: Mapping[int, float]) -> torch.Tensor:
    """Blur by a Gaussian along some axes; beyond an end its last value is repeated.

    Args:
        value: tensor of any shape.
        sigmas: standard deviation along each axis, in steps of that axis; 0 leaves it as it is.
    """
    blurred = value.to(torch.promote_types(value.dtype, torch.float32))
    for axis, sigma in sigmas.items():
        size = value.shape[axis]
        if sigma <= 0 or size < 2:
            continue
        radius = max(1, round(REACH * sigma))
        places = torch.arange(-radius, radius + 1, device=value.device, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (places / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(blurred.dtype)
        lines = blurred.movedim(axis, -1)
        if WIDE * min(len(kernel), lines.numel() // size) > size and size <= LONGEST:
            blurred_lines = lines @ _matrix(kernel, size)
        else:
            flat = torch.nn.functional.pad(lines.reshape(-1, 1, size), (radius, radius), mode="replicate")
            blurred_lines = torch.nn.functional.conv1d(flat, kernel.reshape(1, 1, -1)).reshape(lines.shape)
        blurred = blurred_lines.movedim(-1, axis)
    return in_dtype_of(value, blurred)


def in_dtype_of(like: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return values on the device and in the dtype of another tensor, rounded to its nearest whole numbers."""
    if like.is_floating_point() or not values.is_floating_point():
        return values.to(like)
    if like.dtype == torch.bool:
        return (values >= 0.5).to(like)
    limits = torch.iinfo(like.dtype)
    return values.double().round().clamp(limits.min, limits.max).to(like)


def mixed(start: torch.Tensor, end: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return `start` where a mask is 0 and `end` where it is 1, in between the mixture, in their dtype."""
    mask = mask.to(end.device)
    if end.is_floating_point():
        return torch.lerp(start, end, mask.to(end.dtype).expand_as(end)).to(end.dtype)
    whole = torch.where(mask > 0.5, end, start)
    if not mask.is_floating_point() or bool(((mask == 0) | (mask == 1)).all()):
        return whole
    return in_dtype_of(end, torch.lerp(start.double(), end.double(), mask.double().expand_as(end)))


def _matrix(kernel: torch.Tensor, size: int) -> torch.Tensor:
    """From a line of `size` places to the same line under the kernel, `(from, to)`; ends are repeated beyond."""
    radius = len(kernel) // 2
    to = torch.arange(size, device=kernel.device).unsqueeze(1)
    start = (to + torch.arange(-radius, radius + 1, device=kernel.device)).clamp(0, size - 1)  # (to, kernel)
    matrix = torch.zeros(size, size, dtype=kernel.dtype, device=kernel.device)
    return matrix.scatter_add_(1, start, kernel.expand_as(start)).T
