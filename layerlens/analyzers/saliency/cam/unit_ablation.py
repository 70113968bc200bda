"""One run of the model for each unit of a layer, several at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from layerlens.analyzers.common.gradients import BatchSize, first_score
from layerlens.errors import OptionError, check_count
from layerlens.progress import track

from .layer_view import Seat, leaf_values

Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(samples of the batch, unit for each) -> scores."""


@dataclasses.dataclass(frozen=True)
class Trials:
    """How units are tried.

    Attributes:
        name: of the method.
        units: how many, those that vary most over the places; None for all.
        batch_size: runs at once.
    """

    name: str
    units: int | None
    batch_size: BatchSize

    def __post_init__(self) -> None:
        if self.units is not None:
            check_count("units", self.units, also="None")
        if self.batch_size != "auto":
            check_count("batch_size", self.batch_size, also="'auto'")

    def run(self, seat: Seat, scores: Scores, worth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The score of each trial and which were made, both `(batch, unit)`.

        Args:
            seat: where.
            scores: of samples of the batch with a unit each.
            worth: the units that can make a difference, `(batch, unit)`.
        """
        if self.units is not None:
            spread = seat.maps.flatten(2).var(dim=2, correction=0).masked_fill(~worth, -1.0)
            best = spread.topk(min(self.units, spread.shape[1]), dim=1).indices
            worth = worth & torch.zeros_like(worth).scatter(1, best, True)
        pairs = worth.nonzero()  # (n, 2): sample, unit
        found = torch.zeros(worth.shape, dtype=seat.maps.dtype, device=worth.device)
        if not len(pairs):
            return found, worth
        _, at_once = first_score(seat.scorer, leaf_values(seat.scorer), self.batch_size, gradient=False)
        with torch.no_grad():
            for start in track(range(0, len(pairs), at_once), self.name):
                rows, units = pairs[start : start + at_once].unbind(dim=1)
                found[rows, units] = scores(rows, units).to(found.dtype)
        if not bool(found.isfinite().all()):
            raise OptionError(f"{self.name}: the score is not finite with some units of layer {seat.where.path!r}.")
        return found, worth
