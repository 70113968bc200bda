"""Where a figure is drawn: panels in rows and columns, sized in inches so that all text is inside.

matplotlib's own layouts keep the size of the figure and cut what does not fit, such as a title over an image of fixed
aspect. A `Canvas` keeps the width, measures the text around each panel, and computes the height from the content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from layerlens.errors import OptionError, PlotError

from .. import style
from ..plot import Plot
from . import legend, text
from .colorbar import LONGEST, Side, attach, drop_middle_number
from .each_sample import current_place, resize

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import FigureBase
    from matplotlib.text import Text

MARGIN: Final = 0.05
GAP: Final = 0.08
ASIDE: Final = 0.9
"""Inches of a text that is turned, so that its words stay whole."""
PASSES: Final = 3
"""The text around a panel changes a little with its size: measuring and placing is repeated until nothing moves."""


@dataclasses.dataclass
class Panel:
    """One cell of the canvas, or a whole row of it; `height` in inches or, for an image, `aspect` = height / width."""

    axes: Axes
    row: int
    column: int
    height: float | None
    aspect: float | None
    title: str
    span: bool
    pair: bool

    def height_at(self, wide: float) -> float:
        """Height in inches of a panel that is `wide` inches wide."""
        return self.height if self.height is not None else wide * (self.aspect or 1)


@dataclasses.dataclass
class Bar:
    """A colorbar of one panel or several."""

    bar: Colorbar
    panels: list[Axes]
    side: Side
    units: str
    note: str

    @property
    def label(self) -> Text:
        """The text along the bar."""
        return self.bar.ax.yaxis.label if self.side == "right" else self.bar.ax.xaxis.label


class Overhang(NamedTuple):
    """How far text and colorbars reach beyond the panels, in inches, by column (left, right) and row."""

    left: dict[int, float]
    right: dict[int, float]
    top: dict[int, float]
    bottom: dict[int, float]

    def is_near(self, other: Overhang) -> bool:
        """Whether panels are placed the same with another, of the same rows and columns."""
        return all(abs(one[at] - two[at]) < 1e-9 for one, two in zip(self, other, strict=True) for at in one)


class Canvas:
    """Where a figure is drawn; a context in which the settings of all figures hold.

    Args:
        width: width of the figure, see `style.Width`.
        ax: axes of the user to draw the only panel into; they are not moved.
        fig: figure or subfigure of the user; its size is kept.
    """

    def __init__(self, *, width: style.Width = "column", ax: Axes | None = None, fig: FigureBase | None = None) -> None:
        self.width = style.inches(width)
        self.given = ax
        self.place = current_place()
        self.own = ax is None and fig is None
        self.fig: Any = fig
        self.panels: list[Panel] = []
        self.bars: list[Bar] = []
        self.headers: dict[int, tuple[Text, str, float]] = {}
        self.heading: list[tuple[Text, str, float]] = []
        self.labels: dict[Text, str] = {}
        self.legends: list[tuple[Axes, Sequence[Artist]]] = []
        self.keys: list[Axes] = []
        self.upright: set[int] = set()
        self.lying = 0.0

    def __enter__(self) -> Canvas:
        import matplotlib
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure, FigureBase

        if self.given is not None and not isinstance(self.given, Axes):
            raise OptionError(f"ax= takes one matplotlib Axes, not a {type(self.given).__name__}.")
        if self.fig is not None and not isinstance(self.fig, FigureBase):
            raise OptionError(f"fig= takes a matplotlib Figure or SubFigure, not a {type(self.fig).__name__}.")
        self._settings = matplotlib.rc_context(style.RC)
        self._settings.__enter__()
        if self.given is not None:
            self.fig = self.given.figure
            self.width = 1.3 * self.given.bbox.width / self.dpi  # with names on its left
        elif self.fig is None:
            self.fig = self.place.cell or Figure(figsize=(self.width, self.width))
        else:
            self.width = self.size[0]
        return self

    def __exit__(self, *error: Any) -> None:
        self._settings.__exit__(*error)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure or subfigure, in inches."""
        return self.fig.bbox.width / self.dpi, self.fig.bbox.height / self.dpi

    @property
    def dpi(self) -> float:
        """Pixels per inch while drawing."""
        return float(self.fig.figure.dpi)

    def panel(
        self,
        row: int = 0,
        column: int = 0,
        *,
        height: float | None = None,
        aspect: float | None = None,
        title: str = "",
        span: bool = False,
        pair: bool = False,
    ) -> Axes:
        """Add a panel.

        Args:
            row: from the top.
            column: from the left.
            height: in inches; or give `aspect`.
            aspect: height / width of an image.
            title: above the panel.
            span: whether it is as wide as all columns.
            pair: whether its title runs on over the panel to its right.
        """
        axes: Axes = self.given if self.given is not None else self.fig.add_axes((0.2, 0.2, 0.6, 0.6))
        self.panels.append(Panel(axes, row, column, height, aspect, title, span, pair))
        return axes

    def title(self, title: str | None, automatic: str = "", note: str = "") -> None:
        """Write above the panels: the title asked for (None: the automatic one; "": none), and a note below it."""
        label = self.place.label
        automatic = ": ".join(part for part in (label, automatic) if part)
        shown = automatic if title is None else title or label * (self.place.cell is not None)
        lines = [(line, size) for line, size in ((shown, style.TEXT), (note, style.SMALL)) if line]
        self.heading = [(self._line_artist(size), line, size) for line, size in lines]

    def header(self, row: int, line: str) -> None:
        """Write a line above a row of panels, from its left edge."""
        self.headers[row] = (self._line_artist(style.TEXT), line, style.TEXT)

    def _line_artist(self, size: float) -> Any:
        return self.fig.text(0, 0, "", fontsize=size, ha="left", va="top") if self.given is None else None

    def colorbar(
        self, panels: Sequence[Axes], mappable: ScalarMappable, limits: style.Limits, units: str, side: Side
    ) -> None:
        """Put a colorbar with its numbers to the right of panels or below them."""
        self.place.scales.append(limits)
        bar = attach(panels, mappable, limits, side)
        bar.ax.set_in_layout(self.given is not None)  # a canvas measures it for itself: it may belong to several rows
        note = f"({limits.note})" if limits.note else ""
        self.bars.append(Bar(bar, list(panels), side, units, note))

    def legend(self, axes: Axes, handles: Sequence[Artist]) -> None:
        """Put a legend above a panel, in as many columns as fit."""
        self.legends.append((axes, handles))

    def key(self, row: int, handles: Sequence[Artist]) -> None:
        """Put one legend for all panels into a row of its own."""
        axes = self.panel(row, height=0.01, span=True)
        axes.set_axis_off()
        self.keys.append(axes)
        self.legend(axes, handles)

    def finish(self, data: dict[str, Any]) -> Plot:
        """Lay everything out and return the complete figure."""
        if self.given is None:
            _lay_out(self)
        else:
            _finish_axes(self)
        return Plot(
            self.fig.figure,
            tuple(panel.axes for panel in self.panels if panel.axes not in self.keys),
            data,
            own=self.own,
        )


