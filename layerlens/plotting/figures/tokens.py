"""A text with its attribution: tokens as colored cells that are read line by line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import PlotError
from layerlens.results import Attribution
from layerlens.signatures import public

from .. import style
from ..drawing import intervals, text, token_text
from ..drawing.canvas import MARGIN, Canvas
from ..drawing.each_sample import Which, each_sample
from ..drawing.token_text import Piece
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

EDGE: Final = 0.02
"""Inches from the edge of a cell to its text."""
SPACE: Final = 0.045
"""Inches between words."""
LEFT_OUT: Final = "#E6E6E6"
"""The color of tokens that are left out."""


@dataclasses.dataclass(frozen=True)
class _Cell:
    piece: Piece
    shown: str
    x: float
    width: float
    line: int


@figure(Attribution, kind="tokens")
@public(renamed={"most": "count"})
@each_sample(lambda one: len(one.score), "labels")
def tokens(
    attribution: Attribution,
    sample: Which = None,
    *,
    count: int | None = 400,
    name: str | None = None,
    width: style.Width = "page",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 100.0,
    interval: float | None = 0.9,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw a text whose tokens are colored by their attribution.

    Spaces are drawn as they are read, and parts of a word touch; negative tokens are underlined, for print without
    color. Tokens that are parts of one character are one cell, with their sum. Of more than `count` tokens, runs of
    weak ones are left out: a gray cell says how many, and their sum. Of several inputs, such as the source and the
    answer of an encoder-decoder, the tokens of each follow its name, on one scale. Where values have an error, tokens
    whose interval includes 0 are pale, with a dotted edge.
    `tokens_html` draws the same for a web page, with each value under the pointer.

    Args:
        attribution: values `(batch, token)`, or `(batch, word)` from `.by_word()`.
        count: about how many tokens to show, the strongest with their neighbors; None for all.
        cmap: matplotlib colormap; None is RdBu_r for signed values and magma_r, pale for weak, for magnitudes.
        labels: texts of the tokens, if the attribution does not know them.

    Returns:
        The plot; `data` holds `"values"` of all tokens, and `"tokens"`, what is written in the cells.

    Raises:
        OptionError: if there is no such sample, input name or colormap, or `count` is below 1.
        PlotError: if there is not one number per token, all are zero, or the text does not fit into `ax`.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.5, -1.0, 2.0]])
        >>> one = Attribution(values, ("batch", "token"), True, "score", "class 1", "gradient", {}, torch.ones(1),
        ...                   tokens=[["un", "##real", "story"]])
        >>> tokens(one).data["tokens"]
        ['un', 'real', 'story']
    """
    shown = token_text.read(attribution, sample, name, labels, interval)
    limits = style.limits([shown.values], signed=shown.signed, clip=clip, vmax=vmax, what=shown.what)
    colors = style.colormap(cmap, signed=shown.signed, unsigned="magma_r")
    found = token_text.pieces_of(shown, count)
    with Canvas(width=width, ax=ax) as canvas:
        notes = [f"{len(shown.values)} tokens; gray: left out, with their sum"] * any(piece.count for piece in found)
        notes += intervals.note("dotted", [np.array([piece.unsettled for piece in found])], interval)
        notes += ["underlined: negative"] * any(piece.value < 0 for piece in found)
        canvas.title(title, shown.title, "; ".join(notes))
        axes = canvas.panel()
        pitch, room = 1.75 * style.TEXT / 72, _line_width(canvas, axes)
        cells = _cells(found, room)
        high = pitch * (cells[-1].line + 1)
        if ax is not None and high > (given := axes.bbox.height / canvas.dpi):
            raise PlotError(
                f"the text takes {high:.2f} inches of height at this width, and the axes given have {given:.2f}. Give "
                "larger axes, a smaller count=, or leave out ax=."
            )
        canvas.panels[-1].height = high
        _draw_cells(axes, cells, pitch, limits, colors)
        if colorbar:
            canvas.colorbar([axes], _mappable(limits, colors), limits, shown.units, "bottom")
        plot = canvas.finish(
            {"values": shown.values, "tokens": [cell.shown for cell in cells if not cell.piece.heading]}
        )
        # one unit of the axes is one inch, so that cells have the width of their text
        axes.set_xlim(0, axes.bbox.width / canvas.dpi)
        axes.set_ylim(high if ax is None else axes.bbox.height / canvas.dpi, 0)
        return plot


