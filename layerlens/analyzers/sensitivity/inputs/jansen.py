"""Saltelli's and Jansen's estimators of Sobol indices: scores of two designs and their mixtures, and terms by row."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.errors import OptionError, TargetError, check_count
from layerlens.progress import track

from .distribution import Study


@dataclasses.dataclass
class RowTerms:
    """What each row adds to the indices, summed over outputs; all float64.

    A and B are independent designs, `AB_j` is A with feature j of B, `BA_i` is B with feature i of A. Terms of a
    feature that the model does not read are exactly zero.

    Attributes:
        a: scores of the rows of A, `(rows, outputs)`.
        b: scores of the rows of B, `(rows, outputs)`.
        first: (f(B) - m) (f(AB_j) - f(A)), `(features, rows)`, m the mean score: only feature j is shared.
        total: |f(A) - f(AB_j)|^2 / 2, `(features, rows)`: what feature j alone changes.
        pairs: (f(BA_i) - f(B)) (f(AB_j) - f(A)), `(features, features, rows)`: rows share i and j; or None.
    """

    a: torch.Tensor
    b: torch.Tensor
    first: torch.Tensor
    total: torch.Tensor
    pairs: torch.Tensor | None = None

    @property
    def middle(self) -> torch.Tensor:
        """The mean score of A and B, `(outputs,)`."""
        return (self.a + self.b).mean(dim=0) / 2

    def variance(self, weights: torch.Tensor) -> torch.Tensor:
        """Return Var f over A and B, summed over outputs, `(draws,)`; weights of rows `(draws, rows)` sum to 1."""
        a, b = self.a - self.middle, self.b - self.middle
        squares = (a.square().sum(dim=1) + b.square().sum(dim=1)) / 2
        return weights @ squares - (weights @ ((a + b) / 2)).square().sum(dim=1)

    def indices(self, weights: torch.Tensor) -> torch.Tensor:
        """Return first-order and total indices, `(draws, features, 2)`; NaN where the score does not vary.

        S_j = E[f(B) (f(AB_j) - f(A))] / Var f, S_Tj = E[(f(A) - f(AB_j))^2] / (2 Var f): Saltelli et al. 2010, table 2,
        (b) and (f).
        """
        variance = self.variance(weights).unsqueeze(1)  # (draws, 1)
        return torch.stack([weights @ self.first.T, weights @ self.total.T], dim=2) / variance.unsqueeze(2)

    def second(self, weights: torch.Tensor) -> torch.Tensor:
        """Return second-order indices S_ij, `(draws, features, features)`, zero on the diagonal.

        E[(f(BA_i) - f(B)) (f(AB_j) - f(A))] is E[f(BA_i) f(AB_j)], what the pair and its features explain, less
        E[f(BA_i) f(A)] and E[f(B) f(AB_j)], what each explains alone, plus E[f(A) f(B)]; squared means cancel.
        """
        assert self.pairs is not None
        found = torch.einsum("rn,ijn->rij", weights, self.pairs) / self.variance(weights)[:, None, None]
        return (found + found.transpose(1, 2)) / 2 * (1 - torch.eye(found.shape[1], dtype=found.dtype))


REPLICATES, FEWER, ROWS = 8, 4, 64
"""Number of replicates; with fewer rows than `ROWS` in each, `FEWER`: smaller ones lose what a Sobol sequence gains."""


def replicates_of(replicates: int | None, samples: int) -> int:
    """Return the number of independently scrambled sequences that a number of rows is made of.

    Args:
        replicates: as it was given; None to choose.
        samples: number of rows, a power of 2.

    Raises:
        OptionError: when it is not a power of 2 up to the number of rows.
    """
    if replicates is None:
        return REPLICATES if samples >= REPLICATES * ROWS else FEWER
    check_count("replicates", replicates)
    if samples % replicates:
        raise OptionError(f"replicates must be a power of 2 up to samples={samples}, got {replicates}.")
    return replicates


def without_each(samples: int, replicates: int) -> torch.Tensor:
    """Return weights of rows with one replicate left out, `(replicates, rows)`; each sums to 1."""
    kept = (torch.arange(samples) % replicates != torch.arange(replicates).unsqueeze(1)).double()
    return kept / kept.sum(dim=1, keepdim=True)


def designs(samples: int, features: int, replicates: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points of A and B, `(samples, features)` each, from 0 to 1.

    Scrambled Sobol sequences (Owen 1998) in turn: the first rows are a smaller design. They are independent, so that
    what they scatter is the error, which one sequence does not show.
    """
    import numpy as np
    from scipy.stats import qmc

    seeds = np.random.SeedSequence(seed).generate_state(replicates).tolist()
    each = [qmc.Sobol(2 * features, scramble=True, seed=own).random(samples // replicates) for own in seeds]
    a, b = torch.from_numpy(np.stack(each, axis=1)).flatten(0, 1).tensor_split(2, dim=1)
    return a, b


MEMORY = 2**29
"""Largest number of bytes of scores when all outputs are studied together."""


def run_designs(
    study: Study, samples: int, replicates: int, order: int, seed: int, progress: bool | None
) -> list[RowTerms]:
    """Score both designs and their mixtures around each base."""
    count = study.features.count
    a, b = designs(samples, count, replicates, seed)
    parts = torch.split(torch.arange(samples), min(samples, study.batch_size))
    last = 1 + count * order  # blocks: A, B, AB_0, ..., and for order 2 BA_0, ...
    first = [(part, block) for block in (0, 1) for part in range(len(parts))]
    jobs = first + [(part, block) for part in range(len(parts)) for block in range(2, last + 1)]
    by_base: list[RowTerms] = []
    mixed: list[torch.Tensor] = []
    for base, (part, block) in track(
        [(base, job) for base in range(study.bases) for job in jobs], "Sobol indices", enabled=progress
    ):
        rows = parts[part]
        one, other = (a, b) if block < 2 + count else (b, a)
        u = one[rows].clone() if block != 1 else b[rows].clone()
        if block >= 2:
            feature = (block - 2) % count
            u[:, feature] = other[rows, feature]
        scores = study(u, base, part)
        if block >= 2:
            mixed.append(scores)
        else:
            if part == block == 0:
                by_base.append(_empty(samples, count, scores.shape[1], order))
            (by_base[-1].b if block else by_base[-1].a)[rows] = scores
        if block == last:
            _store(by_base[-1], rows, mixed, count)
            mixed = []
    return by_base


def _empty(samples: int, count: int, outputs: int, order: int) -> RowTerms:
    """Allocate the terms.

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
    return RowTerms(a, b, first, total, torch.empty(count, count, samples, dtype=torch.float64) if order == 2 else None)


def _store(terms: RowTerms, rows: torch.Tensor, mixed: list[torch.Tensor], count: int) -> None:
    """Store the terms of some rows; with BA_i too, means of both ways round."""
    a, b, middle = terms.a[rows], terms.b[rows], terms.middle
    ways = [(b, [scores - a for scores in mixed[:count]]), (a, [scores - b for scores in mixed[count:]])]
    ways = ways[: 1 if terms.pairs is None else 2]
    for feature in range(count):
        first = [((other - middle) * moved[feature]).sum(dim=1) for other, moved in ways]
        total = [moved[feature].square().sum(dim=1) / 2 for _, moved in ways]
        terms.first[feature, rows] = torch.stack(first).mean(dim=0)
        terms.total[feature, rows] = torch.stack(total).mean(dim=0)
        if terms.pairs is not None:
            for other in range(count):
                terms.pairs[other, feature, rows] = (ways[1][1][other] * ways[0][1][feature]).sum(dim=1)
