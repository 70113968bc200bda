"""The methods that are compared on long texts: one number per part. A row is one line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from layerlens.analyzers.generation.source_regression import fit

from .long_truth import Measured, of

Values = Callable[[Measured, str], np.ndarray | None]
"""(text, score) -> one number per query and part, `(query, part)`; None where it was not measured."""


def mapped(name: str) -> Values:
    """A map that was stored."""
    return lambda text, score: text.maps.get(f"{score}, {name}")


def each(text: Measured, score: str) -> np.ndarray:
    """Leave-one-out by part: what the score loses with spaces instead of it."""
    return of(text.base, score)[:, None] - of(text.scores["each, space"], score).T


def regressed(count: int, prior: str | None = None) -> Values:
    """The regression of `explain_answer` on some random ablations, with a map as the prior or none."""

    def values(text: Measured, score: str) -> np.ndarray | None:
        expected = None if prior is None else text.maps.get(f"{score}, {prior}")
        if prior is not None and expected is None:
            return None
        kept = np.concatenate([np.ones((1, text.parts), dtype=bool), text.masks["random, deleted"][:count]])
        effects = np.concatenate([of(text.base, score)[None], of(text.scores["random, deleted"], score)[:count]])
        return fit(kept, effects, expected)[0]

    return values


def random(text: Measured, score: str) -> np.ndarray:
    """Numbers that know nothing."""
    return np.random.default_rng([text.seed, text.size]).normal(size=(text.queries, text.parts))


BEST = "centered relevance, attn"
PART = "leave_one_out, parts"
BOTH = "centered relevance + 12 ablations"

METHODS: dict[str, tuple[Values, Callable[[Measured], float]]] = {
    "leave_one_out, tokens": (mapped("leave_one_out"), lambda text: max(1, min(4, 200 // text.size)) * text.tokens),
    PART: (each, lambda text: text.parts + 1),
    BOTH: (regressed(12, BEST), lambda text: 15),
    "relevance, cp + 12 ablations": (regressed(12, "relevance, cp"), lambda text: 15),
    "12 ablations": (regressed(12), lambda text: 13),
    BEST: (mapped(BEST), lambda text: 3),
    "centered relevance, cp": (mapped("centered relevance, cp"), lambda text: 3),
    "relevance, attn": (mapped("relevance, attn"), lambda text: 3),
    "relevance, cp": (mapped("relevance, cp"), lambda text: 3),
    "gradient x input": (mapped("gradient x input"), lambda text: 3),
    "integrated gradients, 4 steps": (mapped("integrated gradients, 4"), lambda text: 12),
    "attention rollout": (mapped("attention rollout"), lambda text: 1),
    "control: later is more": (
        lambda text, score: np.tile(np.arange(text.parts, dtype=float), (text.queries, 1)), lambda text: 0),
    "control: longer is more": (
        lambda text, score: np.tile(text.lengths.astype(float), (text.queries, 1)), lambda text: 0),
    "control: random": (random, lambda text: 0),
}  # fmt: skip
"""By name: the values, and the passes of one query, a backward pass counting 2."""

CURVED = (PART, BOTH, BEST, "relevance, cp", "control: random")
"""Methods whose strongest parts are deleted, and kept alone."""


def strongest(values: np.ndarray) -> np.ndarray:
    """Which parts are kept without the strongest quarter, and with it alone, `(2, part)`."""
    top = np.argsort(-values, kind="stable")[: max(1, round(len(values) / 4))]
    only = np.zeros(len(values), dtype=bool)
    only[top] = True
    return np.stack([~only, only])


def quarters(text: Measured) -> np.ndarray:
    """The ablations that `CURVED` ask for, without repetition, `(ablation, part)`."""
    made = [METHODS[name][0](text, "contrast") for name in CURVED]
    return np.unique(np.concatenate([strongest(one) for maps in made if maps is not None for one in maps]), axis=0)
