"""How well a linear readout of a layer separates groups, on samples that it was not fitted to."""

from __future__ import annotations

import torch

from .permutation import Shuffles

FOLDS, MOST_SHUFFLES, RIDGE = 5, 200, 0.1
MOST_SAMPLES = 2000
"""Samples drawn at most: more make the readout slow and hardly better."""


def separation(table: torch.Tensor, shuffles: Shuffles, folds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the area under the ROC curve, and what 95 % of the shuffled groups stay below, each `(contrasts,)`."""
    values = shuffles.within(table)
    areas = [_area_and_null(values, shuffles, contrast, folds) for contrast in range(shuffles.member.shape[1])]
    area, null = (torch.stack(parts) for parts in zip(*areas, strict=True))
    return area, null


def _area_and_null(
    values: torch.Tensor, shuffles: Shuffles, contrast: int, folds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return area and null of one contrast, on the samples that it is about.

    A ridge regression of membership on the units, less the means of the strata, in its dual form: one inverse for each
    fold serves all shuffles. The penalty is a tenth of the samples' mean square.
    """
    orders = torch.cat([torch.arange(len(values))[None], shuffles.orders[:MOST_SHUFFLES]])
    rows = shuffles.support[:, contrast].nonzero().flatten()
    if len(rows) > MOST_SAMPLES:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_SAMPLES]]
    wanted = shuffles.member[:, contrast][orders[:, rows]].T  # (samples, shuffles)
    values, folds = values[rows], folds[rows]
    values = values / values.norm().clamp_min(1e-300)
    gram = values @ values.T
    areas = []
    for fold in sorted(set(folds.tolist())):
        held, kept = folds == fold, folds != fold
        own = gram[kept][:, kept]
        penalty = RIDGE * own.diagonal().mean().clamp_min(1e-12)
        weights = torch.linalg.solve(own + penalty * torch.eye(len(own), dtype=own.dtype), wanted[kept])
        areas.append(_area(gram[held][:, kept] @ weights, wanted[held]))
    mean = torch.stack(areas).nanmean(dim=0)
    return mean[0], mean[1:].nanquantile(0.95)


def hold_out(groups: torch.Tensor, strata: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw a fold for each sample; groups, and strata within them, are spread evenly over the folds."""
    count = min(FOLDS, int(groups.bincount().min()))
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    order = order[strata[order].argsort(stable=True)]
    order = order[groups[order].argsort(stable=True)]
    folds = torch.empty(len(groups), dtype=torch.int64)
    folds[order] = torch.arange(len(groups)) % count
    return folds


def _area(scores: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
    """Return the area under the ROC curve of each column, by ranks; NaN where a side is empty.

    Membership is centered within strata: above 0 in the group.
    """
    columns = scores.T.contiguous()
    ordered = columns.sort(dim=1).values
    ranks = (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True) + 1) / 2
    above = (member.T > 0).double()
    count = above.sum(dim=1)
    return ((ranks * above).sum(dim=1) - count * (count + 1) / 2) / (count * (above.shape[1] - count))
