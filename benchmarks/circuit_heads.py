"""Induction heads of SmolLM2: found by contribution on repeated random tokens, confirmed by taking them out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from layerlens import Lens
from layerlens.inputs.inputs import as_inputs

from .circuit_curves import Curves
from .circuit_subjects import language
from .circuit_tasks import Pairs
from .circuit_ways import Subject, contributions

LENGTH, AGAIN = 16, 8
"""Random tokens of a text, and how many of them follow again."""
TAKEN = (5, 10, 20)
"""Numbers of heads that are taken out."""
DRAWS = 10
"""Of random heads."""


def repeated(lens: Lens, count: int) -> Pairs:
    """Return random tokens whose beginning follows again; in the corrupted text, other tokens come first.

    The answer is the token that followed the last one before, and the foil another token of the text.

    Args:
        lens: the model.
        count: the number of texts.
    """
    model: Any = lens.model
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randint(1000, model.config.vocab_size, (count, LENGTH), generator=generator)

    first, other = draw(), draw()
    words = torch.stack([first[:, AGAIN], first[:, AGAIN + 4]], dim=1).tolist()
    ids = [torch.cat([one, first[:, :AGAIN]], dim=1) for one in (first, other)]
    clean, corrupted = (as_inputs({"input_ids": one, "attention_mask": torch.ones_like(one)}) for one in ids)
    return Pairs(clean, corrupted, words)


def looks_back(subject: Subject) -> dict[str, float]:
    """Return head -> the attention of the last token to what followed it before (Olsson et al. 2022)."""
    model: Any = subject.lens.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = model(**subject.clean.tensors(), use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    found = {}
    for layer, weights in enumerate(maps):
        for head, value in enumerate(weights[:, :, -1, AGAIN].mean(dim=0).tolist()):
            found[f"model.layers.{layer}.self_attn head {head}"] = value
    return found


def measure_heads(lens: Lens, count: int, half: int) -> dict[str, np.ndarray]:
    """Return what is left of the score of each held-out text without the best heads of each way, and the ways' values.

    Args:
        lens: the model.
        count: the number of texts.
        half: how many of them heads are found on.
    """
    pairs = repeated(lens, count)
    subject, other = (language(lens, pairs.rows(*ends)) for ends in ((half, count), (0, half)))
    table = contributions(other, "attn")
    heads = [name for name in other.names if " head " in name]
    ways = {
        "contributions, direct": dict(zip(table.items, table.values("direct").tolist(), strict=True)),
        "contributions, difference": dict(zip(table.items, table.values("difference").tolist(), strict=True)),
        "attention pattern": looks_back(other),
    }
    curves, found = Curves(subject, "resample", other), dict[str, np.ndarray]()
    every = set(subject.names)

    def left(taken: list[str]) -> np.ndarray:
        scores = subject.scores_with(every - set(taken), curves.values)
        return (scores / curves.whole.mean()).double().numpy()

    for way, values in ways.items():
        best = sorted(heads, key=lambda name: -values[name])
        found[f"{way}/values"] = np.array([values[name] for name in heads])
        found[f"{way}/left"] = np.stack([left(best[:count]) for count in TAKEN])
        print(f"    {way}: {found[f'{way}/left'].mean(axis=1)} {best[:6]}", flush=True)
    top = sorted(heads, key=lambda name: -ways["contributions, difference"][name])
    generator = torch.Generator().manual_seed(0)
    random = [
        [left([heads[place] for place in torch.randperm(len(heads), generator=generator)[:size]]) for _ in range(DRAWS)]
        for size in TAKEN
    ]
    found["random heads/left"] = np.stack([np.mean(one, axis=0) for one in random])
    found["names"] = np.array(top[: max(TAKEN)])
    return found
