"""Attention weights by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from ..errors import RecordError, suggestion
from ..nested import describe
from .base import Result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionWeights(Result):
    """Which tokens each token attends to, layer by layer and head by head.

    Attributes:
        model: name of the model's class.
        weights: layer (`layer#1` for its second call) -> `(batch, head, query, key)`, in order of execution; rows sum
            to 1, or to 0 where every key is masked. `(batch x head, query, key)` where the model folds them.
        how: layer -> how its attention was found.
    """

    model: str
    weights: dict[str, torch.Tensor]
    how: dict[str, str]

    def __getitem__(self, layer: str) -> torch.Tensor:
        if layer not in self.weights:
            raise RecordError(f"there is no attention in {layer!r}.{suggestion(layer, self.weights)}")
        return self.weights[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def entropy(self) -> dict[str, torch.Tensor]:
        """Layer -> mean entropy over queries in nats, shaped like the weights without their last two axes."""
        return {
            layer: -torch.xlogy(weights.float(), weights.float()).sum(-1).mean(-1)
            for layer, weights in self.weights.items()
        }

    def numpy(self) -> dict[str, np.ndarray]:
        """The weights as arrays; bfloat16 becomes float32."""
        return {
            layer: (weights.float() if weights.dtype == torch.bfloat16 else weights).detach().cpu().numpy()
            for layer, weights in self.weights.items()
        }

    def summary(self) -> list[tuple[str, str]]:
        """Model and the shape of each layer's weights."""
        rows = [("model", self.model), ("attentions", str(len(self)))]
        rows += [(layer, describe(weights)) for layer, weights in list(self.weights.items())[:4]]
        return rows if len(self) <= 4 else [*rows, ("...", f"{len(self) - 4} more")]
