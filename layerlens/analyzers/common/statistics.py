"""Rank correlation, the jackknife, ranges, and equality up to rounding."""

from __future__ import annotations

import torch


def spearman(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute Spearman's rank correlation of each row, `(batch,)`, ties at their mean rank; 0 where a row is constant.

    Args:
        first: values, `(batch, n)`.
        second: other values, `(batch, n)`.
    """
    return pearson(*(torch.stack([average_ranks(row) for row in rows]) for rows in (first, second)))


def pearson(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute Pearson's correlation of each row of `(batch, n)`, `(batch,)`; 0 where a row is constant."""
    a, b = (rows.double() - rows.double().mean(dim=1, keepdim=True) for rows in (first, second))
    norm = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return torch.where(norm > 0, (a * b).sum(dim=1) / norm.where(norm > 0, torch.ones_like(norm)), 0.0)


def jackknife_error(parts: torch.Tensor) -> torch.Tensor:
    """Return the standard error from values without each group, along the first axis (Efron & Tibshirani 1993)."""
    return ((parts - parts.mean(dim=0)).square().sum(dim=0) * (len(parts) - 1) / len(parts)).sqrt()


def error_and_skewness(square: torch.Tensor, cube: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the standard error and the skewness of a mean over draws, from their second and third central moment.

    Args:
        square: mean of (y - mean y)^2 over the draws.
        cube: mean of (y - mean y)^3.
        count: number of draws n; the skewness of the mean is that of the draws over the root of n.
    """
    error = (square.clamp_min(0) / max(1, count - 1)).sqrt()
    tiny = torch.finfo(square.dtype).tiny
    skewness = torch.where(square > tiny, cube / square.clamp_min(tiny) ** 1.5, 0.0) / count**0.5
    return error, skewness.clamp(-1, 1)  # the skewness of n numbers is below the root of n


def sample_range(value: torch.Tensor) -> torch.Tensor:
    """Return the range, max - min, of each sample, `(batch, 1, ...)`."""
    flat = value.reshape(len(value), -1)
    size: torch.Tensor = flat.amax(dim=1) - flat.amin(dim=1)
    return size.reshape(-1, *[1] * (value.ndim - 1))


def nearly_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding differences of another batch size."""
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    scale = float(first.abs().max()) if first.numel() else 0.0
    if not scale < float("inf"):
        return bool(torch.equal(first.nan_to_num(), second.nan_to_num()))
    return bool(((first - second).abs() <= min(0.05, torch.finfo(first.dtype).eps ** 0.5) * scale).all())


def average_ranks(row: torch.Tensor) -> torch.Tensor:
    """Return the ranks of numbers `(n,)` from 1, the smallest; equal ones share the mean of theirs."""
    _, index, counts = torch.unique(row.detach().double(), return_inverse=True, return_counts=True)
    mean: torch.Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return mean[index]
