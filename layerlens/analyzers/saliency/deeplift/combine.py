"""From multipliers to values: times the difference from the baseline, alone, or by a function of the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from layerlens.analyzers.common.scorer import Leaves
from layerlens.errors import OptionError
from layerlens.model.trees import describe

Combine: TypeAlias = "Callable[..., Any]"
"""`(multipliers, inputs, baselines) -> values`, each a tuple of tensors by input; the last two may be left out."""


def check_combine(function: Combine | None, multiply_by_inputs: bool) -> None:
    """Check the options that say how values are made of multipliers.

    Raises:
        OptionError: when both are given, or it is not a function of one to three arguments.
    """
    if function is None:
        return
    if not callable(function) or not 1 <= len(inspect.signature(function).parameters) <= 3:
        raise OptionError(
            "custom_attribution_func must be a function of (multipliers), (multipliers, inputs) or (multipliers, "
            f"inputs, baselines), each a tuple of tensors, got {function!r}."
        )
    if not multiply_by_inputs:
        raise OptionError("multiply_by_inputs=False and custom_attribution_func= both say what a value is: give one.")


def attributed(
    multipliers: Leaves, ends: Leaves, starts: Leaves, products: Leaves, multiply: bool, function: Combine | None
) -> Leaves:
    """Return the values of all leaves.

    Args:
        multipliers: m by leaf.
        ends: x by leaf.
        starts: x' by leaf.
        products: m (x - x') by leaf.
        multiply: whether these are the values.
        function: the user's function; None for these.

    Raises:
        OptionError: when the function does not return a tensor shaped like each input.
    """
    if function is None:
        return products if multiply else multipliers
    count = len(inspect.signature(function).parameters)
    given = [tuple(part[name].detach() for name in multipliers) for part in (multipliers, ends, starts)]
    returned = function(*given[:count])
    found = (returned,) if isinstance(returned, torch.Tensor) else tuple(returned)
    if [getattr(one, "shape", None) for one in found] != [one.shape for one in given[0]]:
        raise OptionError(
            f"custom_attribution_func returned {describe(returned)}; it must return a tuple with a tensor shaped like "
            f"each input: {', '.join(str(tuple(one.shape)) for one in given[0])}."
        )
    return dict(zip(multipliers, found, strict=True))


def combine_setting(function: Combine | None) -> dict[str, str]:
    """Return the setting that names the function."""
    return {} if function is None else {"custom_attribution_func": getattr(function, "__name__", repr(function))}


def units_of(multiply: bool, function: Combine | None) -> str:
    """Return what a value is."""
    if function is not None:
        return "as custom_attribution_func returns"
    return "score" if multiply else "score per unit of input"
