"""Differences between groups, with the chance that shuffled groups differ as much anywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

CHUNK = 2**22
"""Numbers of shuffled groups x samples x units at work at a time."""


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effects in one table `(samples, quantities)`: each `(contrasts, quantities)`.

    Attributes:
        difference: difference of the means within strata.
        size: Hedges' g.
        error: its standard error.
        correlation: correlation of membership and quantity within strata, in [-1, 1].
        peaks: largest |correlation| of each permutation, `(permutations, contrasts)`.
    """

    difference: torch.Tensor
    size: torch.Tensor
    error: torch.Tensor
    correlation: torch.Tensor
    peaks: torch.Tensor


class Shuffles:
    """Group memberships as they are and shuffled within strata.

    Shuffling within strata keeps what belongs to a stratum (its class, its site) out of the difference. The statistic
    is the partial correlation of membership and quantity given the stratum, a monotone function of the t of that
    regression, so that one product of matrices serves all quantities.

    Args:
        member: bool `(samples, contrasts)`, the samples of the contrast's group.
        strata: `(samples,)` whole numbers. A contrast is about the samples of those strata that hold both its sides.
        permutations: number of shuffles.
        seed: seed of the shuffles.
    """

    def __init__(self, member: torch.Tensor, strata: torch.Tensor, permutations: int, seed: int) -> None:
        self.strata = torch.unique(strata, return_inverse=True)[1]
        sizes = self.strata.bincount()
        centered = self.within(member.double())
        mixed = torch.zeros(len(sizes), member.shape[1]).index_add_(0, self.strata, centered.abs().float()) > 1e-6
        self.support = mixed[self.strata]
        """Which samples a contrast is about, bool `(samples, contrasts)`."""
        self.freedom = (self.support.sum(dim=0) - mixed.sum(dim=0) - 1).double()
        self.norm = centered.norm(dim=0)
        self.member = centered / self.norm.clamp_min(1e-300)
        generator = torch.Generator().manual_seed(seed)
        base = self.strata.argsort(stable=True)
        self.orders = torch.empty(permutations, len(member), dtype=torch.int64)
        for row in range(permutations):
            drawn = torch.randperm(len(member), generator=generator)
            drawn = drawn[self.strata[drawn].argsort(stable=True)]
            self.orders[row, base] = drawn

    def within(self, values: torch.Tensor) -> torch.Tensor:
        """Subtract from values the means of their strata."""
        count = self.strata.bincount().to(values)
        sums = torch.zeros(len(count), *values.shape[1:], dtype=values.dtype).index_add_(0, self.strata, values)
        means: torch.Tensor = (sums / count.reshape(-1, *[1] * (values.ndim - 1)))[self.strata]
        return values - means

    def effect(self, table: torch.Tensor) -> Effect:
        """Return the effects in `table`, `(samples, quantities)`."""
        floor = 1e-9 * table.abs().amax(dim=0) * math.sqrt(len(table))
        centered = self.within(table)
        norm = (self.support.double().T @ centered.square()).sqrt()  # (contrasts, quantities)
        weight = torch.where(
            norm > floor, 1 / norm.clamp_min(1e-300), torch.zeros_like(norm)
        )  # constants differ nowhere
        r = (self.member.T @ centered * weight).clamp(-1, 1)
        peaks = torch.empty(len(self.orders), r.shape[0], dtype=torch.float64)
        step = max(1, CHUNK // max(1, r.shape[0] * max(table.shape)))
        for start in range(0, len(self.orders), step):
            shuffled = self.member[self.orders[start : start + step]]  # (step, samples, contrasts)
            found = torch.einsum("psc,sq->pcq", shuffled, centered)
            peaks[start : start + step] = (found * weight).abs().amax(dim=2)
        difference = r * norm / self.norm[:, None].clamp_min(1e-300)
        size = self.size(r)
        count = self.support.sum(dim=0)[:, None]
        variance = 1 / self.norm[:, None].square().clamp_min(1e-300) + size.square() / (2 * count)
        return Effect(difference, size, variance.sqrt(), r, peaks)

    def size(self, correlation: torch.Tensor) -> torch.Tensor:
        """Return Hedges' g for correlations `(contrasts, ...)`."""
        shape = (-1, *[1] * (correlation.ndim - 1))
        norm, freedom = self.norm.reshape(shape).clamp_min(1e-300), self.freedom.reshape(shape)
        small = torch.where(freedom > 1, 1 - 3 / (4 * freedom - 1), torch.ones_like(freedom))
        spread = (1 - correlation.square()).clamp_min(1e-6).sqrt()
        size: torch.Tensor = small * correlation * freedom.sqrt() / (norm * spread)
        return size

    def smallest(self) -> float:
        """Return the smallest p that these groups can reach, by the number of ways to shuffle them."""
        ways = 0.0
        for stratum in range(int(self.strata.max()) + 1):
            rows = self.member[self.strata == stratum].round(decimals=9)
            counts = torch.unique(rows, dim=0, return_counts=True)[1].tolist()
            ways += math.lgamma(sum(counts) + 1) - sum(math.lgamma(count + 1) for count in counts)
        drawn: float = self.member.shape[1] / (len(self.orders) + 1)
        return max(drawn, math.exp(-min(ways, 700)))


def corrected(effects: Mapping[str, Effect]) -> dict[str, torch.Tensor]:
    """Return p of every quantity, `(contrasts, quantities)`, corrected for all quantities and contrasts together.

    Within a contrast a quantity is compared with the largest of each permutation (max-T). Contrasts of few samples have
    a wider null than those of many, so they are joined by their p, and the smallest of each permutation (min-P).

    Source: Westfall & Young 1993, "Resampling-based multiple testing", single-step max-T and min-P.
    """
    peaks = torch.stack([effect.peaks for effect in effects.values()]).amax(dim=0).T.contiguous()
    ordered = peaks.sort(dim=1).values
    whole = peaks.shape[1]
    smallest = (whole - torch.searchsorted(ordered, peaks - 1e-9)).amin(dim=0).sort().values
    found = {}
    for name, effect in effects.items():
        reached = 1 + whole - torch.searchsorted(ordered, effect.correlation.abs() - 1e-9)
        joint = torch.searchsorted(smallest, reached.contiguous(), right=True)
        found[name] = (reached if len(peaks) == 1 else 1 + joint).double() / (whole + 1)
    return found
