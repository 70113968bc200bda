"""Interaction indices from a sample of coalitions, with their standard errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.statistics import jackknife_error

PARTS = 30
"""Parts of the draws that the jackknife leaves out, one at a time."""

Group = tuple[int, ...]


def least_budget(count: int, order: int) -> int:
    """Return the fewest coalitions to sample: all of up to `order` features, their complements, and some draws."""
    least: int = 2 * sum(math.comb(count, size) for size in range(order + 1)) + 4 * PARTS
    return min(int(2**count), least)


def sampled_interactions(
    scores: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    groups: list[Group],
    index: str,
    rounds: Rounds,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate what each group of features gets; return values and standard errors by group, float64.

    All coalitions of up to k features and their complements are scored, and pairs of a coalition and its complement are
    drawn by the Shapley kernel; a pair that is drawn again counts again, but is not scored again. A polynomial of order
    k is fitted with that kernel: its coefficients are FSII (Tsai et al. 2023, eq. 16). Another index is that of the
    polynomial plus that of its residuals, by strata of the size of a coalition and of what it shares with the group
    (Kolpaczki et al. 2024, sec. 4). Errors are by a jackknife over `PARTS` parts of the draws.

    Args:
        scores: from coalitions `(m, features)` of 0 and 1 to `(m,)`, float64, less the score of the empty one.
        count: number n of features.
        groups: all groups of 1 to k features, by size.
        index: `"k-SII"`, `"SII"`, `"STII"` or `"FSII"`.
        rounds: numbers of coalitions to score, each at least `least_budget` and below 2^n.
        seed: seed of the draws.
    """
    order = len(groups[-1])
    members = torch.zeros(len(groups), count, dtype=torch.float64)
    for place, group in enumerate(groups):
        members[place, list(group)] = 1
    ends = torch.cat([torch.zeros(1, count, dtype=torch.float64), members])
    ends = torch.cat([ends, 1 - ends])
    pairs = _Pairs(count, order, seed)
    keep, values = ends, scores(ends)
    for most in rounds:
        drawn, counts = pairs.first((most - len(ends)) // 2)
        more = torch.cat([ends, torch.stack([drawn, 1 - drawn], dim=1).flatten(0, 1)])
        values = torch.cat([values, scores(more[len(keep) :])])
        keep = more
        parts = _estimates(keep, values, counts, members, order, index)
        found, error = parts[0], jackknife_error(parts[1:])
        rounds.look({"": found[None]}, {"": error[None]}, PARTS - 1)
    return found, error


class _Pairs:
    """Draws of coalitions of k + 1 to n - k - 1 features by the Shapley kernel, each with its complement."""

    def __init__(self, count: int, order: int, seed: int) -> None:
        self._count, self._generator = count, torch.Generator().manual_seed(seed)
        self._sizes = torch.arange(order + 1, count - order)
        self._places: dict[bytes, int] = {}  # of each pair
        self._pairs: list[torch.Tensor] = []
        self._draws: list[int] = []  # places of the pairs, in the order of the draws

    def first(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first different pairs, `(number, n)`, one coalition of each, and how often they were drawn.

        The draws are those before the next different pair; the counts are by part of the draws, `(number, PARTS)`.
        """
        while len(self._pairs) <= number:
            self._draw()
        draws = torch.tensor(self._draws[: self._draws.index(number)])
        cells = draws * PARTS + torch.arange(len(draws)) % PARTS
        return torch.stack(self._pairs[:number]), torch.bincount(cells, minlength=number * PARTS).reshape(-1, PARTS)

    def _draw(self, many: int = 256) -> None:
        """Draw more; the same in any number of rounds."""
        odds = _kernel(self._count, self._sizes).cumsum(dim=0)
        drawn = torch.rand(many, self._count + 1, generator=self._generator, dtype=torch.float64)
        chosen = torch.searchsorted(odds, drawn[:, 0] * odds[-1], right=True).clamp(max=len(odds) - 1)
        keep = (drawn[:, 1:].argsort(dim=1).argsort(dim=1) < self._sizes[chosen][:, None]).double()
        keep = torch.where(keep[:, :1] > 0, keep, 1 - keep)  # a pair by its coalition with the first feature
        for row in keep:
            key = row.numpy().astype(bool).tobytes()
            if key not in self._places:
                self._places[key] = len(self._pairs)
                self._pairs.append(row)
            self._draws.append(self._places[key])


def _kernel(count: int, sizes: torch.Tensor) -> torch.Tensor:
    """The weight of all coalitions of each size together, but for a factor: 1 / (s (n - s))."""
    return 1 / (sizes * (count - sizes)).double()


def _estimates(
    keep: torch.Tensor, values: torch.Tensor, counts: torch.Tensor, members: torch.Tensor, order: int, index: str
) -> torch.Tensor:
    """Estimates from all draws, and without each part of them, `(1 + PARTS, groups)`.

    Args:
        keep: coalitions, `(m, n)`: of the fixed ones first, then the pairs.
        values: their scores, `(m,)`.
        counts: draws of each pair by part, `(pairs, PARTS)`.
        members: features of each group, `(groups, n)`.
        order: largest size of a group.
        index: name of the index.
    """
    count, fixed = keep.shape[1], len(keep) - 2 * len(counts)
    sizes, own = keep.sum(dim=1).long(), members.sum(dim=1).long()
    kept = torch.cat([counts.sum(dim=1, keepdim=True), counts.sum(dim=1, keepdim=True) - counts], dim=1).double()
    times = torch.cat([torch.ones(fixed, 1 + PARTS).double(), kept.repeat_interleave(2, dim=0)])  # (m, 1 + PARTS)
    shared = (keep @ members.T).long()  # (m, groups)
    design = (shared == own).double()
    inner = _kernel(count, torch.arange(order + 1, count - order)).sum() / (2 * kept.sum(dim=0))
    ways = torch.tensor([math.comb(count, size) for size in range(count + 1)]).double()
    weight = times * inner
    weight[:fixed] = (_kernel(count, sizes[:fixed]) / ways[sizes[:fixed]]).nan_to_num(posinf=0)[:, None]
    whole = values[sizes == count]
    fitted = torch.stack([_fit(design, one, values, whole) for one in weight.T], dim=1)  # (groups, 1 + PARTS)
    if index == "FSII":
        return fitted.T
    residual = times * (values[:, None] - design @ fitted)
    inside = (members @ members.T).long() == own[:, None]  # (groups, groups): whether the first is part of the second
    apart = own - own[:, None]
    found = torch.where(inside, 1 / (apart + 1).double(), 0.0) @ fitted if index != "STII" else fitted.clone()
    cells = (count + 1) * (order + 1)
    for place, size in enumerate(own.tolist()):
        stratum = sizes * (order + 1) + shared[:, place]
        total, number = (_sums(one, stratum, cells) for one in (residual, times))
        found[place] += _weights(index, count, size, order) @ (total / number.clamp_min(1))
    if index == "k-SII":  # Bordt & von Luxburg 2023, eq. 9
        bernoulli = torch.tensor(_bernoulli(order)).double()
        found = torch.where(inside, bernoulli[apart.clamp_min(0)], 0.0) @ found
    return found.T


def _fit(design: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The coefficients of the weighted least squares fit whose sum is S(x) - S(0)."""
    weighted = weight[:, None] * design
    inverse = torch.linalg.pinv(weighted.T @ design, hermitian=True)
    solved, unit = inverse @ (weighted.T @ values), inverse.sum(dim=1)
    fitted: torch.Tensor = solved - unit * (solved.sum() - whole) / unit.sum()
    return fitted


def _sums(rows: torch.Tensor, places: torch.Tensor, number: int) -> torch.Tensor:
    """The sums of the rows of each place, `(number, columns)`."""
    return torch.zeros(number, rows.shape[1], dtype=rows.dtype).index_add_(0, places, rows)


def _weights(index: str, count: int, size: int, order: int) -> torch.Tensor:
    """What the mean of each stratum counts for a group of `size` features, `((n + 1) (order + 1),)`.

    The sum over coalitions of (-1)^(|S| - l) w(t), of which a stratum of size s that shares l = s - t with the group S
    has C(|S|, l) C(n - |S|, t).
    """
    weights = torch.zeros(count + 1, order + 1, dtype=torch.float64)
    for shared, others in itertools.product(range(size + 1), range(count - size + 1)):
        ways = math.comb(count - size, others)
        if index != "STII":
            share = 1 / (count - size + 1)  # Grabisch & Roubens 1999: w = 1 / ((n - |S| + 1) C(n - |S|, t))
        elif size == order:
            share = order / count * ways / math.comb(count - 1, others)  # Sundararajan et al. 2020, eq. 6
        else:
            share = float(others == 0)
        weights[shared + others, shared] = (-1) ** (size - shared) * math.comb(size, shared) * share
    return weights.flatten()


def _bernoulli(most: int) -> list[float]:
    """The Bernoulli numbers up to a number, B_1 = -1/2."""
    found = [1.0]
    for number in range(1, most + 1):
        found.append(-sum(math.comb(number + 1, one) * found[one] for one in range(number)) / (number + 1))
    return found
