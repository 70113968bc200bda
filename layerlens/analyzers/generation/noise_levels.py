"""The noise level of each call of a denoiser: an argument that says what it is by its name, or that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from layerlens.errors import InputError, choose
from layerlens.inputs.inputs import Inputs
from layerlens.model.trees import describe

Level: TypeAlias = "str | int | Callable[..., Any] | None"
"""Argument of the denoiser that holds the noise level, by name or position; or a function of its arguments."""

NAMES = ("timestep", "timesteps", "sigma", "sigmas", "noise_level", "noise_levels")
"""Names by which an argument says that it is the noise level, as in diffusers and k-diffusion."""


def noise_levels(calls: Sequence[Inputs], level: Level) -> tuple[str, list[float] | None]:
    """Return where the noise level is and its value in each call; without values, how to name it.

    Args:
        calls: arguments of each call.
        level: where it is; None finds an argument that has one of `NAMES`.

    Raises:
        OptionError: when the calls have no such argument.
        InputError: when it is not one number.

    Example:
        >>> noise_levels([Inputs((), {"scale": 7.5, "timestep": torch.tensor(9)})], None)
        ('timestep', [9.0])
        >>> noise_levels([Inputs((), {"x": torch.rand(2), "step": 9})], None)
        ("unknown, so calls are numbered; name it by an argument, level='step'", None)
    """
    if callable(level):
        found = [_needed(level(*given.args, **given.kwargs), "level= returned", {}) for given in calls]
        return getattr(level, "__name__", "a function"), found
    named = [_arguments(given) for given in calls]
    if level is not None:
        values = [one[choose("argument in level=", str(level), one)] for one in named]
        return str(level), [
            _needed(value, f"level={level!r} is", one) for value, one in zip(values, named, strict=True)
        ]
    single = [name for name in named[0] if all(_number(one.get(name)) is not None for one in named)]
    known = [name for name in single if name in NAMES]
    if len(known) == 1:
        return known[0], [_needed(one[known[0]], known[0], {}) for one in named]
    picture = next(iter(named[0]), "")
    given = known or _readable([name for name in single if name not in (picture, "0")])
    names = f"an argument, level={' or '.join(map(repr, given))}" if given else "a function of the arguments, level="
    return f"unknown, so calls are numbered; name it by {names}", None


def _arguments(given: Inputs) -> dict[str, Any]:
    """The arguments of a call by name, and the positional ones also by position."""
    places = {str(place): one for place, one in enumerate(given.args)}
    return {**dict(zip(given.names, given.args, strict=False)), **places, **given.kwargs}


def _readable(names: Sequence[str]) -> list[str]:
    """Names of arguments; positions only where there are no names."""
    return [name for name in names if not name.isdigit()] or list(names)


def _number(value: Any) -> float | None:
    """The number that a value is, or that all of a tensor is; None if there is none."""
    if isinstance(value, torch.Tensor):
        if not value.numel() or value.dtype == torch.bool or value.is_complex():
            return None
        first = value.detach().reshape(-1)[0]
        return float(first) if bool((value == first).all()) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _needed(value: Any, what: str, given: Mapping[str, Any]) -> float:
    """The number that `value` is.

    Raises:
        InputError: when it is not one.
    """
    found = _number(value)
    if found is None:
        several = _readable([name for name, one in given.items() if _number(one) is not None])
        others = f" Arguments that are one: {', '.join(several)}." if several else ""
        raise InputError(
            f"{what} {describe(value)}, not one number for all rows.{others} A function of the denoiser's arguments "
            "returns one: level=lambda x, t, *args, **kwargs: float(t[0])."
        )
    return found
