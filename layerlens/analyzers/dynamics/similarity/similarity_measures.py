"""How similar two tables of the same samples are: measures as inner products of vectors made of Gram matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch

from layerlens.analyzers.common.statistics import jackknife_error

GROUPS = 10
"""Groups of samples that the jackknife leaves out in turn."""

LEAST = 4
"""Samples that the unbiased estimator needs (Song et al. 2012, eq. 5)."""

Measure = Literal["cka", "rsa", "neighbors"]


def gram(rows: torch.Tensor) -> torch.Tensor:
    """Return the inner products of the samples less their mean, `(n, n)`, float64 on the main processor."""
    wide = rows.double()
    wide = wide - wide.mean(dim=0)
    products: torch.Tensor = (wide @ wide.T).cpu()
    return products


def unbiased(grams: torch.Tensor) -> torch.Tensor:
    """U-center Gram matrices: their inner products over n(n - 3) are the unbiased HSIC (Song et al. 2012, eq. 5).

    The diagonal is left out, and rows, columns and the whole are centered so that each row sums to zero without it
    (Székely & Rizzo 2014, eq. 2.3).
    """
    n = grams.shape[-1]
    k = grams.clone()
    k.diagonal(dim1=-2, dim2=-1).zero_()
    rows = k.sum(dim=-1, keepdim=True)
    k = k - (rows + rows.mT) / (n - 2) + rows.sum(dim=-2, keepdim=True) / ((n - 1) * (n - 2))
    k.diagonal(dim1=-2, dim2=-1).zero_()
    vectors: torch.Tensor = k.flatten(-2) / (n * (n - 3)) ** 0.5
    return vectors


def biased(grams: torch.Tensor) -> torch.Tensor:
    """Center Gram matrices: their inner products over (n - 1)^2 are the biased HSIC (Gretton et al. 2005, eq. 9)."""
    rows = grams.mean(dim=-1, keepdim=True)
    k = grams - rows - rows.mT + rows.mean(dim=-2, keepdim=True)
    return k.flatten(-2) / (grams.shape[-1] - 1)


def distances(grams: torch.Tensor) -> torch.Tensor:
    """Return the distances of all pairs of samples less their mean (Kriegeskorte et al. 2008)."""
    n = grams.shape[-1]
    squares = grams.diagonal(dim1=-2, dim2=-1)
    d = (squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * grams).clamp_min(0).sqrt()
    above = torch.triu_indices(n, n, 1)
    pairs = d[..., above[0], above[1]]
    vectors: torch.Tensor = (pairs - pairs.mean(dim=-1, keepdim=True)) / pairs.shape[-1] ** 0.5
    return vectors


def nearest(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mark each sample's `count` nearest others (Huh et al. 2024, mutual nearest neighbors)."""

    def marks(grams: torch.Tensor) -> torch.Tensor:
        n = grams.shape[-1]
        squares = grams.diagonal(dim1=-2, dim2=-1)
        d = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * grams
        d.diagonal(dim1=-2, dim2=-1).fill_(float("inf"))
        k = min(count, n - 2)
        near = d.topk(k, dim=-1, largest=False).indices
        found: torch.Tensor = torch.zeros_like(d).scatter_(-1, near, 1.0).flatten(-2) / (n * k) ** 0.5
        return found

    return marks


@dataclasses.dataclass
class Sums:
    """Inner products of two sets of tables, added up over minibatches, also without each group of samples.

    Attributes:
        vectors: vectors of a measure, from Gram matrices `(layers, n, n)` to `(layers, m)`.
        permutations: number of random orders of the samples of the second set.
        generator: draws orders and groups.
    """

    vectors: Callable[[torch.Tensor], torch.Tensor]
    permutations: int
    generator: torch.Generator
    samples: int = 0
    batches: int = 0

    def __post_init__(self) -> None:
        self.products: dict[str, torch.Tensor] = {}

    def add(self, first: torch.Tensor, second: torch.Tensor | None) -> None:
        """Add a minibatch: Gram matrices `(layers, n, n)` of both; None for the second when it is the first."""
        n = first.shape[-1]
        a = self.vectors(first)
        b = a if second is None else self.vectors(second)
        self._sum("whole", a, b, n)
        for group, left in enumerate(self._groups(n)):
            if len(left) == n:
                self._sum(f"without {group}", a, b, n)
            elif len(left):
                part = first[:, left][:, :, left]
                c = self.vectors(part)
                d = c if second is None else self.vectors(second[:, left][:, :, left])
                self._sum(f"without {group}", c, d, len(left))
        base = first if second is None else second
        for time in range(self.permutations):
            order = torch.randperm(n, generator=self.generator)
            self._sum(f"permuted {time}", a, self.vectors(base[:, order][:, :, order]), n)
        self.samples += n
        self.batches += 1

    def _groups(self, n: int) -> list[torch.Tensor]:
        """Return the samples that stay when each group is left out; of the smallest minibatch all or none."""
        if n == LEAST:
            return [torch.arange(0 if group == self.batches % GROUPS else n) for group in range(GROUPS)]
        # samples are dealt out in turn, so that all groups of a long stream grow evenly
        place = (torch.randperm(n, generator=self.generator) + self.samples) % GROUPS
        groups = [(place != group).nonzero().squeeze(1) for group in range(GROUPS)]
        return [left if len(left) >= LEAST else torch.arange(n) for left in groups]

    def _sum(self, what: str, a: torch.Tensor, b: torch.Tensor, n: int) -> None:
        parts = {"ab": a @ b.T, "aa": a.square().sum(dim=1), "bb": b.square().sum(dim=1)}
        for name, part in parts.items():
            key = f"{what} {name}"
            self.products[key] = self.products.get(key, torch.zeros_like(part)) + n * part

    def ratio(self, what: str = "whole") -> torch.Tensor:
        """Return the similarity: sums divided once, at the end (Nguyen et al. 2021, eq. 2 and 3). NaN for no spread."""
        spread = torch.outer(self.products[f"{what} aa"], self.products[f"{what} bb"]).sqrt()
        return self.products[f"{what} ab"] / spread.masked_fill(spread == 0, torch.nan)

    def error(self) -> torch.Tensor | None:
        """Return the standard error by the jackknife over groups of samples (Efron & Tibshirani 1993, eq. 11.5)."""
        parts = [self.ratio(f"without {group}") for group in range(GROUPS) if f"without {group} ab" in self.products]
        if self.samples < 2 * LEAST:
            return None
        return jackknife_error(torch.stack(parts))

    def null(self) -> torch.Tensor | None:
        """Return the similarity to permuted rows, `(permutations, layers, layers)`."""
        if not self.permutations:
            return None
        return torch.stack([self.ratio(f"permuted {time}") for time in range(self.permutations)])
