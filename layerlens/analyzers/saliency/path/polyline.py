"""Gradients gathered along a line of straight pieces through given points."""

from __future__ import annotations

from collections.abc import Callable

import torch

from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients

Points = Callable[[int], Leaves]
"""From an index 0..steps to the point there: a tensor `(rows, ...)` by leaf."""


def along(scorer: Scorer, point: Points, steps: int, rows: torch.Tensor, batch: int) -> dict[str, torch.Tensor]:
    """The sum over pieces of (end - start) dS/dx at the middle of the piece, `(rows, ...)` by leaf.

    The middle makes it exact for a score that is quadratic along each piece.

    Args:
        scorer: of a borrowed model.
        point: the points of the line.
        steps: pieces of it.
        rows: the samples, `(n,)`.
        batch: rows in one pass.
    """
    total: dict[str, torch.Tensor] = {}
    together = max(1, batch // len(rows))
    last = point(0)
    for first in range(0, steps, together):
        count = min(together, steps - first)
        points = [last, *(point(first + k + 1) for k in range(count))]
        last = points[-1]
        middles, moves = {}, {}
        for name in last:
            stacked = torch.stack([one[name] for one in points]).to(_wide(last[name]))
            middles[name] = ((stacked[:-1] + stacked[1:]) / 2).flatten(0, 1).to(last[name].dtype)
            moves[name] = stacked.diff(dim=0)
        _, slopes = gradients(scorer, middles, rows.repeat(count))
        for name, slope in slopes.items():
            part = (slope.reshape(moves[name].shape) * moves[name]).sum(dim=0)
            total[name] = total[name] + part if name in total else part
    return total


def _wide(value: torch.Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
