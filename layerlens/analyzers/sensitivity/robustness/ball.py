"""The changes that an attack may make: a norm, bounds, a mask, and the units in which they count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from layerlens.analyzers.common.leaves.leaves import Leaf, leaf_name, unit_and_places
from layerlens.errors import InputError, OptionError, choose

from ..stepped_runs import Values, row_lengths
from .sample_chunks import SampleChunk

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")

Bound: TypeAlias = "float | Sequence[float] | np.ndarray[Any, Any] | torch.Tensor"
"""A number, one for each channel, or an array that broadcasts to the input."""
Bounds: TypeAlias = "tuple[Bound, Bound] | Mapping[str, tuple[Bound, Bound]]"
"""Smallest and largest value, or such a pair for each of several inputs."""
Mask: TypeAlias = "torch.Tensor | np.ndarray[Any, Any] | Sequence[torch.Tensor] | Mapping[str, torch.Tensor] | None"
"""1 where an input may change and 0 elsewhere, broadcasting to it; by name or in order for several inputs."""
Size: TypeAlias = "float | torch.Tensor"
"""One size, or one for each sample, `(batch,)`."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What changes are allowed, as the user gave it.

    Attributes:
        norm: norm of the size, over all leaves of a sample together.
        bounds: smallest and largest value, before normalization.
        normalized: mean and standard deviation by which the input was normalized.
        mask: where the input may change.
    """

    norm: str
    bounds: Any = None
    normalized: Any = None
    mask: Any = None

    def ball(self, chunk: SampleChunk) -> Ball:
        """Return the changes that are allowed for some samples.

        Raises:
            OptionError: when bounds, normalization or mask do not fit the inputs.
            InputError: when values lie outside the bounds.
        """
        leaves = chunk.stepped.leaves
        embedded = [name for name, leaf in leaves.items() if not leaf.is_input]
        for option, given in (("bounds", self.bounds), ("normalized", self.normalized)):
            if embedded and given is not None:
                raise OptionError(
                    f"{option} are for inputs, and {embedded[0]!r} is attacked in its embeddings; leave them out."
                )
        mean, std = _pair("normalized", self.normalized, chunk)
        if any(not bool((one > 0).all()) for one in std.values()):
            raise OptionError(f"normalized must be (mean, std) with std above 0, got {self.normalized!r}.")
        low, high = _pair("bounds", self.bounds, chunk)
        for name, own in low.items():
            if not bool((own < high[name]).all()):
                raise OptionError(f"bounds must be (low, high) with low < high, got {self.bounds!r}.")
            if name in std:
                low[name], high[name] = ((end[name] - mean[name]) / std[name] for end in (low, high))
            value = leaves[name].value
            outside = (value < low[name].to(value)) | (value > high[name].to(value))
            if bool(outside.any()):
                raise InputError(
                    f"input {name!r} has values from {float(value.min()):.4g} to {float(value.max()):.4g}, outside the "
                    f"bounds {float(low[name].min()):.4g} to {float(high[name].max()):.4g}; give the bounds of the "
                    "input as the model gets it, after normalization, or normalized=(mean, std)."
                )
        mask = {} if self.mask is None else _by_leaf("mask", self.mask, chunk)
        for name, own in mask.items():
            if not bool(((own == 0) | (own == 1)).all()):
                raise OptionError(f"mask must hold 0 and 1, or booleans; that of input {name!r} holds other numbers.")
        if len(mask) == len(leaves) and not any(bool(own.any()) for own in mask.values()):
            raise OptionError("mask is 0 everywhere, so nothing may change: give 1 where the input may change.")
        return Ball(self.norm, low, high, std, mask)


@dataclasses.dataclass(frozen=True)
class Ball:
    """The changes that an attack may make to some samples.

    Attributes:
        norm: norm of the size, over all leaves of a sample together.
        low: smallest value that each leaf may take; none for those without bounds.
        high: largest value that each leaf may take.
        std: a unit of the size is 1 / std in units of the model; none where it is 1.
        mask: where each leaf may change; none where it may everywhere.
    """

    norm: str
    low: Values
    high: Values
    std: Values
    mask: Values

    def project(self, start: Values, moved: Values, eps: Size) -> Values:
        """Project `moved` into the ball around `start`, and into the bounds."""
        change = self._times_std({name: moved[name] - value for name, value in start.items()})
        if self.norm == "linf":
            limits = {name: _by_row(eps, step) for name, step in change.items()}
            change = {name: step.clamp(-limits[name], limits[name]) for name, step in change.items()}
        else:
            length = row_lengths(change)
            limit = eps.to(length) if isinstance(eps, torch.Tensor) else torch.full_like(length, eps)
            change = times(change, torch.where(length > limit, limit / length, 1.0))
        change = self._times_std(change, -1)
        return self.bounded({name: value + change[name] for name, value in start.items()})

    def bounded(self, values: Values) -> Values:
        """Clamp values to the bounds."""
        return {
            name: value.clamp(self.low[name].to(value), self.high[name].to(value)) if name in self.low else value
            for name, value in values.items()
        }

    def uphill(self, gradient: Values, size: Size) -> Values:
        """Return the step of a size that raises a linear function most: Goodfellow et al. 2015, sec. 4, for linf."""
        gradient = self._times_std(self._masked(gradient), -1)
        if self.norm == "linf":
            step = {name: _by_row(size, part) * part.sign() for name, part in gradient.items()}
        else:
            length = row_lengths(gradient)
            own = size.to(length) if isinstance(size, torch.Tensor) else torch.full_like(length, size)
            step = times(gradient, torch.where(length > 0, own / length, 0.0))
        return self._times_std(step, -1)

    def random(self, start: Values, eps: Size, seed: int, *, edge: bool) -> Values:
        """Draw a point of the ball, or of its surface; the same change for all samples before bounds are applied."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: torch.randn(value.shape[1:], generator=generator) for name, value in start.items()}
        share = 1.0
        if self.norm == "linf":
            inner = {name: 2 * torch.special.ndtr(part) - 1 for name, part in drawn.items()}  # uniform in -1..1
            change = {name: part.sign() if edge else part for name, part in inner.items()}
        else:
            count = sum(part.numel() for part in drawn.values())
            length = float(torch.stack([part.double().square().sum() for part in drawn.values()]).sum().sqrt())
            share = 1.0 if edge else float(torch.rand((), generator=generator)) ** (1 / count)
            change, share = drawn, share / max(length, 1e-300)
        sized = {name: _by_row(eps, value) * share * change[name].to(value) for name, value in start.items()}
        moved = self._times_std(self._masked(sized), -1)
        return self.bounded({name: value + moved[name] for name, value in start.items()})

    def _masked(self, values: Values) -> Values:
        return {name: one * self.mask[name].to(one) if name in self.mask else one for name, one in values.items()}

    def _times_std(self, values: Values, power: int = 1) -> Values:
        return {
            name: one * self.std[name].to(one) ** power if name in self.std else one for name, one in values.items()
        }