def _lay_out(canvas: Canvas) -> None:
    """Place all panels and texts; the height of a figure made here follows from them.

    Raises:
        PlotError: when they do not fit.
    """
    before = None
    for _ in range(PASSES):
        _break_text(canvas)
        over = _overhangs(canvas)
        if before and over.is_near(before):
            break
        _place_panels(canvas, before := over)
    for bar in canvas.bars:
        bar.bar.ax.set_in_layout(True)


def _finish_axes(canvas: Canvas) -> None:
    """Break the text of axes of the user, and put the title over them."""
    (panel,) = canvas.panels
    panel.axes.tick_params(labelsize=style.SMALL)  # these axes were made under other settings
    for axis in (panel.axes.xaxis, panel.axes.yaxis):
        axis.label.set_fontsize(style.TEXT)
    _break_text(canvas)
    wide, _ = _size_of(canvas, panel.axes)
    if canvas.heading:
        line = "\n".join(part for _, part, _ in canvas.heading)
        key = panel.axes.get_legend() if canvas.legends else None
        above = key.get_window_extent(text.renderer(canvas.dpi)).height / canvas.dpi * 72 if key else 0
        panel.axes.set_title(text.wrap(line, style.TEXT, wide), loc="left", fontsize=style.TEXT, pad=3 + above)


