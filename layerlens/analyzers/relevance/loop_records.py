"""What is known of relevance in a loop, and in each call of it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from layerlens.inputs.inputs import Inputs
from layerlens.results import Ledger


@dataclasses.dataclass(frozen=True)
class CallRelevance:
    """What one call of the layer did to the relevance of one target.

    Attributes:
        index: index of the call.
        values: relevance by argument, shaped like it; that of ids is summed over the features of their embedding.
        ledger: its own ledger, by row of the call.
        layers: layer inside it -> sum and sum of magnitudes of the relevance of its output, `(2,)`.
        sizes: layer inside it -> norm of its output, and of its difference to the next call's, `(2,)`.
        rules: settings of the rules.
        prompt: argument that holds the words; "" for none.
        words: what that argument held, (rows, token, ...).
        given: the arguments of the call.
        constants: relevance that left the loop here otherwise than by the words, `(batch,)`.
    """

    index: int
    values: dict[str, torch.Tensor]
    ledger: Ledger
    layers: dict[str, torch.Tensor]
    sizes: dict[str, torch.Tensor]
    rules: dict[str, Any]
    prompt: str
    words: torch.Tensor | None
    given: Inputs
    constants: torch.Tensor


class LoopRelevance(NamedTuple):
    """The relevance of the score of a loop.

    Attributes:
        score: `(batch,)`.
        target: what was scored.
        inputs: relevance by input of the loop, shaped like it; that of ids is summed over the features.
        ledger: the ledger of the loop; what left it in a call names the call.
        calls: what relevance did in each call, the first call first.
    """

    score: torch.Tensor
    target: str
    inputs: dict[str, torch.Tensor]
    ledger: Ledger
    calls: list[CallRelevance]
