"""Games with known Shapley values: products of columns, each shared equally by its columns."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.signatures import public

from .task import Task


class Products(nn.Module):
    """S_c(x) = sum over k of a_ck prod of x_i over i in T_k, for two classes.

    Args:
        members: which columns take part in each product, bool `(products, columns)`.
        weights: a, `(2, products)`.
    """

    members: torch.Tensor

    def __init__(self, members: torch.Tensor, weights: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("members", members)
        self.weights = nn.Parameter(weights)

    def products(self, x: torch.Tensor) -> torch.Tensor:
        """Return the products, `(batch, products)`."""
        return torch.where(self.members, x.unsqueeze(1), torch.ones_like(x).unsqueeze(1)).prod(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores `(batch, 2)`."""
        return self.products(x) @ self.weights.T


@public
def known_shapley(batch: int = 4, columns: int = 6, products: int = 8, *, seed: int = 0) -> Task:
    """Make a task of interactions whose Shapley values are known in closed form.

    Without one of its columns a product is 0, so it is a unanimity game, and Shapley (1953) gives each of its |T|
    columns an equal part: phi_i = sum over products with i of a prod x / |T|. Leaving one column out gives the whole
    product to each, and so too much in all.

    Args:
        batch: number of samples.
        columns: number of columns of the table.
        products: number of products in the model.
        seed: seed of weights and inputs.

    Example:
        >>> float(known_shapley().score("kernel_shap")["error"].max()) < 1e-9
        True
    """
    generator = torch.Generator().manual_seed(seed)
    members = torch.rand(products, columns, generator=generator) < 0.5
    members[torch.arange(products), torch.arange(products) % columns] = True
    weights = torch.randn(2, products, generator=generator, dtype=torch.float64)
    x = 0.5 + torch.rand(batch, columns, generator=generator, dtype=torch.float64)
    model = Products(members, weights).eval()
    target = torch.arange(batch) % 2
    parts = (model.products(x) * weights[target] / members.sum(dim=1)).unsqueeze(-1) * members
    return Task("known Shapley values", model, x, target, parts.sum(dim=1), None, "equal parts of unanimity games")
