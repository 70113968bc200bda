"""The layout of a figure: panels in rows and columns, sized in inches so that all text lies inside.

matplotlib's own layouts keep the size of the figure and cut what does not fit, such as a title over an image of fixed
aspect. A `Board` keeps the width, measures the text around each panel, and computes the height from the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerlens.errors import OptionError

from .. import style
from ..plot import Plot
from . import layout
from .colorbar import Side, attach
from .layout import Bar, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Board:
    """Where a figure is drawn; a context in which the settings of all figures hold.

    Args:
        width: of the figure; see `style.Width`.
        ax: axes of the user to draw the one panel into, left in their place.
        fig: figure or subfigure of the user to draw into; its size is kept.
    """

    def __init__(self, *, width: style.Width = "column", ax: Any = None, fig: Any = None) -> None:
        self.width = style.inches(width)
        self.given = ax
        self.own = ax is None and fig is None
        self.fig = fig
        self.panels: list[Panel] = []
        self.bars: list[Bar] = []
        self.headers: dict[int, tuple[Any, str, float]] = {}
        self.heading: list[tuple[Any, str, float]] = []
        self.labels: dict[Any, str] = {}
        self.legends: list[tuple[Any, Any]] = []
        self.keys: list[Any] = []

    def __enter__(self) -> Board:
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
            self.width = 1.3 * self.given.bbox.width / self.dpi  # with names beside it
        elif self.fig is None:
            self.fig = Figure(figsize=(self.width, self.width))
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
        shown = automatic if title is None else title
        lines = [(line, size) for line, size in ((shown, style.TEXT), (note, style.SMALL)) if line]
        self.heading = [(self._text(size), line, size) for line, size in lines]

    def header(self, row: int, line: str) -> None:
        """Write a line above a row of panels, from its left edge."""
        self.headers[row] = (self._text(style.TEXT), line, style.TEXT)

    def _text(self, size: float) -> Any:
        return self.fig.text(0, 0, "", fontsize=size, ha="left", va="top") if self.given is None else None

    def colorbar(self, panels: Sequence[Axes], mappable: Any, limits: style.Limits, units: str, side: Side) -> None:
        """Put a colorbar with its numbers beside or below panels."""
        bar = attach(panels, mappable, limits, side)
        bar.ax.set_in_layout(self.given is not None)  # a board measures it for itself: it may belong to several rows
        note = f"({limits.note})" if limits.note else ""
        self.bars.append(Bar(bar, list(panels), side, units, note))

    def legend(self, axes: Axes, handles: Sequence[Any]) -> None:
        """Put a legend above a panel, in as many columns as fit."""
        self.legends.append((axes, handles))

    def key(self, row: int, handles: Sequence[Any]) -> None:
        """Put one legend for all panels into a row of its own."""
        axes = self.panel(row, height=0.01, span=True)
        axes.set_axis_off()
        self.keys.append(axes)
        self.legend(axes, handles)

    def finish(self, data: dict[str, Any]) -> Plot:
        """Lay everything out; the figure is complete."""
        if self.given is None:
            layout.lay_out(self)
        else:
            layout.finish_axes(self)
        return Plot(
            self.fig.figure,
            tuple(panel.axes for panel in self.panels if panel.axes not in self.keys),
            data,
            own=self.own,
        )
