"""Ridge regression of scores on masks, with a penalty that generalized cross-validation chooses."""

from __future__ import annotations

import torch

BLOCKS = 8
"""Groups of masks from whose fits the standard error is read."""

PENALTIES = torch.logspace(-6, 2, 33, dtype=torch.float64)
"""Relative to the largest eigenvalue of the masks' products."""


def ridge_map(masks: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The coefficients of a linear model of the scores, and their standard errors, both `(batch, places)`.

    Args:
        masks: `(n, places)`.
        scores: `(n, batch)`.
    """
    penalty = _penalty(masks, scores)
    values = _fit(masks, scores, penalty)
    group = torch.arange(len(masks)) // 2 % BLOCKS  # a mask and its complement stay together
    if len(masks) < 4 * BLOCKS:
        return values, torch.full_like(values, torch.nan)
    parts = torch.stack([_fit(masks[group != one], scores[group != one], penalty) for one in range(BLOCKS)])
    error = ((BLOCKS - 1) / BLOCKS * (parts - parts.mean(dim=0)).square().sum(dim=0)).sqrt()
    return values, error


def _fit(masks: torch.Tensor, scores: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """`(batch, places)`: M^T (M M^T + k I)^-1 S of centred masks and scores, with a penalty k for each sample."""
    design, answer = masks - masks.mean(dim=0), scores - scores.mean(dim=0)
    values, vectors = torch.linalg.eigh(design @ design.T)
    turned = vectors.T @ answer  # (n, batch)
    fitted: torch.Tensor = design.T @ (vectors @ (turned / (values.clamp_min(0)[:, None] + penalty)))
    return fitted.T


def _penalty(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The penalty of each sample, `(batch,)`, that minimizes n |residual|^2 / trace(I - H)^2."""
    design, answer = masks - masks.mean(dim=0), scores - scores.mean(dim=0)
    values, vectors = torch.linalg.eigh(design @ design.T)
    values = values.clamp_min(0)
    turned = (vectors.T @ answer).square()  # (n, batch)
    scale = values.max().clamp_min(1e-12)
    shrink = PENALTIES[:, None] * scale / (values + PENALTIES[:, None] * scale)  # (penalties, n), 1 - eigenvalue of H
    free = (shrink.sum(dim=1) - 1).clamp_min(1e-9)  # one is spent on the mean
    loss = (shrink.square() @ turned) / free[:, None] ** 2
    best: torch.Tensor = PENALTIES[loss.argmin(dim=0)] * scale
    return best
