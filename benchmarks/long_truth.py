"""What a long text loses without some of its parts: the ablations, and everything that is stored of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerlens.files import whole

from .long_prose import Text

Masks = np.ndarray
"""Which parts an ablation keeps, `(ablation, part)`."""

SETS: dict[str, tuple[str, Callable[[int, int, int], Masks]]] = {
    "each, deleted": ("deleted", lambda parts, size, seed: ~np.eye(parts, dtype=bool)),
    "held out, deleted": ("deleted", lambda parts, size, seed: half(parts, HELD_OUT, seed, 0)),
    "held out, other text": ("other text", lambda parts, size, seed: half(parts, HELD_OUT // 2, seed, 1)),
    "each, space": ("space", lambda parts, size, seed: ~np.eye(parts, dtype=bool)),
    "random, deleted": ("deleted", lambda parts, size, seed: half(parts, RANDOM, seed, 2)),
}
"""By name: what takes the place of removed parts, and which parts are kept. The first three are the truth, which no
method sees; methods may use the others."""

HELD_OUT, RANDOM = 16, 12
"""Random ablations that measure, half as many by the second fill, and those that methods may use."""


def half(parts: int, count: int, seed: int, stream: int) -> Masks:
    """Random ablations, each part is kept by a chance of 1/2."""
    return np.random.default_rng([seed, parts, stream]).random((count, parts)) < 0.5


def rows(text: Text, masks: Masks, fill: str, pool: Sequence[int], space: int) -> list[tuple[int, ...]]:
    """The tokens of each ablation, without a query.

    Args:
        text: the text.
        masks: which parts are kept.
        fill: what replaces the others: nothing (`"deleted"`), as many spaces (`"space"`), or a run as long of
            another text (`"other text"`).
        pool: tokens of that other text.
        space: token of a space.
    """
    pieces = text.pieces
    starts = np.cumsum([0, *map(len, pieces)])
    others = {
        "deleted": [() for _ in pieces],
        "space": [(space,) * len(piece) for piece in pieces],
        "other text": [tuple(pool[start : start + len(piece)]) for start, piece in zip(starts, pieces, strict=False)],
    }[fill]
    return [
        (*text.start, *(t for keep, a, b in zip(mask, pieces, others, strict=True) for t in (a if keep else b)))
        for mask in masks
    ]


def of(values: np.ndarray, score: str) -> np.ndarray:
    """The score from logits of answer and foil and log-sum-exp on the last axis: `"contrast"` or `"log p"`."""
    return values[..., 0] - values[..., 1 if score == "contrast" else 2]


@dataclasses.dataclass
class Measured:
    """A text and all that was measured on it.

    Attributes:
        model: name of the model.
        kind: `"planted"` or `"prose"`.
        source: where the prose is from.
        size: about how many tokens it has.
        seed: seed of the text.
        lengths: tokens of each part, `(part,)`.
        facts: which parts say the answer, `(query, part)`.
        base: scores of the whole text, `(query, 3)`.
        masks: by set of ablations, `(ablation, part)`.
        scores: by set of ablations, `(ablation, query, 3)`.
        maps: by `"score, method"`, `(query, part)`; NaN for queries that it was not made for.
        seconds: by method, for a query on one core; `"a forward pass"` among them.
    """

    model: str
    kind: str
    source: str
    size: int
    seed: int
    lengths: np.ndarray
    facts: np.ndarray
    base: np.ndarray
    masks: dict[str, Masks] = dataclasses.field(default_factory=dict)
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    maps: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens of the context."""
        return int(self.lengths.sum())

    @property
    def queries(self) -> int:
        """Number of queries."""
        return len(self.base)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays by name."""
        found: dict[str, np.ndarray] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                found |= {f"{field.name}/{name}": np.asarray(one) for name, one in value.items()}
            else:
                found[field.name] = np.asarray(value)
        return {name: one.astype(np.float32) if one.dtype == float else one for name, one in found.items()}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Measured:
        """The text of `arrays()`."""
        plain: dict[str, Any] = {}
        for name, one in arrays.items():
            field, _, key = name.partition("/")
            value = one.astype(float) if one.dtype == np.float32 else one
            value = value.item() if value.ndim == 0 else value
            if key:
                plain.setdefault(field, {})[key] = value
            else:
                plain[field] = value
        return cls(**plain)


def save(texts: dict[str, Measured], path: Path) -> None:
    """Write texts to one file."""
    found = {f"{name}/{key}": one for name, text in texts.items() for key, one in text.arrays().items()}
    with whole(path) as file:
        np.savez_compressed(file, **found)  # type: ignore[arg-type]


def load(path: Path) -> dict[str, Measured]:
    """Read what `save` wrote."""
    by_text: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            name, _, rest = key.partition("/")
            by_text.setdefault(name, {})[rest] = file[key]
    return {name: Measured.of(arrays) for name, arrays in by_text.items()}
