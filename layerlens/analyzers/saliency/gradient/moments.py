"""Means and variances over draws with their errors, from sums of powers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import Leaves
from layerlens.analyzers.common.statistics import error_and_skewness

Statistic = Literal["mean", "magnitude", "square", "variance"]


class Moments:
    """Sums of powers of draws, in float64, around the first draw, so that few digits cancel.

    Args:
        order: the highest power.

    Attributes:
        count: draws so far.

    Example:
        >>> moments = Moments(2)
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> moments.mean(), moments.central(2)
        (tensor([2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    def __init__(self, order: int) -> None:
        self.count, self._order = 0, order
        self._center = self._sums = torch.zeros(0)

    def add(self, draws: torch.Tensor) -> None:
        """Add draws, `(copies, ...)`."""
        draws = draws.double()
        if not self.count:
            self._center = draws[0].clone()
            self._sums = torch.zeros(self._order, *draws.shape[1:], dtype=draws.dtype, device=draws.device)
        moved = draws - self._center
        power = torch.ones_like(moved)
        for sums in self._sums:
            power *= moved
            sums += power.sum(dim=0)
        self.count += len(draws)

    def mean(self) -> torch.Tensor:
        """Return the mean over the draws."""
        return self._center + self._sums[0] / self.count

    def central(self, power: int) -> torch.Tensor:
        """Return the mean of (y - mean y)^power: sum over k of C(p, k) m_k (-m_1)^(p - k), m_k the mean k-th power."""
        raw = [torch.ones_like(self._sums[0]), *(self._sums[:power] / self.count)]
        return sum(
            (math.comb(power, k) * one * (-raw[1]) ** (power - k) for k, one in enumerate(raw)),
            torch.zeros_like(raw[0]),
        )


@dataclasses.dataclass
class Found:
    """A statistic over draws, by leaf.

    Attributes:
        values: the statistic.
        errors: its standard errors; None where they are unknown.
        skewness: its skewness over seeds; None where it is unknown.
    """

    values: Leaves
    errors: Leaves | None
    skewness: Leaves | None


class Draws:
    """The draws of some samples, by leaf, and a statistic of them.

    Args:
        statistic: mean of the draws, of their magnitudes or of their squares; or their variance.
        summed: leaves of which a value is the sum over the last axis of the statistic, which errors are then of.
    """

    def __init__(self, statistic: Statistic, summed: Sequence[str] = ()) -> None:
        self.statistic, self._summed = statistic, summed
        self._each: dict[str, Moments] = {}
        self._sums: dict[str, Moments] = {}

    def add(self, name: str, draws: torch.Tensor) -> None:
        """Add draws of a leaf, `(copies, samples, ...)`."""
        if self.statistic in ("magnitude", "square"):
            draws = draws.abs() if self.statistic == "magnitude" else draws.double().square()
        self._each.setdefault(name, Moments(6 if self.statistic == "variance" else 3)).add(draws)
        if name in self._summed:
            self._sums.setdefault(name, Moments(3)).add(draws.double().sum(dim=-1))

    def found(self) -> Found:
        """Return the statistic of all draws.

        The variance of a sum over the last axis has no error: its draws are not known before the mean is.
        """
        variance = self.statistic == "variance"
        values = {name: one.central(2).clamp_min(0) if variance else one.mean() for name, one in self._each.items()}
        if (variance and self._summed) or min(one.count for one in self._each.values()) < 2:
            return Found(values, None, None)
        errors, skewness = {}, {}
        for name, one in {**self._each, **self._sums}.items():
            square, cube = one.central(2), one.central(3)
            if variance:  # of the draws (y - mean y)^2
                fourth, sixth = one.central(4), one.central(6)
                square, cube = fourth - square**2, sixth - 3 * fourth * square + 2 * square**3
            errors[name], skewness[name] = error_and_skewness(square, cube, one.count)
            if variance:  # those are smaller than around the true mean, on average by (n - 1) / n
                errors[name] *= one.count / (one.count - 1)
        return Found(values, errors, skewness)


def together(parts: Sequence[Found]) -> Found:
    """Join what was found for some samples each."""

    def joined(each: Sequence[Leaves | None]) -> Leaves | None:
        known = [one for one in each if one is not None]
        return {name: torch.cat([one[name] for one in known]) for name in known[0]} if known else None

    values = joined([one.values for one in parts])
    assert values is not None
    return Found(values, joined([one.errors for one in parts]), joined([one.skewness for one in parts]))


def in_rounds(
    rounds: Rounds,
    parts: Sequence[tuple[torch.Tensor, Draws]],
    seed: int,
    add: Callable[[torch.Tensor, Draws, range, torch.Generator], None],
    numbers: Callable[[Leaves], Leaves] = lambda values: values,
) -> Found:
    """Draw for some samples after the other, the same draws for all, until the intervals are narrow enough.

    Args:
        rounds: says how many draws to have after each round.
        parts: samples, and what keeps their draws.
        seed: seed of the draws.
        add: makes the draws of a range of numbers, of some samples, with a generator.
        numbers: the values whose intervals are looked at.
    """
    generator, count = torch.Generator().manual_seed(seed), 0
    for most in rounds:
        start = generator.get_state()
        for rows, draws in parts:
            generator.set_state(start)
            add(rows, draws, range(count, most), generator)
        count = most
        found = together([draws.found() for _, draws in parts])
        rounds.look(numbers(found.values), found.errors, count - 1, found.skewness)
    return found
