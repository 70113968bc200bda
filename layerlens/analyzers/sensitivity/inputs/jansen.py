"""Jansen's estimators of Sobol indices, from squared differences of rows of two designs."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass
class Squares:
    """Half squared differences of the scores of rows, summed over outputs; all float64.

    A and B are independent designs, `AB_j` is A with feature j of B, `BA_i` is B with feature i of A.

    Attributes:
        a: scores of the rows of A, `(rows, outputs)`.
        b: scores of the rows of B, `(rows, outputs)`.
        first: |f(B) - f(AB_j)|^2 / 2, `(features, rows)`: what is left when only feature j is shared.
        total: |f(A) - f(AB_j)|^2 / 2, `(features, rows)`: what feature j alone changes.
        pairs: |f(BA_i) - f(AB_j)|^2 / 2, `(features, features, rows)`: the rows share features i and j; None when not
            asked for.
    """

    a: torch.Tensor
    b: torch.Tensor
    first: torch.Tensor
    total: torch.Tensor
    pairs: torch.Tensor | None = None

    def variance(self, weights: torch.Tensor) -> torch.Tensor:
        """Var f over A and B with weights of rows, `(draws, rows)` that sum to 1; summed over outputs, `(draws,)`."""
        middle = (self.a + self.b).mean(dim=0) / 2
        a, b = self.a - middle, self.b - middle
        squares = (a.square().sum(dim=1) + b.square().sum(dim=1)) / 2
        return weights @ squares - (weights @ ((a + b) / 2)).square().sum(dim=1)

    def indices(self, weights: torch.Tensor) -> torch.Tensor:
        """First-order and total indices, `(draws, features, 2)`; NaN where the score does not vary.

        S_j = 1 - E[(f(B) - f(AB_j))^2] / (2 Var f), S_Tj = E[(f(A) - f(AB_j))^2] / (2 Var f): Jansen 1999, in the form
        of Saltelli et al. 2010, table 2, (c) and (f).
        """
        variance = self.variance(weights).unsqueeze(1)  # (draws, 1)
        return torch.stack([1 - weights @ self.first.T / variance, weights @ self.total.T / variance], dim=2)

    def second(self, weights: torch.Tensor) -> torch.Tensor:
        """Second-order indices S_ij, `(draws, features, features)`, zero on the diagonal.

        The rows of BA_i and AB_j share features i and j and nothing else, so that half their mean square is what the
        pair leaves of the variance; S_i and S_j are taken from what the pair explains.
        """
        assert self.pairs is not None
        closed = 1 - torch.einsum("rn,ijn->rij", weights, self.pairs) / self.variance(weights)[:, None, None]
        closed = (closed + closed.transpose(1, 2)) / 2
        first = self.indices(weights)[:, :, 0]
        second = closed - first.unsqueeze(2) - first.unsqueeze(1)
        return second * (1 - torch.eye(second.shape[1], dtype=second.dtype))

    def dummy(self) -> Squares:
        """The same of a feature that the model does not read: AB_j scores as A, at no cost."""
        first = (self.b - self.a).square().sum(dim=1, keepdim=True).T / 2
        return Squares(self.a, self.b, first, torch.zeros_like(first))


def resamples(rows: int, draws: int, seed: int) -> torch.Tensor:
    """Weights of rows drawn with replacement, `(draws, rows)`; each sums to 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(rows, (draws, rows), generator=generator)
    counts = torch.zeros(draws, rows, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(draws, rows, dtype=torch.float64))
    return counts / rows
