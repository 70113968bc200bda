"""Texts that say in words and numbers what a figure shows, for those who cannot see it or want to quote it."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerlens.plotting import Plot
from layerlens.plotting.drawing.attribution_sample import Sample as Shown
from layerlens.plotting.words import words
from layerlens.results import LayerProfile, Ledger

PRESENT = str.maketrans({"Ġ": "␣", "▁": "␣", "Ċ": "↵", "\n": "↵", "\t": "⇥", " ": "␣"})
"""White space of tokens, as tokenizers mark it, made visible."""


def of_map(shown: Shown, how: str) -> str:
    """Describe a map of one sample, with the name of its method.

    Args:
        shown: the sample as drawn.
        how: name of the method.
    """
    text = of_values(shown)
    return f"{words(how)}, in units of {shown.units}: {text[0].lower()}{text[1:]}."


def of_values(shown: Shown) -> str:
    """Describe the sums of a map, its strongest places and its spread, without a full stop."""
    values = np.asarray(shown.values, dtype=np.float64)
    if shown.signed:
        sums = f"Values add up to {values.sum():.4g} ({values[values > 0].sum():.4g} for, {abs(values[values < 0].sum()):.4g} against)"  # noqa: E501
    else:
        sums = f"Magnitudes add up to {values.sum():.4g}"
    sizes = np.sort(np.abs(values).ravel())[::-1]
    total = sizes.sum()
    half = int(np.searchsorted(sizes.cumsum(), total / 2)) + 1 if total else 0
    spread = f"half of the size lies in {half} of {values.size} places" if total else "all are zero"
    best = ", ".join(f"{_place(shown, index)} ({values[index]:.3g})" for index in _strongest(values, 3))
    return f"{sums}; strongest at {best}; {spread}"


def _strongest(values: Any, count: int) -> list[tuple[int, ...]]:
    flat = np.argsort(-np.abs(values), axis=None, kind="stable")[:count]
    return [tuple(int(k) for k in np.unravel_index(index, values.shape)) for index in flat]


def _place(shown: Shown, index: tuple[int, ...]) -> str:
    if shown.form == "image":
        return f"row {index[0]}, column {index[1]}"
    if shown.form == "series":
        return f"{shown.axes[0]} {index[0]}, {shown.axes[1]} {index[1]}"
    if shown.form == "tokens" and shown.tokens is not None:
        return f"token {index[0]} '{shown.tokens[index[0]].translate(PRESENT)}'"
    return f"feature {index[0]}"


def of_ledger(ledger: Ledger, plot: Plot) -> str:
    """Describe where the score of one sample went, and the layers that took most of it.

    Args:
        ledger: ledger of one sample.
        plot: its figure, whose rows are named; the first is the score.
    """
    totals = (plot.data["additive"] + plot.data["absorbed"] + plot.data["whole"]).tolist()
    rows = zip(plot.data["name"].tolist(), totals, strict=True)
    layers = sorted(list(rows)[1:], key=lambda row: -abs(row[1]))[:4]
    most = ", ".join(f"{name} {total:.3g}" for name, total in layers)
    return (
        f"Bars by layer, from the score to the input: score {float(ledger.score[0]):.4g} = inputs "
        f"{float(ledger.inputs[0]):.4g} + additive constants {float(ledger.additive[0]):.4g} + absorbed by rules "
        f"{float(ledger.absorbed[0]):.4g} + residual {float(ledger.residual[0]):.1e}. Largest: {most}."
    )


def of_profile(profile: LayerProfile) -> str:
    """Describe the ends, the largest and the smallest layers of a profile."""
    ranked = profile.ranked()
    values = dict(ranked)
    first, last = profile.layers[0], profile.layers[-1]
    largest = ", ".join(f"{name} ({value:.3g})" for name, value in ranked[:3])
    null = ""
    if profile.null is not None:
        own = profile.values.reshape(len(profile), -1)[:, 0].double()
        chance = profile.null.reshape(len(profile), -1)[:, 0].double()
        null = f" {int((own > chance).sum())} of {len(profile)} lie above their null."
    return (
        f"{profile.quantity} of {len(profile)} layers: from {values[first]:.3g} at {first} to {values[last]:.3g} at "
        f"{last}; largest: {largest}; smallest: {ranked[-1][0]} ({ranked[-1][1]:.3g}).{null}"
    )
