"""The prompt of an answer, its sources colored by what they are worth to a part of the answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch

from layerlens.errors import check_count
from layerlens.results import AnswerAttribution, Attribution

from .. import style
from ..drawing import text
from ..drawing.images import finite_array
from ..plot import Plot, figure
from ..style import Array
from ..words import words
from .tokens import tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(AnswerAttribution, kind="sources", usual=True)
def sources(
    found: AnswerAttribution,
    *,
    part: int | str | None = None,
    count: int | None = 300,
    width: style.Width = "page",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 100.0,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw the prompt with each source in the color of its value; every word has the color of its source.

    Text that belongs to no source is white. Of a prompt with more than `count` words the weakest sources and long texts
    around them are left out, as dots. `sources_html` draws every part of the answer for a web page.

    Args:
        found: an answer and its sources.
        part: number or text of the part of the answer; None for all of it, with the sum over its parts.
        count: about how many words to show; None for all.
        title: None for the part of the answer and the method, `""` for none.

    Returns:
        The plot; `data` holds `"values"` of the sources, and `"tokens"`, what is written in the cells.

    Raises:
        OptionError: if there is no such part, or no such colormap, or `count` is below 1.
        PlotError: if a value is not a finite number, all are zero, or the text does not fit into `ax`.

    Example:
        >>> one = AnswerAttribution("log p", ("0 Yes.",), ("0 It is.",), torch.ones(1, 1), ("part", "source"), "nats",
        ...                         True, "relevance", {}, prompt="It is. Is it?", answer="Yes.", spans=((0, 6),))
        >>> sources(one).data["tokens"]
        ['It', 'is.', 'Is', 'it?']
    """
    if count is not None:
        check_count("count", count)
    values = values_of(found, part)
    said = found.answer if part is None else found.parts[found.part_number(part)]
    shown, colored = _pieces(found, values, count)
    drawn = Attribution(
        torch.tensor([colored]), ("batch", "token"), found.signed, found.units, said, found.method, {},
        torch.ones(1), tokens=[shown], texts=[shown],
    )  # fmt: skip
    name = f"{text.printable(_short(said))}: {words(found.method)}" if title is None else title
    plot = tokens(
        drawn, 0, count=None, width=width, cmap=cmap, vmax=vmax, clip=clip, title=name, colorbar=colorbar, ax=ax
    )
    return Plot(plot.fig, plot.axes, {"values": values, "tokens": plot.data["tokens"]}, own=ax is None)


def values_of(found: AnswerAttribution, part: int | str | None) -> Array:
    """The value of each source for a part of the answer, or the sum over all parts, `(sources,)`.

    Raises:
        OptionError: if there is no such part.
        PlotError: if a value is not a finite number.
    """
    every = finite_array(found.values, "the attribution of an answer")
    row: Array = every.sum(axis=0) if part is None else every[found.part_number(part)]
    return row


def segments(found: AnswerAttribution) -> list[tuple[str, int | None]]:
    """The prompt as pieces in reading order, each with the number of its source; None for text that is in none."""
    pieces: list[tuple[str, int | None]] = []
    end = 0
    for number, (start, stop) in enumerate(found.spans):
        pieces += [(found.prompt[end:start], None)] * (start > end)
        pieces.append((found.prompt[start:stop], number))
        end = stop
    return [*pieces, *[(found.prompt[end:], None)] * (end < len(found.prompt))]


def _pieces(found: AnswerAttribution, values: Array, count: int | None) -> tuple[list[str], list[float]]:
    """The words of the prompt with the space before them, and the value of each; weak sources are dots."""
    parts = segments(found)
    sizes = [len(piece.split()) for piece, _ in parts]
    kept = set(range(len(values)))
    over = count is not None and sum(sizes) > count
    if count is not None and over:
        size_of = {number: size for (_, number), size in zip(parts, sizes, strict=True) if number is not None}
        kept, room = set(), count
        for number in np.argsort(-np.abs(values), kind="stable").tolist():
            room -= size_of[number]
            if room < 0 and kept:
                break
            kept.add(number)
    shown, colored, space = list[str](), list[float](), ""
    for (piece, number), size in zip(parts, sizes, strict=True):
        if (number is not None and number not in kept) or (number is None and over and size > 12):
            space = ""
            if shown[-1:] != [" …"]:
                shown, colored = [*shown, " …"], [*colored, 0.0]
            continue
        own = re.findall(r"\n|[^\S\n]*\S+", re.sub(r"\s*\n\s*", "\n", space + piece.rstrip()) if piece.strip() else "")
        space = piece[len(piece.rstrip()) :] if piece.strip() else space + piece
        shown += own
        colored += [0.0 if number is None else float(values[number])] * len(own)
    return shown, colored


def _short(text: str, most: int = 70) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