def _size_of(canvas: Canvas, axes: Axes) -> tuple[float, float]:
    return axes.bbox.width / canvas.dpi, axes.bbox.height / canvas.dpi


def _union(canvas: Canvas, panels: Sequence[Axes]) -> tuple[float, float]:
    """Width and height of what panels cover together, in inches."""
    from matplotlib.transforms import Bbox

    box = Bbox.union([axes.bbox for axes in panels])
    return box.width / canvas.dpi, box.height / canvas.dpi


def _break_text(canvas: Canvas) -> None:
    _turn_text(canvas)
    for panel in canvas.panels:
        wide, high = _size_of(canvas, panel.axes)
        if panel.title:
            turned = panel.row in canvas.upright
            room = 2 * wide + GAP if panel.pair else ASIDE if turned else wide
            line = text.wrap(panel.title, style.SMALL, room)
            rotation = 90 if turned else 0
            panel.axes.set_title(line, fontsize=style.SMALL, loc="left" if panel.pair else "center", rotation=rotation)
        for label, room in (
            (panel.axes.xaxis.label, wide), (panel.axes.yaxis.label, canvas.lying or high)
        ):  # fmt: skip
            line = canvas.labels.setdefault(label, label.get_text())
            label.set_text(text.wrap(line, style.TEXT, max(room, 0.4)))
    for one in canvas.bars:
        room = min(_union(canvas, one.panels)[one.side == "right"], LONGEST)
        line = f"{one.units} {one.note}".strip()
        if text.width(line, style.SMALL) > room:
            line = f"{one.units}\n{one.note}".strip()
        one.label.set_text(text.wrap(line, style.SMALL, max(room, 0.7)))
        drop_middle_number(one.bar, one.side, room)
    for axes, handles in canvas.legends:
        legend.draw(axes, handles, canvas.dpi)


def _turn_text(canvas: Canvas) -> None:
    """Turn the titles of a row of panels upright, and the names of all rows level, where words would be broken."""
    if canvas.given is not None:
        return
    names = []
    for panel in canvas.panels:
        wide, high = _size_of(canvas, panel.axes)
        if not panel.pair and text.narrowest(panel.title, style.SMALL) > wide:
            canvas.upright.add(panel.row)
        names.append((panel.axes.yaxis.label, high))
    least = [text.narrowest(canvas.labels.get(name, name.get_text()), style.TEXT) for name, _ in names]
    if canvas.lying or any(one > max(high, 0.4) for one, (_, high) in zip(least, names, strict=True)):
        canvas.lying = min(max(least), ASIDE)
        for name, _ in names:
            name.set(rotation=0, ha="right", va="center")


def _overhangs(canvas: Canvas) -> Overhang:
    from matplotlib.transforms import Bbox

    columns = {panel.column for panel in canvas.panels}
    rows = {panel.row for panel in canvas.panels}
    found = Overhang(*(dict.fromkeys(places, 0.0) for places in (columns, columns, rows, rows)))
    renderer = text.renderer(canvas.dpi)
    boxes: list[tuple[Panel, Panel, Any, Any]] = []
    for panel in canvas.panels:
        # titles and axis labels are broken to fit, so only their other direction counts
        around = panel.axes.get_tightbbox(renderer, for_layout_only=True)
        if around and canvas.lying and panel.axes.get_ylabel():
            around = Bbox.union([around, panel.axes.yaxis.label.get_window_extent(renderer)])
        boxes.append((panel, panel, panel.axes.bbox, around))
    for bar in canvas.bars:
        first, last = (next(p for p in canvas.panels if p.axes is bar.panels[end]) for end in (0, -1))
        boxes.append((first, last, Bbox.union([axes.bbox for axes in bar.panels]), bar.bar.ax.get_tightbbox(renderer)))
    for first, last, inner, around in boxes:
        right = max(columns) if last.span else last.column
        for side, place, pixels in (
            (found.left, first.column, inner.x0 - around.x0),
            (found.right, right, around.x1 - inner.x1),
            (found.top, first.row, around.y1 - inner.y1),
            (found.bottom, last.row, inner.y0 - around.y0),
        ):
            side[place] = max(side[place], pixels / canvas.dpi)
    return found


