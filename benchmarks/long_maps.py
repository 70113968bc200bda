"""Maps of long texts that need the model's inside or every token: each row is one line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from layerlens import Target
from layerlens.analyzers.relevance.book import Bookkeeper
from layerlens.analyzers.relevance.plan import make_plan
from layerlens.analyzers.relevance.record import record
from layerlens.analyzers.relevance.sweep import sweep
from layerlens.model.borrowed import borrowed

from .long_prose import Text
from .token_methods import _rollout, _saliency
from .token_truth import Case, Model

Maps = dict[str, torch.Tensor]
"""By name: one number per token of the text, `(token,)`."""

Maker = Callable[[Model, Case, Target], Maps]


def _swept(rules: str) -> Maker:
    """Relevance and centered relevance by one sweep: x g, and (x - m) g with the mean m of the embeddings."""

    def maps(model: Model, case: Case, target: Target) -> Maps:
        with borrowed(model.model):
            recording = record(model.model, {"input_ids": case.ids[None]}, [target], rules=rules, forward=model.forward)
            (swept,) = sweep(recording, make_plan(recording), Bookkeeper.of(recording))
            (x,), (slope,) = [leaf.value.detach() for leaf in recording.scorer.leaves.values()], swept.ends
        whole, centered = x * slope, (x - x.mean(dim=1, keepdim=True)) * slope
        return {f"relevance, {rules}": whole[0].sum(-1), f"centered relevance, {rules}": centered[0].sum(-1)}

    return maps


def _one(name: str, method: Callable[[Model, Case, Target], torch.Tensor]) -> Maker:
    return lambda model, case, target: {name: method(model, case, target)}


@dataclasses.dataclass(frozen=True)
class Row:
    """Maps that are made together.

    Attributes:
        make: makes them.
        names: their names.
        passes: what one costs, in forward passes, a backward pass counting 2.
        scores: the scores they are made for.
        most: largest size of a text they are made for.
        all: whether they are made for every query, or for the first one only.
    """

    make: Maker
    names: tuple[str, ...]
    passes: float
    scores: tuple[str, ...] = ("contrast", "log p")
    most: int = 1000
    all: bool = True


IG = {"steps": 4, "max_steps": 4, "tolerance": math.inf}

ROWS = (
    Row(_swept("attn"), ("relevance, attn", "centered relevance, attn"), 3),
    Row(_swept("cp"), ("relevance, cp", "centered relevance, cp"), 3),
    Row(_one("gradient x input", _saliency("input_x_gradient")), ("gradient x input",), 3, ("contrast",), 400, False),
    Row(_one("attention rollout", _rollout), ("attention rollout",), 1, ("contrast",), 150, False),
    Row(_one("integrated gradients, 4", _saliency("integrated_gradients", **IG)), ("integrated gradients, 4",), 12,
        ("contrast",), 150, False),
)  # fmt: skip


def leave_one_out(text: Text, draws: int, seed: int) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """Contexts in which one token is exchanged for another of the context, and the place of each.

    It is `leave_one_out` of the tokens of the context, with draws that queries share.
    """
    count = len(text.ids)
    order = torch.rand(count, count - 1, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :draws]
    sources = order + (order >= torch.arange(count).unsqueeze(1)).long()
    places = torch.arange(count).repeat_interleave(sources.shape[1])
    changed = []
    for place, source in zip(places.tolist(), sources.flatten().tolist(), strict=True):
        ids = [*text.ids]
        ids[place] = text.ids[source]
        changed.append((*text.start, *ids))
    return changed, places
