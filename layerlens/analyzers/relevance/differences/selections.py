"""DeepLIFT's multipliers of operations that choose, when the two runs chose differently.

Then y - y' = a - b' for the value a chosen now and the b' chosen before, and both places have changed, by Da and Db.
The smallest multipliers that explain the change, m_a Da + m_b Db = y - y', are (Da, Db) (y - y') / (Da^2 + Db^2).
"""

from __future__ import annotations

import torch

from layerlens.analyzers.graph.operation import Gradients

from .multipliers import difference, gated, same_constants, signals, weighted_products
from .operation_calls import OperationCall
from .pairs import Pair


def _shares(da: torch.Tensor, db: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The multipliers of two places that explain dy; 1/2 each where neither has changed."""
    size = torch.maximum(da.abs(), db.abs())
    size = torch.where(size > 0, size, torch.ones_like(size))
    a, b = da / size, db / size
    total = a**2 + b**2
    total = torch.where(total > 0, total, torch.ones_like(total))
    halves = (da == 0) & (db == 0)
    shares = (torch.where(halves, torch.full_like(dy, 0.5), part / total * (dy / size)) for part in (a, b))
    return next(shares), next(shares)


def chosen(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """`where` and `masked_fill`: between two signals, or between a signal and a constant."""
    g = outer[0]
    if pair.calls is None or g is None or same_constants(*pair.calls):
        return None
    if len(pair.slots) < 2:
        return gated(pair, gradients, outer)
    call, other = pair.calls
    (a, a0), (b, b0) = signals(pair.calls)
    shares = _shares(difference(a, a0), difference(b, b0), difference(call.y, other.y))
    multipliers = dict(zip(pair.slots, shares, strict=True))
    return tuple(
        (g * multipliers[slot]).sum_to_size(native.shape).to(native.dtype)
        if slot in multipliers and native is not None
        else native
        for slot, native in enumerate(gradients)
    )


def indexed(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """Indexing, by indices that depend on the input."""
    if pair.calls is None or same_constants(*pair.calls):
        return None
    call, other = pair.calls
    dx = difference(call.x, other.x)
    return _weighted(pair, gradients, outer, call.repeat(dx), other.repeat(dx))


def ranked(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """Order statistics: the largest k, the k-th smallest, the median of each row, sorting."""
    if pair.calls is None:
        return None
    call, other = pair.calls
    dx = difference(call.x, other.x)
    return _weighted(pair, gradients, outer, _at(dx, call), _at(dx, other))


def _at(dx: torch.Tensor, call: OperationCall) -> torch.Tensor:
    places, axis = call.results[1], call.option("dim")
    if places.ndim == dx.ndim:
        return dx.gather(axis, places)
    return dx.gather(axis, places.unsqueeze(axis)).squeeze(axis)


def _weighted(
    pair: Pair, gradients: Gradients, outer: Gradients, da: torch.Tensor, db: torch.Tensor
) -> Gradients | None:
    if pair.calls is None or outer[0] is None:
        return None
    one, other = _shares(da, db, difference(pair.calls[0].y, pair.calls[1].y))
    rest = [None] * (len(outer) - 1)
    return weighted_products(pair, gradients, outer, [one, *rest], [other, *rest])