def _line_width(canvas: Canvas, axes: Axes) -> float:
    """The width of a line, in inches."""
    if canvas.given is not None:
        return float(axes.bbox.width) / canvas.dpi
    bar_numbers = 0.4 if canvas.width < 3 else 0.02  # the numbers of a colorbar as wide as the panel
    return canvas.width - 2 * MARGIN - bar_numbers


def _cells(found: Sequence[Piece], room: float) -> list[_Cell]:
    """The position of each token: lines are broken between words, and within those that are longer than a line."""
    words: list[list[tuple[Piece, str, float]]] = []
    for piece in found:
        shown = text.printable(piece.text) if piece.count or piece.heading else text.visible(piece.text)
        shown = text.shorten(shown, style.TEXT, room - 2 * EDGE)
        entry = (piece, shown, text.width(shown, style.TEXT) + 2 * EDGE)
        if words and not piece.apart:
            words[-1].append(entry)
        else:
            words.append([entry])
    cells: list[_Cell] = []
    x, line = 0.0, 0
    for word in words:
        whole = sum(across for *_, across in word)
        x += SPACE if x else 0.0
        if x and x + whole > room and (whole <= room or x + word[0][2] > room):
            x, line = 0.0, line + 1
        for piece, shown, across in word:
            if x and x + across > room:
                x, line = 0.0, line + 1
            cells.append(_Cell(piece, shown, x, across, line))
            x += across
            if piece.ends:
                x, line = 0.0, line + 1
    return cells


def _draw_cells(axes: Axes, cells: Sequence[_Cell], pitch: float, limits: style.Limits, colors: Colormap) -> None:
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_axis_off()
    high = 1.35 * style.TEXT / 72
    values = np.array([cell.piece.value for cell in cells])
    fills = colors(np.clip((values - limits.low) / (limits.high - limits.low), 0, 1))
    unsettled = np.array([cell.piece.unsettled for cell in cells])
    fills = intervals.pale(fills, unsettled)
    boxes, under = [], []
    for cell, fill in zip(cells, fills, strict=True):
        top = cell.line * pitch + (pitch - high) / 2
        if cell.piece.heading:
            fill[:3] = 1.0
        boxes.append(Rectangle((cell.x, top), cell.width, high))
        if cell.piece.count:
            fill[:3] = [int(LEFT_OUT[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        ink = text_color(fill)
        where = cell.x + EDGE, top + 0.74 * high
        artist = axes.text(*where, cell.shown, fontsize=style.TEXT, color=ink, va="baseline", ha="left")
        artist.set_in_layout(False)  # it lies inside of the panel once one unit is one inch
        if cell.piece.value < 0:
            under.append([(cell.x + EDGE, top + 0.93 * high), (cell.x + cell.width - EDGE, top + 0.93 * high)])
    axes.add_collection(PatchCollection(boxes, facecolors=fills, edgecolors="white", linewidths=0.4), autolim=False)
    edges = [box.get_bbox().corners()[[0, 1, 3, 2, 0]] for box, unsure in zip(boxes, unsettled, strict=True) if unsure]
    if edges:
        axes.add_collection(LineCollection(edges, colors=style.FAINT, linewidths=0.6, linestyles=":"), autolim=False)
    inks = [text_color(fill) for fill, value in zip(fills, values, strict=True) if value < 0]
    axes.add_collection(LineCollection(under, colors=inks, linewidths=0.6), autolim=False)


def text_color(fill: Sequence[float] | Array) -> str:
    """White on dark cells, ink on light ones."""
    return "white" if float(np.dot(fill[:3], (0.2126, 0.7152, 0.0722))) < 0.45 else style.INK


def _mappable(limits: style.Limits, colors: Colormap) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(limits.low, limits.high), colors)
