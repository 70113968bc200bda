"""One layer's cloud of samples, measured with its errors and its null."""

from __future__ import annotations

import dataclasses

import torch

from .spectrum import (
    GROUPS,
    compact,
    effective_rank,
    gaussian,
    jackknife,
    participation_ratio,
    separation,
    spread,
    two_nearest,
    two_nn,
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The numbers of one layer, `(series,)` each.

    Attributes:
        values: of each series.
        error: standard errors.
        null: what chance gives.
        features: how many the layer has.
        largest: the unit of the largest spread, and its share.
        twins: share of samples that equal another.
    """

    values: torch.Tensor
    error: torch.Tensor
    null: torch.Tensor
    features: int
    largest: tuple[int, float]
    twins: float


@dataclasses.dataclass(frozen=True)
class Shape:
    """Measures one layer; the labels are `(samples,)`, or None."""

    labels: torch.Tensor | None
    shuffles: int
    seed: int

    def __call__(self, rows: torch.Tensor) -> Measured:
        """Measure the rows of a layer, `(samples, features)`."""
        n, features = rows.shape
        generator = torch.Generator().manual_seed(self.seed)
        groups = torch.randperm(n, generator=generator) % GROUPS
        values, near = _spectra(rows), two_nearest(compact(rows))
        dimension, fit = two_nn(near)
        without = torch.stack([_spectra(rows[groups != group]) for group in range(min(GROUPS, n))])
        error = torch.cat([jackknife(without), fit.reshape(1)])
        cloud = gaussian(n, features, self.seed)
        values_of_cloud = spread(cloud)
        ratio, rank = participation_ratio(values_of_cloud), effective_rank(values_of_cloud)
        null = torch.stack([ratio, ratio, rank, two_nn(two_nearest(cloud))[0]])
        values = torch.cat([values, dimension.reshape(1)])
        if self.labels is not None:
            classes = self.labels
            chance = torch.stack([classes[torch.randperm(n, generator=generator)] for _ in range(self.shuffles)])
            parts = [separation(rows[groups != group], classes[groups != group]) for group in range(min(GROUPS, n))]
            values = torch.cat([values, separation(rows, classes).reshape(1)])
            error = torch.cat([error, jackknife(torch.stack(parts)).reshape(1)])
            null = torch.cat([null, separation(rows, chance).mean().reshape(1)])
        variance = rows.var(dim=0)
        total = float(variance.sum())
        largest = (int(variance.argmax()), float(variance.max()) / total if total else float("nan"))
        return Measured(values, error, null, features, largest, float((near[:, 0] == 0).double().mean()))


def _spectra(rows: torch.Tensor) -> torch.Tensor:
    """Participation ratio, that with units alike, and effective rank, `(3,)`."""
    rows = rows - rows.mean(dim=0)
    scale = rows.square().mean(dim=0).sqrt()
    moving = scale > torch.finfo(torch.float32).eps * scale.max()
    values, alike = spread(rows), spread(rows[:, moving] / scale[moving])
    return torch.stack([participation_ratio(values), participation_ratio(alike), effective_rank(values)])
