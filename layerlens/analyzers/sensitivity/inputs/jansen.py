"""Jansen's estimators of Sobol indices: two designs and their mixtures, scored, and squared differences of rows."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.errors import TargetError
from layerlens.progress import track

from .distribution import Study


@dataclasses.dataclass
class Squares:
    """Half squared differences of the scores of rows, summed over outputs; all float64.

    A and B are independent designs, `AB_j` is A with feature j of B, `BA_i` is B with feature i of A.

    Attributes:
        a: scores of the rows of A, `(rows, outputs)`.
        b: scores of the rows of B, `(rows, outputs)`.
        first: |f(B) - f(AB_j)|^2 / 2, `(features, rows)`: what remains when only feature j is shared.
        total: |f(A) - f(AB_j)|^2 / 2, `(features, rows)`: what feature j alone changes.
        pairs: |f(BA_i) - f(AB_j)|^2 / 2, `(features, features, rows)`: the rows share features i and j; or
            None.
    """

    a: torch.Tensor
    b: torch.Tensor
    first: torch.Tensor
    total: torch.Tensor
    pairs: torch.Tensor | None = None

    def variance(self, weights: torch.Tensor) -> torch.Tensor:
        """Return Var f over A and B, summed over outputs, `(draws,)`; weights of rows `(draws, rows)` sum to 1."""
        middle = (self.a + self.b).mean(dim=0) / 2
        a, b = self.a - middle, self.b - middle
        squares = (a.square().sum(dim=1) + b.square().sum(dim=1)) / 2
        return weights @ squares - (weights @ ((a + b) / 2)).square().sum(dim=1)

    def indices(self, weights: torch.Tensor) -> torch.Tensor:
        """Return first-order and total indices, `(draws, features, 2)`; NaN where the score does not vary.

        S_j = 1 - E[(f(B) - f(AB_j))^2] / (2 Var f), S_Tj = E[(f(A) - f(AB_j))^2] / (2 Var f): Jansen 1999, in the form
        of Saltelli et al. 2010, table 2, (c) and (f).
        """
        variance = self.variance(weights).unsqueeze(1)  # (draws, 1)
        return torch.stack([1 - weights @ self.first.T / variance, weights @ self.total.T / variance], dim=2)

    def second(self, weights: torch.Tensor) -> torch.Tensor:
        """Return second-order indices S_ij, `(draws, features, features)`, zero on the diagonal.

        The rows of BA_i and AB_j share only features i and j, so half their mean square is the variance that the pair
        leaves; S_i and S_j are subtracted from what the pair explains.
        """
        assert self.pairs is not None
        closed = 1 - torch.einsum("rn,ijn->rij", weights, self.pairs) / self.variance(weights)[:, None, None]
        closed = (closed + closed.transpose(1, 2)) / 2
        first = self.indices(weights)[:, :, 0]
        second = closed - first.unsqueeze(2) - first.unsqueeze(1)
        return second * (1 - torch.eye(second.shape[1], dtype=second.dtype))

    def dummy(self) -> Squares:
        """Return the squares of a feature that the model does not read: AB_j scores as A, at no cost."""
        first = (self.b - self.a).square().sum(dim=1, keepdim=True).T / 2
        return Squares(self.a, self.b, first, torch.zeros_like(first))


def resamples(rows: int, draws: int, seed: int) -> torch.Tensor:
    """Return weights of rows drawn with replacement, `(draws, rows)`; each sums to 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(rows, (draws, rows), generator=generator)
    counts = torch.zeros(draws, rows, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(draws, rows, dtype=torch.float64))
    return counts / rows


MEMORY = 2**29
"""Largest number of bytes of scores when all outputs are studied together."""


def run_designs(study: Study, samples: int, order: int, seed: int, progress: bool | None) -> list[Squares]:
    """Score both designs and their mixtures around each base."""
    from scipy.stats import qmc

    count = study.features.count
    a, b = torch.from_numpy(qmc.Sobol(2 * count, scramble=True, seed=seed).random(samples)).tensor_split(2, dim=1)
    parts = torch.split(torch.arange(samples), min(samples, study.batch_size))
    blocks = 2 + count * order
    jobs = [(base, part, block) for base in range(study.bases) for part in range(len(parts)) for block in range(blocks)]
    by_base: list[Squares] = []
    scores: list[torch.Tensor] = []
    for base, part, block in track(jobs, "Sobol indices", enabled=progress):
        rows = parts[part]
        one, other = (a, b) if block < 2 + count else (b, a)
        u = one[rows].clone() if block != 1 else b[rows].clone()
        if block >= 2:
            feature = (block - 2) % count
            u[:, feature] = other[rows, feature]
        scores.append(study(u, base, part))
        if block == blocks - 1:
            if part == 0:
                by_base.append(_empty(samples, count, scores[0].shape[1], order))
            _store(by_base[-1], rows, scores, count)
            scores = []
    return by_base


def _empty(samples: int, count: int, outputs: int, order: int) -> Squares:
    """Allocate the squares.

    Raises:
        TargetError: when there are too many outputs.
    """
    if 16 * samples * outputs > MEMORY:
        raise TargetError(
            f"the output holds {outputs} numbers for each sample, too many to be studied together with {samples} "
            "samples. Give target=, a class, a place or a function of the output."
        )
    a, b = torch.empty(2, samples, outputs, dtype=torch.float64)
    first, total = torch.empty(2, count, samples, dtype=torch.float64)
    return Squares(a, b, first, total, torch.empty(count, count, samples, dtype=torch.float64) if order == 2 else None)


def _store(squares: Squares, rows: torch.Tensor, scores: list[torch.Tensor], count: int) -> None:
    a, b, ab, ba = scores[0], scores[1], scores[2 : 2 + count], scores[2 + count :]
    squares.a[rows], squares.b[rows] = a, b
    for feature, mixed in enumerate(ab):
        squares.first[feature, rows] = (b - mixed).square().sum(dim=1) / 2
        squares.total[feature, rows] = (a - mixed).square().sum(dim=1) / 2
        for other, mirrored in enumerate(ba):
            assert squares.pairs is not None
            squares.pairs[other, feature, rows] = (mirrored - mixed).square().sum(dim=1) / 2
