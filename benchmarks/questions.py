"""Do cheap maps of a picture and a question agree with leaving parts of both out?

python -m benchmarks.questions measure     (about 5 minutes on one core; can be stopped and taken up again)
python -m benchmarks.questions report > benchmarks/questions.md

The model is `layerlens.demo.questions`: two digits side by side, three questions. Each of 100 pictures that training
has not seen is asked one of them. The reference leaves out the 32 patches of 2 x 2 pixels, each replaced by the mean of
the picture, and the three or four words, each replaced by the others; and both by zero.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from layerlens import Lens
from layerlens.demo.questions import QUESTIONS, encode, pairs, question_net
from layerlens.progress import track

from .answer_report import interval, lines

STORED = Path(__file__).parent / "questions.npz"
COUNT, WORDS = 100, 4
SIDE = 2
"""Pixels of the side of a patch."""

PATCHES = torch.arange(4 * 8).reshape(1, 1, 4, 8).repeat_interleave(SIDE, 2).repeat_interleave(SIDE, 3)
LEFT_OUT = {"method": "leave_one_out", "features": {"picture": PATCHES}}
PASSES = {"features": {"picture": PATCHES}, "permutations": 26}
ZERO = "leave_one_out, by zero"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "leave_one_out": ("32 + 6", LEFT_OUT),
    "leave_one_out, patches blurred": ("32 + 6", LEFT_OUT | {"fill": {"picture": "blur"}}),
    ZERO: ("32 + 3", LEFT_OUT | {"fill": {"picture": "zero", "question": "zero"}}),
    "shapley_sampling, 26 orders": ("910", {"method": "shapley_sampling"} | PASSES),
    "rise": ("400", {"method": "rise", "cells": {"picture": 4}}),
    "integrated_gradients": ("50 gradients or more", {"method": "integrated_gradients"}),
    "relevance (cp)": ("1 gradient", {"method": "relevance", "rules": "cp"}),
    "relevance (attn)": ("1 gradient", {"method": "relevance", "rules": "attn"}),
    "centered_relevance (cp)": ("1 gradient", {"method": "centered_relevance", "rules": "cp"}),
    "centered_relevance (attn)": ("1 gradient", {"method": "centered_relevance", "rules": "attn"}),
    "input_x_gradient": ("1 gradient", {"method": "input_x_gradient"}),
}
"""Name of a row -> passes per question, and how it is called."""

SUMMED = ("relevance", "centered", "integrated", "input_x")
"""Methods with a number for each pixel, of which a patch has the sum; the others have one for each patch."""


def measure(path: Path = STORED) -> None:
    """Store the values of every method, `(questions, 32 patches + 4 words)`, one kind of question after the other."""
    found = dict(np.load(path)) if path.exists() else {}
    lens = Lens(question_net()[0])
    pictures, shown = pairs(COUNT, seed=5)
    for name, (_, how) in METHODS.items():
        values = found.get(name, np.full((COUNT, PATCHES.max() + 1 + WORDS), np.nan, dtype=np.float32))
        for kind, question in enumerate(track(QUESTIONS, name)):
            if np.isnan(values[kind, 0]):
                own = _values(lens, pictures[kind::3], question, name, how)
                values[kind::3, : own.shape[1]] = own
                found[name] = values
                np.savez_compressed(path, **found)
    found["digits"] = shown.numpy()
    np.savez_compressed(path, **found)


def _values(lens: Lens, pictures: Tensor, question: str, name: str, how: dict[str, Any]) -> np.ndarray:
    """The values of the patches and the words, `(pictures, parts)`."""
    asked = encode(question).expand(len(pictures), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # integrated gradients may miss their tolerance
        values = lens.saliency({"picture": pictures, "question": asked}, **how).values
    patches = values["picture"][:, 0].unflatten(2, (8, SIDE)).unflatten(1, (4, SIDE)).mean(dim=(2, 4)).flatten(1)
    patches = patches * SIDE**2 if name.startswith(SUMMED) else patches
    return torch.cat([patches, values["question"]], dim=1).numpy()


def correlations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The rank correlation of each question, over the parts that it has."""
    pairs_of_rows = zip(one, two, strict=True)
    return np.array([spearmanr(a[~np.isnan(a)], b[~np.isnan(a)]).statistic for a, b in pairs_of_rows])


def on_the_digit(values: np.ndarray) -> np.ndarray:
    """Whether the strongest patch is on the digit asked for, for the questions about the left and the right digit."""
    kind = np.arange(COUNT) % 3
    strongest = values[:, :32].argmax(axis=1) % 8 // 4
    right: np.ndarray = (strongest == kind)[kind < 2]
    return right.astype(float)


def report(path: Path = STORED) -> str:
    """The table, in Markdown."""
    found = dict(np.load(path))
    references = {name: found[name] for name in ("leave_one_out", ZERO)}
    found["random"] = np.random.default_rng(0).normal(size=references[ZERO].shape)

    def against(name: str, reference: str, parts: int | None = None) -> str:
        one, two = found[reference][:, :parts], found[name][:, :parts]
        return "1" if name == reference else interval(correlations(one, two))

    rows = [
        [
            f"`{name}`",
            passes,
            *(against(name, reference, parts) for reference in references for parts in (None, 32)),
            f"{on_the_digit(found[name]).mean():.2f}",
        ]
        for name, passes in [*((name, passes) for name, (passes, _) in METHODS.items()), ("random", "0")]
    ]
    head = ["method", "passes", "by the mean: all", "patches", "by zero: all", "patches", "on the digit asked for"]
    return f"""# A picture and a question: do maps agree with leaving parts out?

`python -m benchmarks.questions` made this page; it says in its first lines how. Rank correlation of the values of the
35 or 36 parts of a question with those of `leave_one_out`, patches and words in one ranking (all), and of the 32
patches alone; the mean over {COUNT} questions and its 95 % interval, by bootstrap. Patches are replaced by the mean of
the picture and words by each other; or both by zero, the baseline that most other methods have by default. The last
column: how often the strongest patch is on the digit asked for, over the {len(on_the_digit(found[ZERO]))} questions
that name a side.

{lines(head, rows)}
"""


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    elif sys.argv[1:] == ["report"]:
        print(report(), end="")
    else:
        sys.exit(__doc__)
