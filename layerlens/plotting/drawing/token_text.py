"""Tokens as a text that is read: which of them begin a word, and which of very many are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import Attribution
from layerlens.results.maps.token_spans import SPACES, join

from .. import style
from ..style import Array
from . import attribution_sample, text
from .attribution_sample import Sample
from .each_sample import Which

CONTEXT: Final = 3
"""Tokens that are kept on each side of a strong one."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One token of a text, or a run of tokens that are left out.

    Attributes:
        text: as it is read, without the markers of the tokenizer.
        value: value of the token, or the sum of a run.
        apart: whether a space comes before it.
        ends: whether a line ends after it.
        count: how many tokens are left out; 0 for a token.
        heading: whether it is the name of the input whose tokens follow.
        interval: low and high end; None where there is no error, or tokens are left out.
    """

    text: str
    value: float
    apart: bool
    ends: bool = False
    count: int = 0
    heading: bool = False
    interval: tuple[float, float] | None = None

    @property
    def unsettled(self) -> bool:
        """Whether the interval includes 0, or is unknown (NaN)."""
        return self.interval is not None and not (self.interval[0] > 0 or self.interval[1] < 0)


def read(
    attribution: Attribution, sample: Which, name: str | None, labels: Sequence[str] | None, interval: float | None
) -> Sample:
    """One sample of an attribution of tokens, with their texts and intervals.

    Raises:
        PlotError: when there is not one number per token.
    """
    shown = attribution_sample.read_texts(attribution, sample, name, grouped=labels is None, interval=interval)
    if shown.form != "tokens":
        change = "" if shown.form == "vector" else "values=result.values.sum(-1), inputs=None, "
        raise PlotError(
            f"a text shows one number per token, (batch, token); {shown.what} of one sample is {shown.form} of shape "
            f"{shown.values.shape}. Draw it with heatmap, or where these are tokens: dataclasses.replace(result, "
            f"{change}axes=('batch', 'token'))."
        )
    if labels is None:
        return shown
    if len(labels) != len(shown.values):
        raise PlotError(f"{len(labels)} labels for {len(shown.values)} tokens; give one per token.")
    return dataclasses.replace(shown, tokens=tuple(labels), as_read=False)


def pieces_of(shown: Sample, count: int | None) -> list[Piece]:
    """The pieces of a sample; of several inputs one after the other, each under its name.

    Raises:
        OptionError: when `count` is below 1.
    """
    tokens, kept = shown.tokens or (), _is_shown(shown.values, count)
    if not shown.parts:
        return pieces(tokens, shown.values, count, as_read=shown.as_read, widths=shown.widths)
    found: list[Piece] = []
    ends = [*(start for _, start in shown.parts[1:]), len(tokens)]
    for (name, start), end in zip(shown.parts, ends, strict=True):
        if found:
            found[-1] = dataclasses.replace(found[-1], ends=True)
        found.append(Piece(f"{name}:", 0.0, False, heading=True))
        own = pieces(
            tokens[start:end], shown.values[start:end], count, as_read=shown.as_read, kept=kept[start:end],
            widths=None if shown.widths is None else shown.widths[start:end],
        )  # fmt: skip
        found += [dataclasses.replace(own[0], apart=True), *own[1:]]
    return found


def pieces(
    tokens: Sequence[str],
    values: Array,
    count: int | None,
    *,
    as_read: bool = False,
    kept: Array | None = None,
    widths: Array | None = None,
) -> list[Piece]:
    """The tokens in their order; of more than `count`, runs of weak ones are left out and added up.

    Args:
        tokens: the tokenizer's names, or parts of a text.
        values: one for each.
        count: about how many are shown; None for all.
        as_read: whether the tokens are parts of a text with its spaces.
        kept: which tokens are shown; None for the strongest.
        widths: how far the interval of each value reaches below and above it, `(tokens, 2)`; None without an error.

    Raises:
        OptionError: when `count` is below 1.

    Example:
        >>> [(piece.text, piece.apart) for piece in pieces(["The", "Ġcap", "ital"], np.ones(3), None)]
        [('The', False), ('cap', True), ('ital', False)]
    """
    if count is not None and count < 1:
        raise OptionError(f"count={count!r} tokens; give 1 or more, or None for all.")
    split = any(token.startswith("##") for token in tokens)
    marked = not split and any(token.startswith(SPACES) and token.strip("".join(SPACES)) for token in tokens)
    found: list[Piece] = []
    start = 0
    kept = _is_shown(values, count) if kept is None else kept
    while start < len(tokens):
        stop = start
        while stop < len(tokens) and not kept[stop]:
            stop += 1
        if stop - start > 1:
            total, omitted = float(values[start:stop].sum()), stop - start
            found.append(Piece(f"… {omitted} tokens: {style.number(total)} …", total, bool(start), count=omitted))
            start = stop
            continue
        token, after_run = tokens[start], bool(found) and found[-1].count > 0
        begins = token.startswith(SPACES) if marked or as_read else not token.startswith("##")
        joined = token if as_read else join([token])
        if as_read and start and tokens[start - 1].endswith(SPACES):
            begins = True
        apart = bool(start) and ((begins and bool(joined.strip())) or after_run)
        value, ends = float(values[start]), None
        if widths is not None:
            ends = value - float(widths[start, 0]), value + float(widths[start, 1])
        shown = joined.strip(" ") or joined
        found.append(Piece(shown, value, apart, "\n" in joined, interval=ends))
        start += 1
    return found


def spelled(token: str) -> str:
    """A token as the name of a bar or of a row: the tokenizer's mark for a space is shown as one.

    Example:
        >>> spelled("Ġcapital"), spelled("##ing"), spelled("[CLS]")
        ('␣capital', '##ing', '[CLS]')
    """
    return text.visible(token if token.startswith("##") else join([token]))


def _is_shown(values: Array, count: int | None) -> Array:
    """Which tokens are shown: the strongest with their neighbors, about `count`."""
    if count is None or len(values) <= count:
        return np.ones(len(values), dtype=bool)
    kept = np.zeros(len(values), dtype=bool)
    around = min(CONTEXT, (count - 1) // 2)
    shown = 0
    for place in np.argsort(-np.abs(values), kind="stable").tolist():
        window = slice(max(place - around, 0), place + around + 1)
        shown += int((~kept[window]).sum())
        if shown > count:
            break
        kept[window] = True
    return kept
