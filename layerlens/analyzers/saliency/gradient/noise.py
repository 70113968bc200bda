"""Noisy copies of inputs: how much noise, and the draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from layerlens.analyzers.common.leaves.leaves import leaf_name
from layerlens.analyzers.common.scorer import Leaves, Scorer
from layerlens.analyzers.common.statistics import sample_range
from layerlens.errors import OptionError, warn

Deviations: TypeAlias = "float | Sequence[float] | Mapping[str, float] | None"
"""Standard deviations in units of the input: one number, one per input, or a dict by input name."""

SHARE = 0.15
"""Standard deviation of the noise, as a share of the range of each sample, where nothing else is given."""


def noise_scales(method: str, scorer: Scorer, values: Leaves, noise: float, stdevs: Deviations) -> Leaves:
    """Return the standard deviation of the noise of each sample, `(batch, 1, ...)` by leaf.

    Args:
        method: name of the method, for the warning.
        scorer: scores a borrowed model.
        values: the leaves that get noise.
        noise: share of the range of each sample.
        stdevs: standard deviations in units of the input, instead of `noise`.

    Raises:
        OptionError: when one is out of range, both are given, or they do not fit the inputs.

    Warns:
        UserWarning: when a sample is constant, so that noise relative to its range is zero.
    """
    if not _is_size(noise):
        raise OptionError(f"noise must be a share of the range of the input, 0 or above, got {noise!r}.")
    if stdevs is None:
        scales = {name: noise * sample_range(value) for name, value in values.items()}
        if noise and bool(torch.stack([scale.flatten() == 0 for scale in scales.values()]).all(dim=0).any()):
            warn(f"{method}: a sample is constant, so noise relative to its range is zero.")
        return scales
    if noise != SHARE:
        raise OptionError(
            f"noise={noise!r} is a share of the range of the input and stdevs={stdevs!r} are in its units: give one."
        )
    by_name = _by_name(scorer, list(values), stdevs)
    return {
        name: torch.full((len(value), *[1] * (value.ndim - 1)), float(by_name[name]), dtype=value.dtype).to(value)
        for name, value in values.items()
    }


def _by_name(scorer: Scorer, names: list[str], stdevs: Deviations) -> dict[str, float]:
    """The standard deviation of each leaf; 0 for those that a dict leaves out.

    Raises:
        OptionError: when they are not numbers of 0 or above, or do not fit the inputs.
    """
    found: dict[str, Any]
    if isinstance(stdevs, Mapping):
        known = {leaf_name(scorer.inputs, scorer.leaves, name, "input name in stdevs"): stdevs[name] for name in stdevs}
        found = {name: known.get(name, 0.0) for name in names}
        unused = [name for name in known if name not in names]
        if unused:
            raise OptionError(f"stdevs= names {', '.join(map(repr, unused))}, which gets no noise. Inputs: {names}.")
    elif isinstance(stdevs, Sequence) and not isinstance(stdevs, str):
        if len(stdevs) != len(names):
            raise OptionError(f"stdevs= holds {len(stdevs)} numbers, for inputs {', '.join(map(repr, names))}.")
        found = dict(zip(names, stdevs, strict=True))
    else:
        found = dict.fromkeys(names, stdevs)
    if not all(map(_is_size, found.values())):
        raise OptionError(
            f"stdevs must be numbers in units of the input, 0 or above, got {stdevs!r}: one, one per input "
            f"({', '.join(map(repr, names))}), or a dict by input name."
        )
    return found


def _is_size(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number < float("inf")


def noisy_copies(
    values: Leaves,
    scales: Leaves,
    rows: torch.Tensor,
    copies: int,
    generator: torch.Generator | Sequence[torch.Generator],
) -> dict[str, torch.Tensor]:
    """Return copies of some samples with normal noise, `(copies * rows, ...)` by leaf, copy by copy.

    All samples get the same standard normal draws, so that a batch gives what its samples give alone.

    Args:
        values: the leaves, `(batch, ...)`.
        scales: standard deviation of each sample, `(batch, 1, ...)` by leaf.
        rows: the samples, `(n,)`.
        copies: number of copies of each.
        generator: makes the draws, copy by copy; or one for each copy.
    """
    generators = [generator] * copies if isinstance(generator, torch.Generator) else generator
    drawn = [
        {name: torch.randn(value.shape[1:], dtype=torch.float32, generator=one) for name, value in values.items()}
        for one in generators
    ]
    noisy = {}
    for name, value in values.items():
        normal = torch.stack([draw[name] for draw in drawn]).unsqueeze(1).to(value)  # (copies, 1, ...)
        noisy[name] = (value[rows] + scales[name][rows] * normal).flatten(0, 1)  # (copies * rows, ...)
    return noisy
