"""Tasks for circuits: pairs of texts of equal length, from templates, with an answer and a foil of one token each."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.token_prompts import CAPITALS, LISTS, NAMES, THINGS
from layerlens import Lens, contrast
from layerlens.inputs.inputs import Inputs

Row = tuple[str, str, str, str]
"""Clean text, corrupted text, answer, foil."""
EVENTS = ("war", "strike", "project", "siege", "trial", "journey", "reign", "famine", "revolt", "truce")


@dataclasses.dataclass
class Pairs:
    """Clean and corrupted texts of one length, and the tokens of answer and foil of each.

    Attributes:
        clean: texts that the model answers.
        corrupted: texts of as many tokens in which the cause of the answer is changed.
        words: `[answer, foil]` of each pair, as tokens.
    """

    clean: Inputs
    corrupted: Inputs
    words: list[list[int]]

    def __len__(self) -> int:
        return len(self.words)

    @property
    def target(self) -> Any:
        """The logit of the answer minus that of the foil at the last token, sample by sample."""
        return contrast([(-1, answer) for answer, _ in self.words], [(-1, foil) for _, foil in self.words])

    def rows(self, start: int, stop: int) -> Pairs:
        """Return some of the pairs."""
        kept = torch.arange(start, min(stop, len(self)))
        return Pairs(self.clean.rows(kept), self.corrupted.rows(kept), self.words[start:stop])

    def gaps(self, logits: torch.Tensor) -> torch.Tensor:
        """Return answer minus foil of logits at the last token, `(pairs,)`."""
        return logits.gather(1, torch.tensor(self.words)).diff(dim=1).squeeze(1).neg()


def tasks() -> dict[str, list[Row]]:
    """Return task -> its rows, shuffled."""
    places, things = ("store", "park", "school", "station"), ("drink", "book", "flower", "letter")
    found: dict[str, list[Row]] = {
        "names": [
            (f"When {a} and {b} went to the {place}, {b} gave a {thing} to",
             f"When {a} and {b} went to the {place}, {a} gave a {thing} to", f" {a}", f" {b}")
            for (a, b), place, thing in itertools.product([*NAMES, *[(b, a) for a, b in NAMES]], places, things)
        ],
        "greater-than": [
            (f"The {event} lasted from the year {century}{digit}{last} to the year {century}",
             f"The {event} lasted from the year {century}1{last} to the year {century}", f"{digit + 1}", f"{digit - 1}")
            for event, century, digit, last in itertools.product(EVENTS, (16, 17, 18), range(3, 9), (2, 5))
        ],
        "agreement": [
            (f"The {many} {where} the {near}", f"The {one} {where} the {near}", " are", " is")
            for (many, one), where, near in itertools.product(
                THINGS, ("near", "behind", "under", "on"), ("cabinet", "window", "chair", "table")
            )
        ],
        "capitals": [
            (f"The capital of {one} is the city of", f"The capital of {other} is the city of", f" {city}", f" {town}")
            for (one, city), (other, town) in itertools.permutations(CAPITALS, 2)
        ],
        "copying": list(_copying()),
    }  # fmt: skip
    for pairs in found.values():
        random.Random(0).shuffle(pairs)
    return found


def _copying() -> Iterator[Row]:
    """A list, and its beginning again; in the corrupted text the two words before the answer come from elsewhere."""
    lists = [words.split() for words in LISTS]
    for one, other in itertools.permutations(lists, 2):
        for order in itertools.islice(itertools.permutations(one), 0, 120, 10):
            a, b, c, d, e = order
            yield f"{a} {b} {c} {d} {e} {a} {b} {c}", f"{a} {b} {c} {d} {e} {a} {other[0]} {other[1]}", f" {d}", f" {e}"


def solved(lens: Lens, tokenizer: Any, task: list[Row], count: int) -> Pairs:
    """Return the first `count` pairs of the most common length whose answer beats the foil, more so in the clean text.

    Args:
        lens: the model.
        tokenizer: its tokenizer.
        task: rows of a task.
        count: the number of pairs.
    """
    tokens = [[tokenizer(text)["input_ids"] for text in row] for row in task]
    single = [
        (row, ids) for row, ids in zip(task, tokens, strict=True)
        if len(ids[0]) == len(ids[1]) and len(ids[2]) == len(ids[3]) == 1
    ]  # fmt: skip
    lengths = [len(ids[0]) for _, ids in single]
    usual = max(set(lengths), key=lengths.count)
    kept = [(row, ids) for row, ids in single if len(ids[0]) == usual][: 3 * count]
    every = Pairs(
        lens.inputs([row[0] for row, _ in kept]),
        lens.inputs([row[1] for row, _ in kept]),
        [[ids[2][0], ids[3][0]] for _, ids in kept],
    )
    with torch.no_grad():
        clean, corrupted = (every.gaps(lens.run(one).logits[:, -1]) for one in (every.clean, every.corrupted))
    places = ((clean > 0) & (clean > corrupted)).nonzero().flatten()[:count]
    words = [every.words[place] for place in places.tolist()]
    return Pairs(every.clean.rows(places), every.corrupted.rows(places), words)
