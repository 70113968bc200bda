"""Intervals of values that are means over random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from layerlens.errors import InputError, OptionError

Values = torch.Tensor | dict[str, torch.Tensor]


def interval_of(
    values: torch.Tensor,
    error: torch.Tensor,
    degrees: float | None,
    skewness: torch.Tensor | None = None,
    share: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return low and high ends of the interval of each value.

    The value less and plus the error times a quantile of Student's t; with skewness, that quantile is first transformed
    by the inverse of g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6, whose distribution is symmetric up to 1 / n (Hall
    1992, sec. 2).

    Args:
        values: means over draws.
        error: their standard errors.
        degrees: degrees of freedom of the errors; None for a normal distribution.
        skewness: skewness a of each mean: the skewness of the draws over the root of their number; None for 0.
        share: share of such intervals that should hold the value.

    Example:
        >>> low, high = interval_of(torch.tensor([5.0]), torch.tensor([1.0]), 12, torch.tensor([0.5]))
        >>> low.round(decimals=2), high.round(decimals=2)
        (tensor([3.6400]), tensor([8.5600]))
    """
    from scipy.special import ndtri, stdtrit

    times = float(ndtri(0.5 + share / 2) if degrees is None else stdtrit(degrees, 0.5 + share / 2))
    if skewness is None:
        return values - times * error, values + times * error
    return values - _skewed(times, skewness) * error, values - _skewed(-times, skewness) * error


def intervals_of(
    method: str,
    values: Values,
    errors: Values | None,
    degrees: float | None,
    skewness: Values | None,
    share: float,
) -> tuple[Values, Values]:
    """Return low and high ends in the form of the values: one tensor, or one by input name; see `interval_of`.

    Raises:
        InputError: when there are no errors.
        OptionError: when the share is not between 0 and 1.
    """
    if isinstance(share, bool) or not 0 < share < 1:
        raise OptionError(f"share must be between 0 and 1, such as interval(0.9); got {share!r}.")
    if errors is None:
        raise InputError(
            f"the values of {method} have no standard error, so no interval: they are exact, drawn once or "
            'combined. Methods that draw have one: method="shapley_sampling".'
        )
    named, scatter = ({"": one} if isinstance(one, torch.Tensor) else one for one in (values, errors))
    skewed = {"": skewness} if isinstance(skewness, torch.Tensor) else skewness or {}
    ends = {name: interval_of(one, scatter[name], degrees, skewed.get(name), share) for name, one in named.items()}
    low, high = ({name: pair[end] for name, pair in ends.items()} for end in (0, 1))
    return (low, high) if isinstance(values, dict) else (low[""], high[""])


def excludes_zero(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return whether each interval excludes 0; False where an end is NaN."""
    return (low > 0) | (high < 0)


def joined(function: Callable[..., Any], *values: Any) -> Any:
    """Return what a function makes of tensors, or by name of dicts of tensors with the same names.

    Args:
        function: takes as many tensors.
        values: each one tensor, or a dict of them.
    """
    if not isinstance(values[0], dict):
        return function(*values)
    return {name: function(*(one[name] for one in values)) for name in values[0]}


def _skewed(times: float, skewness: torch.Tensor) -> torch.Tensor:
    """The t whose g(t) is `times`: 3 (c - 1) / a with c^3 = 1 + a (times - a / 6)."""
    moved = times - skewness / 6
    cubed = 1 + skewness * moved
    root = cubed.sign() * cubed.abs() ** (1 / 3)
    return 3 * moved / (root.square() + root + 1)  # c - 1 = (c^3 - 1) / (c^2 + c + 1), without its loss of digits
