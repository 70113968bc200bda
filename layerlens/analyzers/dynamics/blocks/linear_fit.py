"""How much of an output no linear map of the input explains, on samples held out."""

from __future__ import annotations

import torch

PENALTIES = torch.cat([10.0 ** torch.arange(-14, 3, dtype=torch.float64), torch.tensor([torch.inf]).double()])
"""Of the ridge, as shares of the largest eigenvalue of X'X; the last one predicts the mean."""

FOLDS = 5


def folds_of(samples: torch.Tensor, seed: int) -> torch.Tensor:
    """The fold of each row; rows of one sample share one. At most `FOLDS`, at least two."""
    names, place = torch.unique(samples, return_inverse=True)
    count = min(FOLDS, len(names))
    fold = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)) % count
    return fold[place]


def unexplained(x: torch.Tensor, outputs: list[torch.Tensor], folds: torch.Tensor) -> list[torch.Tensor]:
    """1 - R^2 of the best linear map with an offset, on each fold held out; `(folds,)` for each of the outputs.

    A ridge regression on all other folds; its penalty is the one that is best on those, each held out in turn.

    Args:
        x: `(rows, features)`.
        outputs: each `(rows, numbers)`.
        folds: of the rows.
    """
    count = int(folds.max()) + 1
    errors = torch.zeros(len(outputs), count, len(PENALTIES), dtype=torch.float64)
    totals = torch.zeros(len(outputs), count, dtype=torch.float64)
    for fold in range(count):
        train, test = folds != fold, folds == fold
        middle = x[train].mean(dim=0)
        known, new = x[train] - middle, x[test] - middle
        wide = known.shape[1] > len(known)
        values, vectors = torch.linalg.eigh(known @ known.T if wide else known.T @ known)
        values = values.clamp_min(0)
        top = values.amax().clamp_min(torch.finfo(values.dtype).tiny)
        # with K = X X' = U e U': prediction = new X' U (e + penalty)^-1 U' y, and the same by features
        basis = new @ (known.T @ vectors) if wide else new @ vectors
        for place, output in enumerate(outputs):
            mean = output[train].mean(dim=0)
            answers = output[train] - mean
            parts = vectors.T @ (answers if wide else known.T @ answers)
            truth = output[test] - mean
            totals[place, fold] = truth.square().sum()
            for k, penalty in enumerate(PENALTIES.tolist()):
                weight = torch.zeros_like(values) if penalty == float("inf") else 1 / (values + penalty * top)
                guess = (basis * weight) @ parts
                errors[place, fold, k] = (truth - guess).square().sum()
    found = []
    for place in range(len(outputs)):
        shares = torch.full((count,), torch.nan, dtype=torch.float64)
        for fold in range(count):
            others = errors[place, torch.arange(count) != fold].sum(dim=0)
            if float(totals[place, fold]):
                shares[fold] = errors[place, fold, int(others.argmin())] / totals[place, fold]
        found.append(shares)
    return found
