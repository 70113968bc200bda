"""What was measured for each context, in a file each: ablations with the odds of the answer, and maps."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .answer_contexts import TEMPLATES, Context, contexts
from .answer_forward import Quick
from .answer_model import Prompt, maps

HELD_OUT, RANDOM, LENGTH = 32, 64, 14
MAPS = (
    "relevance, cp",
    "relevance, attn",
    "centered relevance, attn",
    "centered relevance, cp",
    "gradient x input",
    "attention",
    "integrated gradients",
)

Masks = np.ndarray
"""Which sentences an ablation keeps, `(ablation, sentence)`."""


@dataclasses.dataclass
class Measured:
    """One context with all that was measured.

    Attributes:
        number: its place in `contexts()`.
        kind: kind of the context.
        forced: whether the answer was given, else it is the model's own.
        text: the answer.
        wrong: whether the model's own answer lacks what a true one must contain; NaN where no one can say.
        tokens: the tokens of the answer.
        masks: ablations, `(ablation, sentence)`.
        odds: log-odds of every token of the answer, `(ablation, token)`.
        maps: by method, one number per sentence.
    """

    number: int
    kind: str
    forced: bool
    text: str
    wrong: float
    tokens: list[int]
    masks: Masks
    odds: np.ndarray
    maps: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write it; the file is whole or absent."""
        found = {f"map {name}": values for name, values in self.maps.items()}
        found |= {
            name: np.asarray(getattr(self, name)) for name in ("kind", "forced", "text", "wrong", "tokens", "masks")
        }
        with path.with_suffix(".part").open("wb") as file:
            np.savez_compressed(file, odds=self.odds.astype(np.float32), **found)  # type: ignore[arg-type]
        path.with_suffix(".part").rename(path)

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Read what `save` wrote."""
        with np.load(path) as file:
            found = {name.removeprefix("map "): file[name] for name in file.files if name.startswith("map ")}
            head: tuple[Any, ...] = str(file["kind"]), bool(file["forced"]), str(file["text"]), float(file["wrong"])
            body = file["tokens"].tolist(), file["masks"], file["odds"].astype(float)
        return cls(int(path.stem), *head, *body, found)

    def at(self, masks: Masks) -> np.ndarray:
        """Log-odds of the tokens at these ablations, `(ablation, token)`; KeyError where one was not measured."""
        rows = {mask.tobytes(): row for row, mask in enumerate(self.masks)}
        return self.odds[[rows[mask.tobytes()] for mask in masks]]


def drawn(number: int, sources: int) -> tuple[Masks, Masks]:
    """The random ablations of ContextCite's recipe, and the held-out ones: half of the sentences, by chance."""
    rng = np.random.default_rng([number, sources])
    return rng.random((RANDOM, sources)) < 0.5, rng.random((HELD_OUT, sources)) < 0.5


def basic(number: int, sources: int) -> Masks:
    """Everything that is measured before a method asks for its own ablations."""
    random, held = drawn(number, sources)
    ends = np.array([[True] * sources, [False] * sources])
    return np.concatenate([ends, ~np.eye(sources, dtype=bool), held, random])


def answer(prompt: Prompt, context: Context, number: int) -> tuple[bool, str, float, list[int]]:
    """Give the true answer or let the model answer, in turn: whether it is given, its text, if wrong, its tokens."""
    turn = number // len(TEMPLATES) if context.key else number
    tokens, text, wrong = prompt.read(context.answer), context.answer, np.nan
    if turn % 2:
        tokens = prompt.generate(LENGTH)
        lines = [k for k, token in enumerate(tokens) if "\n" in prompt.tokenizer.decode([token])]
        tokens = tokens[: lines[0]] if lines and lines[0] > 2 else tokens
        text = prompt.tokenizer.decode(tokens)
        wrong = float(context.key.lower() not in text.lower()) if context.key else np.nan
    return not turn % 2, text, wrong, tokens


def start(prompt: Prompt, context: Context, number: int) -> Measured:
    """A context of which nothing was measured yet."""
    head = answer(prompt, context, number)
    empty = np.zeros((0, len(prompt.pieces)), bool), np.zeros((0, len(head[-1])))
    return Measured(number, context.kind, *head, *empty, {})


def measure(folder: Path, wanted: Callable[[Measured], Masks] | None = None, part: int = 0, parts: int = 1) -> None:
    """Measure what is missing of each context; can be stopped at any time and resumed.

    Args:
        folder: where the files are.
        wanted: further ablations that a context needs, given what was measured; None to measure only what every
            context needs.
        part: which part of the contexts, of `parts`.
        parts: number of parts.
    """
    from tests.real_models import smollm2

    torch.set_num_threads(1)
    model, tokenizer = smollm2()
    model.requires_grad_(False)
    quick = Quick(model)
    folder.mkdir(parents=True, exist_ok=True)
    every = contexts()
    order = np.random.default_rng(0).permutation(len(every)).tolist()  # what is done early is a sample
    for place in range(part, len(order), parts):
        begin, number = time.time(), order[place]
        path = folder / f"{number:03}.npz"
        prompt = Prompt(model, tokenizer, every[number])
        one = Measured.load(path) if path.exists() else start(prompt, every[number], number)
        masks = basic(number, len(prompt.pieces))
        if wanted is not None:
            masks = np.concatenate([masks, wanted(one)])
        known = {mask.tobytes() for mask in one.masks}
        new = np.array([mask for mask in np.unique(masks, axis=0) if mask.tobytes() not in known])
        names = [name for name in MAPS if name not in one.maps]
        if len(new):
            one.masks = np.concatenate([one.masks, new])
            one.odds = np.concatenate([one.odds, prompt.odds(quick, new, one.tokens)])
        one.maps |= maps(prompt, one.tokens, names)
        if len(new) or names:
            one.save(path)
        line = f"{place + 1} of {len(order)}: context {number}, {one.kind}, {len(new)} ablations"
        print(f"{line}, {time.time() - begin:.0f} s", file=sys.stderr, flush=True)
