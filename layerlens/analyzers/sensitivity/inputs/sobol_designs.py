"""Both designs and their mixtures, scored: what the estimators of Sobol indices are made from."""

from __future__ import annotations

import torch

from layerlens.errors import TargetError
from layerlens.progress import track

from .distribution import Study
from .jansen import Squares

MEMORY = 2**29
"""Bytes of scores that are held when all outputs are studied together."""


def run_designs(own: Study, samples: int, order: int, seed: int, progress: bool | None) -> list[Squares]:
    """Score both designs and their mixtures around each base."""
    from scipy.stats import qmc

    count = own.features.count
    a, b = torch.from_numpy(qmc.Sobol(2 * count, scramble=True, seed=seed).random(samples)).tensor_split(2, dim=1)
    parts = torch.split(torch.arange(samples), min(samples, own.batch_size))
    blocks = 2 + count * order
    jobs = [(base, part, block) for base in range(own.bases) for part in range(len(parts)) for block in range(blocks)]
    found: list[Squares] = []
    scores: list[torch.Tensor] = []
    for base, part, block in track(jobs, "Sobol indices", enabled=progress):
        rows = parts[part]
        one, other = (a, b) if block < 2 + count else (b, a)
        u = one[rows].clone() if block != 1 else b[rows].clone()
        if block >= 2:
            feature = (block - 2) % count
            u[:, feature] = other[rows, feature]
        scores.append(own(u, base, part))
        if block == blocks - 1:
            if part == 0:
                found.append(_empty(samples, count, scores[0].shape[1], order))
            _note(found[-1], rows, scores, count)
            scores = []
    return found


def _empty(samples: int, count: int, outputs: int, order: int) -> Squares:
    if 16 * samples * outputs > MEMORY:
        raise TargetError(
            f"the output holds {outputs} numbers for each sample, too many to be studied together with {samples} "
            "samples. Give target=, a class, a place or a function of the output."
        )
    a, b = torch.empty(2, samples, outputs, dtype=torch.float64)
    first, total = torch.empty(2, count, samples, dtype=torch.float64)
    return Squares(a, b, first, total, torch.empty(count, count, samples, dtype=torch.float64) if order == 2 else None)


def _note(squares: Squares, rows: torch.Tensor, scores: list[torch.Tensor], count: int) -> None:
    a, b, ab, ba = scores[0], scores[1], scores[2 : 2 + count], scores[2 + count :]
    squares.a[rows], squares.b[rows] = a, b
    for feature, mixed in enumerate(ab):
        squares.first[feature, rows] = (b - mixed).square().sum(dim=1) / 2
        squares.total[feature, rows] = (a - mixed).square().sum(dim=1) / 2
        for other, mirrored in enumerate(ba):
            assert squares.pairs is not None
            squares.pairs[other, feature, rows] = (mirrored - mixed).square().sum(dim=1) / 2
