"""Methods on texts of several lengths: each length is run by itself, so that padding takes no part."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.inputs.inputs import Input, as_inputs
from layerlens.results import Attribution
from layerlens.results.maps.attribution import Values
from layerlens.targets.names import short_label
from layerlens.targets.target import as_target

from .leaves.padding import OneLength, of_one_length
from .messages import numbered


def by_length(function: Callable[..., Attribution], always: bool) -> Callable[..., Attribution]:
    """Run a method of attribution on texts of one length at a time: a batch then gives what single texts give.

    Its draws, features and windows are then those of the tokens alone. The values of padding are 0.

    Args:
        function: the method.
        always: whether it needs that; otherwise only for baselines that are drawn from the statistics of a sample.
    """

    @functools.wraps(function)
    def run(model: nn.Module, x: Input, *args: Any, **options: Any) -> Attribution:
        given = options.get("baseline")
        drawn = isinstance(given, str) and given == "noise"
        inputs = as_inputs(x).named_for(model, options.get("forward")) if always or drawn else None
        if inputs is None or isinstance(inputs, OneLength):
            return function(model, x, *args, **options)
        groups = of_one_length(model, inputs, options.get("forward"))
        if not groups:
            return function(model, inputs, *args, **options)
        aim = as_target(options.pop("target", None))
        aim.check(inputs.batch)
        found = []
        for group in groups:
            with numbered(group.samples, group.whole) if group.whole > 1 else contextlib.nullcontext():
                own = aim.on(None, torch.tensor(group.samples))
                found.append(function(model, group, *args, target=own, **options))
        return _together(found, groups)

    return run


def _together(found: Sequence[Attribution], groups: Sequence[OneLength]) -> Attribution:
    """The results of some samples each as one of the whole batch."""
    if len(found) == 1:
        return found[0]
    first, order = found[0], torch.tensor([sample for group in groups for sample in group.samples]).argsort()
    sizes = [len(group.samples) for group in groups]

    def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts))[order.to(parts[0].device)]

    def values(parts: Sequence[Values | None]) -> Any:
        known = next((one for one in parts if one is not None), None)
        if isinstance(known, dict):
            return {name: joined([one[name] for one in parts if isinstance(one, dict)]) for name in known}
        if known is None:
            return None
        unknown = [torch.full_like(one.tensor, torch.nan) for one in found]  # no error where a value is exact
        pairs = zip(parts, unknown, strict=True)
        return joined([one if isinstance(one, torch.Tensor) else other for one, other in pairs])

    def listed(parts: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
        flat = [one for part in parts for one in part]
        return tuple(flat[index] for index in order.tolist())

    def setting(name: str) -> Any:
        own = [one.settings.get(name) for one in found]
        if all(one == own[0] for one in own):
            return own[0]
        return listed([[one] * size for one, size in zip(own, sizes, strict=True)])

    targets = listed([[one.target_of(row) for row in range(size)] for one, size in zip(found, sizes, strict=True)])
    same = first.targets is None and len(set(targets)) == 1
    return dataclasses.replace(
        first,
        values=values([one.values for one in found]),
        score=joined([one.score for one in found]),
        checks={name: joined([one.checks[name] for one in found]) for name in first.checks},
        inputs=values([one.inputs for one in found]),
        standard_error=values([one.standard_error for one in found]),
        skewness=values([one.skewness for one in found]),
        degrees=min((one.degrees for one in found if one.degrees is not None), default=None),
        index=None if first.index is None else listed([one.index or () for one in found]),
        target=first.target if same else short_label(targets, "targets"),
        targets=None if same else targets,
        cost=" or ".join(dict.fromkeys(one.cost for one in found)),
        settings={name: setting(name) for name in first.settings},
    )
