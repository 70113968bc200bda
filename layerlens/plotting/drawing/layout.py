"""Where everything on a board goes: text broken to fit, what surrounds panels measured, panels placed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from layerlens.errors import PlotError

from .. import style
from . import text
from .colorbar import LONGEST, Side, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .board import Board

MARGIN: Final = 0.05
GAP: Final = 0.08
PASSES: Final = 3
"""The text around a panel changes a little with its size, so measuring and placing is repeated."""


@dataclasses.dataclass
class Panel:
    """One cell of the board, or a whole row of it; `height` in inches or, for an image, `aspect` = height / width."""

    axes: Axes
    row: int
    column: int
    height: float | None
    aspect: float | None
    title: str
    span: bool
    pair: bool

    def high(self, wide: float) -> float:
        """Its height in inches, when it is `wide` inches wide."""
        return self.height if self.height is not None else wide * (self.aspect or 1)


@dataclasses.dataclass
class Bar:
    """A colorbar of one panel or several."""

    bar: Any
    panels: list[Axes]
    side: Side
    units: str
    note: str

    @property
    def label(self) -> Any:
        """The text along it."""
        return self.bar.ax.yaxis.label if self.side == "right" else self.bar.ax.xaxis.label


class Overhang(NamedTuple):
    """How far text and colorbars reach beyond the panels, in inches, by column (left, right) and row."""

    left: dict[int, float]
    right: dict[int, float]
    top: dict[int, float]
    bottom: dict[int, float]


def lay_out(board: Board) -> None:
    """Place all panels and texts; the height of a figure of our own follows from them.

    Raises:
        PlotError: when they do not fit.
    """
    for _ in range(PASSES):
        _break_text(board)
        _place(board, _overhangs(board))
    for bar in board.bars:
        bar.bar.ax.set_in_layout(True)


def finish_axes(board: Board) -> None:
    """Break the text of axes of the user, and put the title over them."""
    (panel,) = board.panels
    panel.axes.tick_params(labelsize=style.SMALL)  # these axes were made under other settings
    for axis in (panel.axes.xaxis, panel.axes.yaxis):
        axis.label.set_fontsize(style.TEXT)
    _break_text(board)
    wide, _ = _extent(board, panel.axes)
    if board.heading:
        line = "\n".join(part for _, part, _ in board.heading)
        legend = panel.axes.get_legend() if board.legends else None
        above = legend.get_window_extent(text.renderer(board.dpi)).height / board.dpi * 72 if legend else 0
        panel.axes.set_title(text.wrap(line, style.TEXT, wide), loc="left", fontsize=style.TEXT, pad=3 + above)


def _extent(board: Board, axes: Axes) -> tuple[float, float]:
    return axes.bbox.width / board.dpi, axes.bbox.height / board.dpi


def _union(board: Board, panels: Sequence[Axes]) -> tuple[float, float]:
    """Width and height of what panels cover together, in inches."""
    from matplotlib.transforms import Bbox

    box = Bbox.union([axes.bbox for axes in panels])
    return box.width / board.dpi, box.height / board.dpi


def _break_text(board: Board) -> None:
    for panel in board.panels:
        wide, high = _extent(board, panel.axes)
        if panel.title:
            line = text.wrap(panel.title, style.SMALL, 2 * wide + GAP if panel.pair else wide)
            panel.axes.set_title(line, fontsize=style.SMALL, loc="left" if panel.pair else "center")
        for label, room in ((panel.axes.xaxis.label, wide), (panel.axes.yaxis.label, high)):
            line = board.labels.setdefault(label, label.get_text())
            label.set_text(text.wrap(line, style.TEXT, max(room, 0.4)))
    for one in board.bars:
        room = min(_union(board, one.panels)[one.side == "right"], LONGEST)
        line = f"{one.units} {one.note}".strip()
        if text.width(line, style.SMALL) > room:
            line = f"{one.units}\n{one.note}".strip()
        one.label.set_text(text.wrap(line, style.SMALL, max(room, 0.7)))
        thin(one.bar, one.side, room)
    for axes, handles in board.legends:
        _draw_legend(board, axes, handles)


def _draw_legend(board: Board, axes: Axes, handles: Sequence[Any]) -> None:
    """Above the panel, in as many columns as its width holds."""
    if not handles:  # nothing but the ends of a ledger, say
        return
    wide, _ = _extent(board, axes)
    for columns in range(len(handles), 0, -1):
        legend = axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
            borderaxespad=0.1, borderpad=0.2, columnspacing=1.2, handlelength=2.4, handletextpad=0.5,
        )  # fmt: skip
        if legend.get_window_extent(text.renderer(board.dpi)).width / board.dpi <= wide:
            return
    legend.set_loc("lower right")  # too wide: let it reach to the left, over the names of the rows
    legend.set_bbox_to_anchor((1, 1), transform=axes.transAxes)


def _overhangs(board: Board) -> Overhang:
    from matplotlib.transforms import Bbox

    columns = {panel.column for panel in board.panels}
    rows = {panel.row for panel in board.panels}
    found = Overhang(*(dict.fromkeys(places, 0.0) for places in (columns, columns, rows, rows)))
    renderer = text.renderer(board.dpi)
    boxes: list[tuple[Panel, Panel, Any, Any]] = []
    for panel in board.panels:
        # titles and axis labels are broken to fit, so only their other direction counts
        around = panel.axes.get_tightbbox(renderer, for_layout_only=True)
        boxes.append((panel, panel, panel.axes.bbox, around))
    for bar in board.bars:
        first, last = (next(p for p in board.panels if p.axes is bar.panels[end]) for end in (0, -1))
        boxes.append((first, last, Bbox.union([axes.bbox for axes in bar.panels]), bar.bar.ax.get_tightbbox(renderer)))
    for first, last, inner, around in boxes:
        right = max(columns) if last.span else last.column
        for side, place, pixels in (
            (found.left, first.column, inner.x0 - around.x0),
            (found.right, right, around.x1 - inner.x1),
            (found.top, first.row, around.y1 - inner.y1),
            (found.bottom, last.row, inner.y0 - around.y0),
        ):
            side[place] = max(side[place], pixels / board.dpi)
    return found


def _place(board: Board, over: Overhang) -> None:
    columns, rows = sorted(over.left), sorted(over.top)
    wide = board.width - 2 * MARGIN - GAP * (len(columns) - 1) - sum(over.left.values()) - sum(over.right.values())
    wide /= len(columns)
    if wide < 0.2:
        larger = "a larger width= ('page' is 6.75)" if board.own else "a wider figure"
        raise PlotError(
            f"{len(columns)} panels with their text do not fit in {board.width:.2f} inches. Give {larger}, fewer "
            "columns, or shorter labels."
        )
    high = {row: max(panel.high(wide) for panel in board.panels if panel.row == row) for row in rows}
    # the title starts over the panels, unless names to their left would leave it little room
    indent = over.left[columns[0]]
    start = MARGIN + (indent if indent < 0.2 * board.width else 0)
    heading = [_set(board, *one, board.width - start - MARGIN) for one in board.heading]
    headers = {row: _set(board, *one, board.width - 2 * MARGIN) for row, one in board.headers.items()}
    fixed = 2 * MARGIN + GAP * (len(rows) - 1) + sum(heading) + sum(headers.values())
    fixed += sum(over.top.values()) + sum(over.bottom.values())
    high = _fit(board, high, fixed)

    full_wide, full_high = board.size
    starts, x = {}, MARGIN
    for column in columns:
        starts[column] = x + over.left[column]
        x = starts[column] + wide + over.right[column] + GAP
    y = full_high - MARGIN
    for (artist, _, _), size in zip(board.heading, heading, strict=True):
        artist.set_position((start / full_wide, y / full_high))
        y -= size
    for row in rows:
        if row in headers:
            board.headers[row][0].set_position((MARGIN / full_wide, y / full_high))
            y -= headers[row]
        y -= over.top[row] + high[row]
        for panel in (panel for panel in board.panels if panel.row == row):
            across = starts[columns[-1]] + wide - starts[columns[0]] if panel.span else wide
            left = starts[panel.column] / full_wide
            panel.axes.set_position((left, y / full_high, across / full_wide, high[row] / full_high))
        y -= over.bottom[row] + GAP


def _set(board: Board, artist: Any, line: str, size: float, room: float) -> float:
    """Break a line over the panels to fit; returns the height that it takes, in inches."""
    artist.set_text(text.wrap(line, size, room))
    high: float = artist.get_window_extent(text.renderer(board.dpi)).height / board.dpi
    return high + 0.05


def _fit(board: Board, high: dict[int, float], fixed: float) -> dict[int, float]:
    """Give a figure of our own its height; shrink the panels to that of a given one."""
    total = fixed + sum(high.values())
    if board.own:
        board.fig.set_size_inches(board.width, total)
        return high
    available = board.size[1]
    factor = min(1.0, (available - fixed) / sum(high.values()))
    if factor < 0.15:
        raise PlotError(
            f"the figure given is {board.size[0]:.2f} x {available:.2f} inches; these panels need about {total:.2f} "
            "inches of height. Make it higher, or leave out fig=."
        )
    return {row: size * factor for row, size in high.items()}
