"""Relevance of an input and of layers, with its ledger."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.model.tensors import ByTensor

from ..values.layer_profile import LayerProfile
from ..values.ledger import Ledger
from ..values.ranking import Ranking
from .attribution import Attribution


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Relevance(Attribution):
    """Relevance of every input, and of every layer's output that was asked for, with the ledger of the whole score.

    Attributes:
        ledger: where the score went: inputs + additive constants + what rules absorbed = score.
        layers: relevance at layer outputs, by layer; the tuple holds one tensor per call. A layer that returned several
            tensors has an entry for each that the score depends on, such as `"rnn/h_n"`; `"rnn"` is then another name
            of it if there is only one.
        profile: sum and absolute sum of relevance by layer, in order of execution.
        rules_used: operation -> the rule that it got.
        parameters: relevance that passes each parameter that was asked for, shaped like it, summed over the batch.
        bases: layer -> relevance of the features of its basis, where one was asked for: means over samples of sums over
            places, with `"constant"` and `"error"`. The checks are `"per place"`, `(items, batch, *places)`,
            `"per sample"`, `(items, batch)`, and `"layer"`, `(batch, *places)`, what the items sum to.
    """

    ledger: Ledger = dataclasses.field(kw_only=True)
    layers: dict[str, tuple[torch.Tensor, ...]] = dataclasses.field(kw_only=True, default_factory=dict)
    profile: LayerProfile | None = dataclasses.field(kw_only=True, default=None)
    rules_used: dict[str, str] = dataclasses.field(kw_only=True, default_factory=dict)
    parameters: dict[str, torch.Tensor] = dataclasses.field(kw_only=True, default_factory=dict)
    bases: dict[str, Ranking] = dataclasses.field(kw_only=True, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", ByTensor(self.layers))
