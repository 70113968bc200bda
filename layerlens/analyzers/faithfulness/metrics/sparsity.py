"""Sparsity and complexity: how few places hold a map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerlens.errors import InputError
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.signatures import public

from .place_ranks import Map


@public
def sparsity(attribution: Map) -> torch.Tensor:
    """Return the Gini index of the absolute values, `(batch,)`: 0 when all are equal, towards 1 when one holds all.

    1 - 2 sum over k of |v|_(k) / ||v||_1 (d - k + 1/2) / d, with the values in ascending order (Hurley & Rickard 2009;
    of explanations: Chalasani et al. 2020). A map of zeros gets 0. It says nothing about truth: one pixel chosen at
    random is as sparse as a map can be.

    Raises:
        InputError: when it is not a map, or holds NaN or infinity.

    Example:
        >>> sparsity(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    size = _sizes(attribution).sort(dim=1).values
    count = size.shape[1]
    weight = (count - torch.arange(1, count + 1, dtype=size.dtype, device=size.device) + 0.5) / count
    total = size.sum(dim=1)
    share = (size * weight).sum(dim=1) / total.where(total > 0, torch.ones_like(total))
    return torch.where(total > 0, 1 - 2 * share, torch.zeros_like(total))


@public
def complexity(attribution: Map) -> torch.Tensor:
    """Return the entropy of the absolute values as shares of their sum, `(batch,)`: 0 when one value holds all.

    - sum over k of p_k log p_k, p_k = |v_k| / ||v||_1 (Bhatt et al. 2020, definition 3), at most log d, where all d are
      equal; a map of zeros gets that too. A low one is simple, and like `sparsity` it says nothing about truth.

    Raises:
        InputError: when it is not a map, or holds NaN or infinity.

    Example:
        >>> complexity(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    size = _sizes(attribution)
    total = size.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, size / total.where(total > 0, torch.ones_like(total)), 1 / size.shape[1])
    entropy: torch.Tensor = torch.special.entr(share)
    return entropy.sum(dim=1)


def _sizes(attribution: Map) -> torch.Tensor:
    """Return the absolute values of a map, `(batch, values)`, in float64; those of several inputs side by side.

    Raises:
        InputError: when it is not a map, or holds NaN or infinity.
    """
    values: Any = attribution.values if isinstance(attribution, Attribution) else attribution
    parts = values.values() if isinstance(values, Mapping) else [values]
    try:
        sizes = torch.cat([torch.as_tensor(part).detach().double().abs().flatten(1) for part in parts], dim=1)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"a map is an Attribution or an array (batch, ...), got {describe(attribution)}.") from error
    if not bool(sizes.isfinite().all()):
        raise InputError("the map holds NaN or infinite values.")
    return sizes
