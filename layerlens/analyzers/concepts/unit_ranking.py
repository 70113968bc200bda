"""The k samples with the largest value of each unit, kept while a data set goes by."""

from __future__ import annotations

import torch

from layerlens.errors import InputError
from layerlens.inputs.inputs import Inputs


class Ranking:
    """The samples with the largest value of each unit so far.

    Args:
        k: how many per unit.
        reduce: how a map becomes a value: `"max"`, `"sum"` or `"mean"` over its places.

    Attributes:
        values: `(unit, rank)` float64, largest first.
        index: of the samples, `(unit, rank)`; of equal values the earlier comes first.
        places: where each map is largest, `(unit, rank, axis)`.
        kept: the samples that are ranked for some unit, each a batch of one in main memory.
        count: how many samples went by.
    """

    def __init__(self, k: int, reduce: str) -> None:
        self.k, self.reduce = k, reduce
        self.values = torch.zeros(0, 0, dtype=torch.float64)
        self.index = torch.zeros(0, 0, dtype=torch.int64)
        self.places = torch.zeros(0, 0, 0, dtype=torch.int64)
        self.kept: dict[int, Inputs] = {}
        self.count = 0

    def add(self, start: int, inputs: Inputs, maps: torch.Tensor, units: tuple[int, ...]) -> None:
        """Take a batch in.

        Args:
            start: index of its first sample.
            inputs: the batch.
            maps: `(batch, unit, *places)`.
            units: the unit of each entry of axis 1, for errors.

        Raises:
            InputError: when a value is NaN.
        """
        values, places = summarize(maps, self.reduce)
        bad = values.isnan().nonzero()
        if len(bad):
            row, unit = bad[0].tolist()
            raise InputError(f"the value of unit {units[unit]} for sample {start + row} of the data is NaN.")
        index = torch.arange(start, start + len(values)).expand(values.shape[1], -1)
        if self.count:
            values = torch.cat([self.values, values.T], dim=1)
            index = torch.cat([self.index, index], dim=1)
            places = torch.cat([self.places, places.transpose(0, 1)], dim=1)
        else:
            values, places = values.T, places.transpose(0, 1)
        self.values, order = values.sort(dim=1, descending=True, stable=True)  # stable: earlier samples come first
        self.values, order = self.values[:, : self.k], order[:, : self.k]
        self.index = index.gather(1, order)
        self.places = places.gather(1, order.unsqueeze(-1).expand(-1, -1, places.shape[-1]))
        wanted = set(self.index.flatten().tolist())
        self.kept = {
            sample: self.kept[sample] if sample < start else _copy(inputs, sample - start) for sample in sorted(wanted)
        }
        self.count = start + inputs.batch


def summarize(maps: torch.Tensor, reduce: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and place of each map: `(batch, unit)` float64 and `(batch, unit, axis)`.

    Args:
        maps: `(batch, unit, *places)`.
        reduce: `"max"`, `"sum"` or `"mean"`.
    """
    shape = maps.shape[2:]
    flat = maps.detach().double().reshape(*maps.shape[:2], -1)
    largest = flat.max(dim=-1, keepdim=True).values
    positions = torch.arange(flat.shape[-1], device=flat.device)
    first = torch.where(flat == largest, positions, flat.shape[-1] - 1).amin(dim=-1).cpu()
    values = {"max": largest.squeeze(-1), "sum": flat.sum(dim=-1), "mean": flat.mean(dim=-1)}[reduce].cpu()
    if not shape:
        return values, torch.zeros(*values.shape, 0, dtype=torch.int64)
    return values, torch.stack(torch.unravel_index(first, shape), dim=-1)


def _copy(inputs: Inputs, row: int) -> Inputs:
    """One sample as a batch of one, in main memory and apart from its batch."""
    return inputs.rows(torch.tensor([row])).map(lambda tensor: tensor.detach().to("cpu", copy=True))