def _place_panels(canvas: Canvas, over: Overhang) -> None:
    columns, rows = sorted(over.left), sorted(over.top)
    wide = canvas.width - 2 * MARGIN - GAP * (len(columns) - 1) - sum(over.left.values()) - sum(over.right.values())
    wide /= len(columns)
    if wide < 0.2:
        larger = "a larger width= ('page' is 6.75)" if canvas.own else "a wider figure"
        raise PlotError(
            f"{len(columns)} panels with their text do not fit in {canvas.width:.2f} inches. Give {larger}, fewer "
            "columns, or shorter labels."
        )
    high = {row: max(panel.height_at(wide) for panel in canvas.panels if panel.row == row) for row in rows}
    # the title starts over the panels, unless names to their left would leave it little room
    indent = over.left[columns[0]]
    start = MARGIN + (indent if indent < 0.2 * canvas.width else 0)
    heading = [_write_line(canvas, *one, canvas.width - start - MARGIN) for one in canvas.heading]
    headers = {row: _write_line(canvas, *one, canvas.width - 2 * MARGIN) for row, one in canvas.headers.items()}
    fixed = 2 * MARGIN + GAP * (len(rows) - 1) + sum(heading) + sum(headers.values())
    fixed += sum(over.top.values()) + sum(over.bottom.values())
    high = _fit(canvas, high, fixed)

    full_wide, full_high = canvas.size
    starts, x = {}, MARGIN
    for column in columns:
        starts[column] = x + over.left[column]
        x = starts[column] + wide + over.right[column] + GAP
    y = full_high - MARGIN
    for (artist, _, _), size in zip(canvas.heading, heading, strict=True):
        artist.set_position((start / full_wide, y / full_high))
        y -= size
    for row in rows:
        if row in headers:
            canvas.headers[row][0].set_position((MARGIN / full_wide, y / full_high))
            y -= headers[row]
        y -= over.top[row] + high[row]
        for panel in (panel for panel in canvas.panels if panel.row == row):
            across = starts[columns[-1]] + wide - starts[columns[0]] if panel.span else wide
            left = starts[panel.column] / full_wide
            panel.axes.set_position((left, y / full_high, across / full_wide, high[row] / full_high))
        y -= over.bottom[row] + GAP


def _write_line(canvas: Canvas, artist: Text, line: str, size: float, room: float) -> float:
    """Break a line over the panels to fit; returns the height that it takes, in inches."""
    artist.set_text(text.wrap(line, size, room))
    high: float = artist.get_window_extent(text.renderer(canvas.dpi)).height / canvas.dpi
    return high + 0.05


def _fit(canvas: Canvas, high: dict[int, float], fixed: float) -> dict[int, float]:
    """Give our own figure its height; shrink the panels to the height of a given one.

    Raises:
        PlotError: if a given figure is too low.
    """
    total = fixed + sum(high.values())
    if canvas.own:
        resize(canvas.fig, canvas.width, total)
        return high
    available = canvas.size[1]
    factor = min(1.0, (available - fixed) / sum(high.values()))
    if factor < 0.15:
        raise PlotError(
            f"the figure given is {canvas.size[0]:.2f} x {available:.2f} inches; these panels need about {total:.2f} "
            "inches of height. Make it higher, or leave out fig=."
        )
    return {row: size * factor for row, size in high.items()}
