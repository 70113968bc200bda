"""The page on long texts: tables with intervals over texts, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .answer_report import interval, lines
from .long_methods import BEST, CURVED, METHODS, strongest
from .long_truth import Measured, of
from .token_report import rank

COLUMNS = ("deleted", "other text", "single", "strongest", "fact", "without", "only")
FEWEST = 5
"""Texts of a size that a table needs: intervals over fewer mean nothing."""

NAMES = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M", "minilm": "all-MiniLM-L6-v2 (similarity)"}


def judged(text: Measured, values: np.ndarray, score: str, curves: bool) -> np.ndarray:
    """The numbers of a method on a text, the mean over its queries, in the order of `COLUMNS`.

    The rank correlation of the summed values of the parts kept with the score, over the held-out ablations of each
    fill; the rank correlation of the values with the losses without each part; whether the strongest part is the right
    one; whether it says the planted fact (NaN where none was planted); what part of the score is lost without the
    strongest quarter, and with it alone.
    """
    found = []
    for query, own in enumerate(values):
        if not np.isfinite(own).all():
            continue
        scores = {name: of(one[:, query], score) for name, one in text.scores.items()}
        base = of(text.base[query], score)
        row = [
            _rank(text.masks[f"held out, {fill}"] @ own, scores[f"held out, {fill}"])
            for fill in ("deleted", "other text")
        ]
        drops = base - scores["each, deleted"]
        row += [_rank(own, drops), float(own.argmax() == drops.argmax())]
        row.append(float(text.facts[query][own.argmax()]) if text.facts[query].any() else np.nan)
        if curves and score == "contrast":
            masks = text.masks["strongest, deleted"]
            places = [int((masks == kept).all(axis=1).argmax()) for kept in strongest(own)]
            row += [float(1 - scores["strongest, deleted"][place] / base) for place in places]
        found.append(row + [np.nan] * (len(COLUMNS) - len(row)))
    return np.mean(found, axis=0) if found else np.full(len(COLUMNS), np.nan)


def _rank(left: np.ndarray, right: np.ndarray) -> float:
    return rank(torch.from_numpy(np.asarray(left, dtype=float)), torch.from_numpy(np.asarray(right, dtype=float)))


def tables(texts: Sequence[Measured], score: str) -> dict[str, np.ndarray]:
    """By method, its numbers on every text, `(text, column)`; NaN where it was not measured."""
    found = {}
    for name, (values, _) in METHODS.items():
        made = [values(text, score) for text in texts]
        found[name] = np.array(
            [
                np.full(len(COLUMNS), np.nan) if one is None else judged(text, one, score, name in CURVED)
                for text, one in zip(texts, made, strict=True)
            ]
        )
    return {name: rows for name, rows in found.items() if np.isfinite(rows).any()}


def both(rows: np.ndarray) -> np.ndarray:
    """The linear datamodelling score of each text, the mean of both fills, `(text,)`."""
    return rows[:, :2].mean(axis=1)


def main_table(texts: Sequence[Measured], score: str) -> str:
    """Every method: passes, the score with its interval, and the paired difference to `BEST`."""
    found = tables(texts, score)
    shown = []
    for name, rows in found.items():
        passes = np.mean([METHODS[name][1](text) for text in texts])
        less = "-" if name == BEST else interval(both(rows) - both(found[BEST]))
        with np.errstate(invalid="ignore"):
            means = [_mean(rows[:, column]) for column in range(len(COLUMNS))]
        shown.append([name, f"{passes:.0f}", str(np.isfinite(rows[:, 0]).sum()), interval(both(rows)), *means, less])
    return lines(("method", "passes", "texts", "agreement", *COLUMNS, f"minus {BEST}"), shown)


def _mean(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean():.2f}" if len(known) else "-"


def page(measured: dict[str, Measured]) -> str:
    """The page."""
    parts = [HEAD]
    for model in NAMES:
        for size in sorted({text.size for text in measured.values()}):
            texts = [text for text in measured.values() if (text.model, text.size) == (model, size)]
            if len(texts) < FEWEST:
                continue
            queries, cut = sum(text.queries for text in texts), [text.parts for text in texts]
            seconds = np.mean([text.seconds["a forward pass"] for text in texts])
            parts.append(
                f"## {NAMES[model]}, texts of {size} tokens\n\n"
                f"{len(texts)} texts in {min(cut)} to {max(cut)} parts, {queries} queries; a forward pass takes "
                f"{seconds:.2g} s of a core.\n\n{main_table(texts, 'contrast')}"
            )
            if model != "minilm" and any("log p, relevance, attn" in text.maps for text in texts):
                parts.append(f"The log-probability of the answer:\n\n{main_table(texts, 'log p')}")
    return "\n\n".join(parts).rstrip()


HEAD = """# Which part of a long text a model needs

Made by `python -m benchmarks.long_texts report` from `benchmarks/long_texts.npz`, which `measure` and `pack` make.

Planted: prose from the language reference of Python and from scikit-learn, with facts about two to five people between
its sentences and the beginning of one of these facts again at the end. Prose: the same as it is, up to a place whose
next word the model knows from the context and not from the last 40 tokens. Only queries that the model answers rightly
are kept. The score is the logit of the answer less that of another one: that of another person, or what the model would
say without the context. For the encoder it is the similarity of three passages to the sentence that follows one of
them, less that to a sentence of another source. The context is cut into parts (single tokens of short texts, else words
or sentences); the value of a part is the sum over its tokens. The end of the text, which asks, always stays.

- agreement: the rank correlation of the summed values of the parts kept with the score, over random ablations that no
  method sees and that keep half of the parts (the linear datamodelling score), the mean of two fills: parts are
  deleted, or replaced by a run of another text;
- single: the rank correlation with what the score loses without each part alone (deleted); strongest: how often the
  strongest part is the right one; fact: how often it says the planted fact;
- without, only: the part of the score that is lost without the strongest quarter (higher is better), and with it alone
  (lower is better).

Brackets: 95 % bootstrap intervals over texts, paired for differences. A forward pass costs 1, a backward pass 2."""
