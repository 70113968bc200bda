"""Sparsity: how few places hold a map."""

from __future__ import annotations

import torch

from layerlens.results import Attribution
from layerlens.signatures import public

from .place_ranks import Map


@public
def sparsity(attribution: Map) -> torch.Tensor:
    """Return the Gini index of the absolute values, `(batch,)`: 0 when all are equal, towards 1 when one holds all.

    1 - 2 sum over k of |v|_(k) / ||v||_1 (d - k + 1/2) / d, with the values in ascending order (Hurley & Rickard 2009;
    of explanations: Chalasani et al. 2020). A map of zeros gets 0. It says nothing about truth: one pixel chosen at
    random is as sparse as a map can be.

    Example:
        >>> sparsity(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    values = attribution.tensor if isinstance(attribution, Attribution) else torch.as_tensor(attribution)
    size = values.detach().double().abs().flatten(1).sort(dim=1).values
    count = size.shape[1]
    weight = (count - torch.arange(1, count + 1, dtype=size.dtype, device=size.device) + 0.5) / count
    total = size.sum(dim=1)
    share = (size * weight).sum(dim=1) / total.where(total > 0, torch.ones_like(total))
    return torch.where(total > 0, 1 - 2 * share, torch.zeros_like(total))
