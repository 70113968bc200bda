"""From a map to one number per place, which the metrics of faithfulness rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from layerlens.analyzers.common.features.input_features import Features
from layerlens.analyzers.common.leaves.leaves import Leaf, place_axes
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError
from layerlens.model.trees import describe
from layerlens.results import Attribution

Map: TypeAlias = "Attribution | torch.Tensor | np.ndarray[Any, Any] | Mapping[str, torch.Tensor]"
"""A map: an attribution, or an array like the input, without its channels, or coarser than an image; by input where
the model has several."""


def by_place(scorer: Scorer, features: Features, attribution: Map) -> torch.Tensor:
    """Sum a map over the values of each feature, `(batch, features)`, in float64.

    Raises:
        InputError: when the map does not fit the input, or holds NaN or infinity.
    """
    values: Any = attribution.values if isinstance(attribution, Attribution) else attribution
    if not isinstance(values, Mapping):
        if len(scorer.leaves) > 1:
            raise InputError(f"the map is one array, but the model has inputs {', '.join(scorer.leaves)}: give a dict.")
        values = dict.fromkeys(scorer.leaves, values)
    missing = [leaf for leaf in scorer.leaves if leaf not in values]
    if missing:
        raise InputError(f"the map holds no values for input {missing[0]!r}; it holds {', '.join(map(str, values))}.")
    total = torch.zeros(len(scorer.rows), features.count + 1, dtype=torch.float64, device=scorer.rows.device)
    for name, leaf in scorer.leaves.items():
        try:
            given = torch.as_tensor(values[name])
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"a map is an Attribution or one array for the whole batch, got {describe(values[name])}. Of maps in a "
                "list make one: torch.stack(maps)."
            ) from error
        own = fitted(leaf, given).to(total)
        if not bool(own.isfinite().all()):
            raise InputError("the map holds NaN or infinite values, so its places cannot be ranked.")
        labels = features.labels[name]
        index = torch.where(labels < 0, features.count, labels).expand(own.shape)
        total.scatter_add_(1, index.reshape(len(index), -1), own.reshape(len(own), -1))
    return total[:, :-1]


def fitted(leaf: Leaf, values: torch.Tensor) -> torch.Tensor:
    """Give a map the axes of its leaf; axes that it leaves out have size 1.

    Raises:
        InputError: when it does not fit.
    """
    shape, values = leaf.value.shape, values.detach()
    if leaf.layer is not None:
        if values.shape == shape[:-1]:
            return values.unsqueeze(-1)
        if values.shape == shape:
            return values.sum(dim=-1, keepdim=True)
    elif values.shape == shape:
        places = [axis + 1 for axis in place_axes(leaf)] if len(shape) > 1 else []
        rest = [axis for axis in range(1, len(shape)) if axis not in places]
        return values.sum(dim=rest, keepdim=True) if rest else values
    elif len(shape) > 2:
        places = [axis + 1 for axis in place_axes(leaf)]
        (unit,) = [axis for axis in range(1, len(shape)) if axis not in places] or [1]
        if values.ndim == len(shape) and values.shape[unit] == 1:
            values = values.squeeze(unit)
        if values.ndim == len(shape) - 1 and len(values) == shape[0]:
            size = [shape[axis] for axis in places]
            if list(values.shape[1:]) != size and len(size) == 2:
                values = nn.functional.interpolate(values.unsqueeze(1).double(), size, mode="bilinear").squeeze(1)
            if list(values.shape[1:]) == size:
                return values.unsqueeze(unit)
    raise InputError(
        f"the map has shape {tuple(values.shape)}, which does not fit the input {describe(leaf.value)}: give one "
        "number per value, or per place (without the channels)."
    )


def ranks(values: torch.Tensor, seed: int = 0, own: torch.Tensor | None = None) -> torch.Tensor:
    """Rank each feature, `(batch, features)`: 0 is the largest value; equal ones are in random order.

    Args:
        values: a number for each feature, `(batch, features)`.
        seed: seed of that order, which is the same for samples with as many features.
        own: which features a sample has, `(batch, features)`; the others are last. None for all.
    """
    own = torch.ones_like(values, dtype=torch.bool) if own is None else own
    shuffled = torch.empty_like(values, dtype=torch.int64)
    for row, mine in zip(shuffled, own, strict=True):
        places = mine.nonzero().flatten()
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        row.copy_(torch.cat([places[order.to(places.device)], (~mine).nonzero().flatten()]))
    found = values.masked_fill(~own, -torch.inf).gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, found)
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
