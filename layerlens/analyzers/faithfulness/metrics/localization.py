"""Localization: whether a map lies where the object is known to be."""

from __future__ import annotations

import torch

from layerlens.errors import InputError
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.signatures import public

from .place_ranks import Map


@public
def pointing_game(attribution: Map, masks: torch.Tensor) -> torch.Tensor:
    """Return 1 where the largest value of a map lies on the object, 0 where not, `(batch,)` (Zhang et al. 2016).

    Raises:
        InputError: when map and mask do not fit, or a mask is empty.

    Example:
        >>> pointing_game(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([[False, True, True]]))
        tensor([1.], dtype=torch.float64)
    """
    values, inside = _flat_values_and_masks(attribution, masks)
    return inside.gather(1, values.argmax(dim=1, keepdim=True)).squeeze(1).double()


@public
def relevance_mass(attribution: Map, masks: torch.Tensor) -> torch.Tensor:
    """Return the share of the positive values that lies on the object, `(batch,)` (Arras et al. 2022, eq. 1).

    A map without positive values gets 0.

    Raises:
        InputError: when map and mask do not fit, or a mask is empty.

    Example:
        >>> relevance_mass(torch.tensor([[1.0, 3.0, -5.0]]), torch.tensor([[False, True, True]]))
        tensor([0.7500], dtype=torch.float64)
    """
    values, inside = _flat_values_and_masks(attribution, masks)
    positive = values.clamp_min(0)
    total = positive.sum(dim=1)
    return torch.where(total > 0, (positive * inside).sum(dim=1) / total.where(total > 0, torch.ones_like(total)), 0.0)


@public
def relevance_rank(attribution: Map, masks: torch.Tensor) -> torch.Tensor:
    """Return the share on the object of the K largest values, K its size, `(batch,)` (Arras et al. 2022, eq. 2).

    Raises:
        InputError: when map and mask do not fit, or a mask is empty.

    Example:
        >>> relevance_rank(torch.tensor([[1.0, 3.0, -5.0]]), torch.tensor([[False, True, True]]))
        tensor([0.5000], dtype=torch.float64)
    """
    values, inside = _flat_values_and_masks(attribution, masks)
    order = values.argsort(dim=1, descending=True, stable=True)
    sorted_inside = inside.gather(1, order).double()
    size = inside.sum(dim=1)
    first = torch.arange(values.shape[1], device=values.device) < size.unsqueeze(1)
    return (sorted_inside * first).sum(dim=1) / size


def _flat_values_and_masks(attribution: Map, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of a map and the masks, checked, both as `(batch, places)`.

    Raises:
        InputError: when they do not fit, or a mask is empty.
    """
    values = attribution.tensor if isinstance(attribution, Attribution) else torch.as_tensor(attribution)
    values, inside = values.detach().double(), torch.as_tensor(masks).to(values.device) != 0
    if values.ndim == inside.ndim + 1 and values.shape[2:] == inside.shape[1:]:
        values = values.sum(dim=1)
    if values.shape != inside.shape:
        raise InputError(
            f"masks {describe(torch.as_tensor(masks))} do not fit the map {tuple(values.shape)}: give one for each "
            "sample, (batch, *places), without channels."
        )
    if not bool(values.isfinite().all()):
        raise InputError("the map holds NaN or infinite values.")
    values, inside = values.flatten(1), inside.flatten(1)
    empty = (~inside.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"the mask of sample {empty[0]} is empty: there is no object to find.")
    return values, inside
