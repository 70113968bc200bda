"""Attention weights by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from layerlens.errors import RecordError, suggestion
from layerlens.inputs.token_texts import labels
from layerlens.model.trees import as_array, describe

from ..base import Result
from .attribution import Tokens


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionWeights(Result):
    """Which tokens each token attends to, layer by layer and head by head.

    Attributes:
        model: name of the model's class.
        weights: layer (`layer#1` for its second call) -> `(batch, head, query, key)`, in order of execution; shares in
            the model's dtype. Rows sum to 1, or to 0 where every key is masked. Where the model attends inside of
            windows they count as samples, one after the other.
        how: layer -> how its attention was found.
        queries: layer -> positions of the queries, where a part of them was asked for; else empty.
        keys: layer -> positions of the keys, in the same way.
        heads: `"each"`, or `"mean"` where one head is the mean of all.
        tokens: the tokenizer's name of each input token, by sample, if it is known; by input where several have tokens.
        texts: what each token reads, in the same form, see `Attribution.texts`.
        inputs: layer -> the inputs that its queries and its keys lie along, None for neither: of a cross-attention the
            answer and the source. Empty where the model has one input.
    """

    model: str
    weights: dict[str, torch.Tensor]
    how: dict[str, str]
    queries: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    keys: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    heads: str = "each"
    tokens: Tokens | None = None
    texts: Tokens | None = None
    inputs: dict[str, tuple[str | None, str | None]] = dataclasses.field(default_factory=dict)

    def tokens_along(self, layer: str, sample: int) -> tuple[list[str] | None, list[str] | None]:
        """What the queries and the keys of a layer read, all of them; None where that is unknown.

        A token that is a part of a character is named by the character and a number.

        Args:
            layer: a layer with attention.
            sample: which of the batch.
        """
        several = isinstance(self.tokens, dict)
        if self.tokens is None or (several and layer not in self.inputs):
            return None, None
        names = self.inputs.get(layer, ("", ""))
        queries, keys = (None if name is None else self._read(name, sample) for name in names)
        return queries, keys

    def _read(self, name: str, sample: int) -> list[str] | None:
        tokens, texts = (one.get(name) if isinstance(one, dict) else one for one in (self.tokens, self.texts))
        if texts is not None:
            return labels(texts[sample])
        return None if tokens is None else list(tokens[sample])

    @property
    def layers(self) -> list[str]:
        """The layers that attend, in order of execution."""
        return list(self.weights)

    def __getitem__(self, layer: str) -> torch.Tensor:
        if layer not in self.weights:
            raise RecordError(f"there is no attention in {layer!r}.{suggestion(layer, self.weights)}")
        return self.weights[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def entropy(self) -> dict[str, torch.Tensor]:
        """Layer -> mean entropy over queries in nats, `(batch, head)`: 0 where each query looks at one key.

        Raises:
            RecordError: when a part of the keys is here only.
        """
        if self.keys:
            raise RecordError("the entropy of attention needs all keys; these weights hold a part of them.")
        wide = {
            layer: weights.to(torch.promote_types(weights.dtype, torch.float32))
            for layer, weights in self.weights.items()
        }
        return {layer: -torch.xlogy(weights, weights).sum(-1).mean(-1) for layer, weights in wide.items()}

    def numpy(self) -> dict[str, np.ndarray]:
        """The weights as arrays; bfloat16 becomes float32."""
        return {layer: as_array(weights) for layer, weights in self.weights.items()}

    def summary(self) -> list[tuple[str, str]]:
        """Model and the shape of each layer's weights."""
        rows = [("model", self.model), ("attentions", str(len(self)))]
        rows += [(layer, describe(weights)) for layer, weights in list(self.weights.items())[:4]]
        return rows if len(self) <= 4 else [*rows, ("...", f"{len(self) - 4} more")]
