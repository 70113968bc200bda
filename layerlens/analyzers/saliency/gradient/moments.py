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


GROUPS = 32
"""Most groups of draws whose sums are kept for the error of a sum of variances."""


class VarianceSum:
    """The error of a sum of variances over the last axis, from sums of draws and of their squares by group of draws.

    Its draws (y - mean y)^2, summed, are known once the mean is: their sum over a group is
    sum of y^2 - 2 mean y * sum of y + n (mean y)^2. Up to `GROUPS` draws, each is a group.

    Example:
        >>> part = VarianceSum()
        >>> part.add(torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[5.0, 0.0]]]))
        >>> part.error_and_skewness()[0] ** 2  # of 4, 0 and 4: 32 / 9 / (3 - 1), times (3 / 2)^2
        tensor([4.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(GROUPS, dtype=torch.float64)
        self._center = self._sums = torch.zeros(0)

    @property
    def groups(self) -> int:
        """The number of groups that hold draws."""
        return int((self._counts > 0).sum())

    def add(self, draws: torch.Tensor) -> None:
        """Add draws, `(copies, samples, ..., values)`."""
        draws = draws.double()
        if not self.groups:
            self._center = draws[0].clone()
            self._sums = torch.zeros(2, GROUPS, *draws.shape[1:], dtype=draws.dtype, device=draws.device)
        places = (torch.arange(len(draws)) + int(self._counts.sum())) % GROUPS
        self._counts += torch.bincount(places, minlength=GROUPS)
        moved, places = draws - self._center, places.to(draws.device)
        self._sums[0].index_add_(0, places, moved)
        self._sums[1].index_add_(0, places, moved.square())

    def error_and_skewness(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the standard error and the skewness of the sum of variances, `(samples, ...)`."""
        counts, groups = self._counts[: self.groups].to(self._sums.device), self.groups
        total = float(counts.sum())
        sums, squares = self._sums[:, :groups]
        mean = sums.sum(dim=0) / total
        drawn = (squares - 2 * mean * sums).sum(dim=-1)  # (groups, samples, ...)
        share = counts.reshape(-1, *[1] * (drawn.ndim - 1)) / total
        parts = drawn / total + share * mean.square().sum(dim=-1)
        parts -= share * parts.sum(dim=0)  # (n_g / n) (mean of the group - mean of all)
        error, skewness = error_and_skewness(
            groups * parts.square().sum(dim=0), groups**2 * parts.pow(3).sum(0), groups
        )
        return error * total / (total - 1), skewness  # smaller than around the true mean, on average by (n - 1) / n


@dataclasses.dataclass
class Found:
    """A statistic over draws, by leaf.

    Attributes:
        values: the statistic.
        errors: its standard errors; None where they are unknown.
        skewness: its skewness over seeds; None where it is unknown.
        degrees: degrees of freedom of the errors.
    """

    values: Leaves
    errors: Leaves | None
    skewness: Leaves | None
    degrees: float


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
        self._variance_sums: dict[str, VarianceSum] = {}

    def add(self, name: str, draws: torch.Tensor) -> None:
        """Add draws of a leaf, `(copies, samples, ...)`."""
        if self.statistic in ("magnitude", "square"):
            draws = draws.abs() if self.statistic == "magnitude" else draws.double().square()
        self._each.setdefault(name, Moments(6 if self.statistic == "variance" else 3)).add(draws)
        if name in self._summed and self.statistic == "variance":
            self._variance_sums.setdefault(name, VarianceSum()).add(draws)
        elif name in self._summed:
            self._sums.setdefault(name, Moments(3)).add(draws.double().sum(dim=-1))

    def found(self) -> Found:
        """Return the statistic of all draws."""
        variance = self.statistic == "variance"
        values = {name: one.central(2).clamp_min(0) if variance else one.mean() for name, one in self._each.items()}
        count = min(one.count for one in self._each.values())
        if count < 2:
            return Found(values, None, None, 1)
        errors, skewness = {}, {}
        for name, one in {**self._each, **self._sums}.items():
            square, cube = one.central(2), one.central(3)
            if variance:  # of the draws (y - mean y)^2
                fourth, sixth = one.central(4), one.central(6)
                square, cube = fourth - square**2, sixth - 3 * fourth * square + 2 * square**3
            errors[name], skewness[name] = error_and_skewness(square, cube, one.count)
            if variance:  # those are smaller than around the true mean, on average by (n - 1) / n
                errors[name] *= one.count / (one.count - 1)
        for name, part in self._variance_sums.items():
            errors[name], skewness[name] = part.error_and_skewness()
        groups = [part.groups for part in self._variance_sums.values()]
        return Found(values, errors, skewness, min([count, *groups]) - 1)


def together(parts: Sequence[Found]) -> Found:
    """Join what was found for some samples each."""

    def joined(each: Sequence[Leaves | None]) -> Leaves | None:
        known = [one for one in each if one is not None]
        return {name: torch.cat([one[name] for one in known]) for name in known[0]} if known else None

    values = joined([one.values for one in parts])
    assert values is not None
    errors, skewness = joined([one.errors for one in parts]), joined([one.skewness for one in parts])
    return Found(values, errors, skewness, parts[0].degrees)


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
        rounds.look(numbers(found.values), found.errors, found.degrees, found.skewness)
    return found
