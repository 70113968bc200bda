"""Additive models: every column adds its own part to the score, and that part is the right value."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.signatures import public

from .task import Task


class Additive(nn.Module):
    """S_c(x) = sum over i of a_ci x_i + b_ci sin(x_i) + c_ci x_i^3 / 6, for two classes."""

    def __init__(self, columns: int, seed: int) -> None:
        super().__init__()
        weights = torch.randn(3, 2, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.weights = nn.Parameter(weights)

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        """Return what each column adds to each class, `(batch, class, column)`; 0 where x is 0."""
        shapes = torch.stack([x, x.sin(), x**3 / 6])
        return torch.einsum("kbi,kci->bci", shapes, self.weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores `(batch, 2)`."""
        return self.parts(x).sum(dim=-1)


@public
def additive_model(batch: int = 4, columns: int = 8, *, seed: int = 0) -> Task:
    """Make a task whose model is a sum of curved functions of single columns.

    Leaving a column out, Shapley values and integrated gradients from zero all give the column's own part; gradients
    and gradient x input do not.

    Args:
        batch: number of samples.
        columns: number of columns of the table.
        seed: seed of weights and inputs.

    Example:
        >>> task = additive_model()
        >>> float(task.score("feature_ablation")["error"].max()) < 1e-9
        True
    """
    model = Additive(columns, seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, columns, generator=generator, dtype=torch.float64)
    target = torch.arange(batch) % 2
    values = model.parts(x).detach()[torch.arange(batch), target]
    return Task("additive model", model, x, target, values, None, "each column adds its part, 0 at the baseline 0")