def times(values: Values, factor: torch.Tensor) -> Values:
    """Multiply each row by its factor, `(rows,)`."""
    return {name: value * _by_row(factor, value) for name, value in values.items()}


def _by_row(size: Size, value: torch.Tensor) -> Any:
    """Return a size for each sample as a tensor that broadcasts to a leaf."""
    return size.to(value).reshape(-1, *[1] * (value.ndim - 1)) if isinstance(size, torch.Tensor) else size


def allowed(norm: str, bounds: object, normalized: object = None, mask: object = None) -> Allowed:
    """Check what does not depend on the input.

    Raises:
        OptionError: when the norm is unknown, or a pair is not one.
    """
    choose("norm", norm, NORMS)
    for name, given, ends in (("bounds", bounds, "low, high"), ("normalized", normalized, "mean, std")):
        for pair in given.values() if isinstance(given, Mapping) else [given]:
            if pair is not None and (isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2):
                raise OptionError(f"{name} must be ({ends}), numbers or tensors like the input, got {given!r}.")
    return Allowed(norm, bounds, normalized, mask)


def _pair(option: str, given: Any, chunk: SampleChunk) -> tuple[Values, Values]:
    """Return the two tensors of an option, by leaf."""
    if given is None:
        return {}, {}
    pairs = given if isinstance(given, Mapping) else dict.fromkeys(chunk.stepped.leaves, given)
    first, second = ({name: pair[end] for name, pair in pairs.items()} for end in (0, 1))
    return _by_leaf(option, first, chunk), _by_leaf(option, second, chunk)


def _by_leaf(option: str, given: Any, chunk: SampleChunk) -> Values:
    """Return an option as tensors that broadcast to the leaves.

    Raises:
        OptionError: when there is no such leaf, or the tensor does not fit it.
    """
    leaves = chunk.stepped.leaves
    if option == "mask" and isinstance(given, (tuple, list)):  # one for each input, in order
        if len(given) != len(leaves):
            raise OptionError(f"mask holds {len(given)} for {len(leaves)} input(s), {', '.join(leaves)}.")
        given = dict(zip(leaves, given, strict=True))
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(leaves, given)
    names = list(leaves)
    found = {}
    for key, one in by_name.items():
        known = names[key] if isinstance(key, int) and key < len(names) else key
        name = leaf_name(chunk.stepped.run.inputs, leaves, known, f"input in {option}")
        found[name] = _fit(option, name, leaves, one, chunk)
    return found


def _fit(option: str, name: str, leaves: Mapping[str, Leaf], given: Any, chunk: SampleChunk) -> torch.Tensor:
    """Return an option of a leaf as a tensor that broadcasts to it: one number per channel, or an array like it.

    Raises:
        OptionError: when it does not.
    """
    leaf = leaves[name]
    value = leaf.value
    try:
        own = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{option} must be numbers or tensors like the input, got {given!r}.") from error
    if own.ndim == 1 and value.ndim > 2 and leaf.is_input:
        unit, _ = unit_and_places(leaf)
        if unit is not None and len(own) == value.shape[unit + 1]:
            return own.reshape([-1 if axis == unit + 1 else 1 for axis in range(value.ndim)])
    elif own.ndim == value.ndim and len(own) > 1:  # one for each sample of all chunks
        own = own[chunk.start : chunk.start + len(value)]
    elif not leaf.is_input and own.ndim < value.ndim:  # one for each token
        rows = own[chunk.start : chunk.start + len(value)] if own.ndim == value.ndim - 1 and len(own) > 1 else own
        own = rows.unsqueeze(-1)
    try:
        if own.broadcast_to(value.shape) is not None and (own.ndim != 1 or value.ndim < 3 or len(own) == 1):
            return own
    except RuntimeError:
        pass
    raise OptionError(
        f"{option} of shape {tuple(own.shape)} do not fit input {name!r}, {tuple(value.shape)}: give a number, one for "
        "each channel, or a tensor that broadcasts to the input."
    )
