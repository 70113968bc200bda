"""Horizontal bars with names: tokens, features, layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .. import style
from ..style import Array
from . import intervals, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

PITCH: Final = 0.125
"""Height of one row, in inches: a line of the smallest text and a little air."""
DENSE: Final = 0.105
"""Height of one of very many rows."""
MOST_WIDE: Final = 40
"""Rows that are as high as `PITCH`."""
MOST_DECADES: Final = 300.0
"""Last over first value of a log axis up to which more than powers of ten are named."""
HATCH: Final = "//////"
"""Bars whose sign is not settled."""
PAGE_FULL: Final = 8.2
"""Inches that rows may take: a page of a paper."""


def room_for_names(names: Sequence[str], figure_width: float) -> float:
    """The width that the names get, in inches: at most just over half of the figure."""
    return min(max(text.width(name, style.SMALL) for name in names), 0.55 * figure_width)


def pitch_of(rows: int) -> float:
    """The height of each of so many rows, in inches, at the size that text has."""
    return (PITCH if rows <= MOST_WIDE else DENSE) * style.SMALL / 6


def name_rows(axes: Axes, names: Sequence[str], figure_width: float) -> float:
    """Name the rows 0, 1, ... of a panel, from the top; return the height that they need, in inches.

    Names that are too long are broken into lines. When not all rows fit on a page, every second (third, ...) is
    named.

    Args:
        axes: where.
        names: one per row.
        figure_width: in inches.
    """
    limit = room_for_names(names, figure_width)
    wrapped = [text.wrap(name, style.SMALL, limit + 0.01) for name in names]
    lines = max(name.count("\n") + 1 for name in wrapped)
    pitch = pitch_of(len(names)) + (lines - 1) * style.SMALL * 1.2 / 72
    every = -(-len(names) // max(int(PAGE_FULL / pitch), 1))
    height = len(names) * pitch / every
    shown = range(0, len(names), every)
    axes.set_yticks(list(shown), [wrapped[row] for row in shown], fontsize=style.SMALL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, pad=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return height


def value_axis(axes: Axes, label: str, *, log: bool = False) -> None:
    """A value axis with few numbers, faint guide lines, and a line at zero."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.set_xlabel(log_label(label) if log else label)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(log_ticks())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.axvline(0, color=style.FAINT, linewidth=0.6, zorder=1.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.5)


def number_format(axes: Axes) -> None:
    """Few numbers on both axes, with true minus signs."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))


def log_label(label: str) -> str:
    """The label of an axis, with its logarithmic scale."""
    return f"{label}, log scale" if label else "log scale"


def log_ticks() -> Any:
    """Ticks of a log axis: at 1, 2 and 5 where it spans about two decades, else at powers of ten."""
    from matplotlib.ticker import LogLocator

    class Locator(LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            few = vmin > 0 and vmax < MOST_DECADES * vmin
            self.set_params(subs=(1.0, 2.0, 5.0) if few else (1.0,))
            return super().tick_values(vmin, vmax)

    return Locator(numticks=6)


def draw(
    axes: Axes, values: Array, *, colors: str | Sequence[str], widths: Array | None = None, **options: Any
) -> BarContainer:
    """Bars from zero, row by row from the top.

    Args:
        axes: where.
        values: one for each row.
        colors: one for all, or one for each.
        widths: how far the interval of each value reaches below and above it, `(rows, 2)`, drawn as a line with ends;
            bars whose interval includes 0 are hatched. NaN where it is unknown; None where there is none.
        options: options of matplotlib's `barh`.
    """
    rows = np.arange(len(values))
    drawn = axes.barh(rows, values, height=0.72, color=colors, linewidth=0, **options)
    if widths is not None:
        known = ~np.isnan(widths).any(axis=1)
        unsettled = intervals.unsettled(values, widths)
        assert unsettled is not None
        hatch(drawn, known & unsettled)
        axes.errorbar(
            values[known], rows[known], xerr=widths[known].T, fmt="none", ecolor=style.INK, elinewidth=0.7, capsize=1.6,
            capthick=0.7,
        )  # fmt: skip
    return drawn


def hatch(drawn: BarContainer, which: Array) -> None:
    """Draw some bars hatched in their color on white."""
    for bar, chosen in zip(drawn, which, strict=True):
        if chosen:
            bar.set(edgecolor=bar.get_facecolor(), facecolor="white", hatch=HATCH, linewidth=0.5)


def draw_upright(axes: Axes, values: Array) -> None:
    """Upright bars from zero, red for positive and blue for negative."""
    axes.bar(np.arange(len(values)), values, width=0.5, color=style.signed_colors(values), linewidth=0)
    axes.axhline(0, color=style.FAINT, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_hidden(
    axes: Axes, values: Array, shows: Array, series: Sequence[str] = (), across: float | None = None
) -> None:
    """Write values that have no place on the axis at its left edge; where not all rows are named, several at once.

    Args:
        axes: where.
        values: `(rows, series)`.
        shows: which of them have a place, shaped like `values`.
        series: their names, written where a value is not that of all series.
        across: about how wide the panel will be, in inches, for the axis to begin farther to the left where the rows
            also hold values that have a place; None leaves the axis as it is.
    """
    named = axes.get_yticks()
    every = round(named[1] - named[0]) if len(named) > 1 else 1
    rows = np.flatnonzero(~shows.all(axis=1))
    covers = 0.0
    for row in dict.fromkeys((rows // every * every).tolist()):
        near = slice(row, row + every)
        found: dict[str, set[int]] = {}
        for value, (_, column) in zip(values[near][~shows[near]], np.argwhere(~shows[near]), strict=True):
            found.setdefault(_written(value), set()).add(int(column))
        hidden = ", ".join(_with_series(value, columns, series) for value, columns in found.items())
        if shows[near].any():
            covers = max(covers, text.width(hidden, style.SMALL) + 0.1)
        axes.annotate(
            hidden, (0, row), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points",
            va="center_baseline", ha="left", fontsize=style.SMALL, color=style.COLORS[1],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    if covers and across is not None:
        share = min(covers / across, 0.6)
        scale = axes.xaxis.get_transform()
        low, high = scale.transform(np.array(axes.get_xlim()))
        axes.set_xlim(left=float(scale.inverted().transform((low - share * high) / (1 - share))))


def _with_series(value: str, columns: set[int], series: Sequence[str]) -> str:
    """A value with the names of its series, unless all have it."""
    if len(columns) >= len(series):
        return value
    return f"{value} ({', '.join(series[column] for column in sorted(columns))})"


def _written(value: float) -> str:
    return "NaN" if np.isnan(value) else style.number(float(value)).replace("inf", "infinite")


def write_beyond(axes: Axes, values: Array) -> None:
    """Write values that lie beyond the ends of the axis at its edges; `values` is `(rows, series)`."""
    low, high = axes.get_xlim()
    finite = np.isfinite(values)
    for edge, out, mark in ((0, finite & (values < low), "← {}"), (1, finite & (values > high), "{} →")):
        for row in np.flatnonzero(out.any(axis=1)):
            written = mark.format(", ".join(style.number(float(value)) for value in values[row][out[row]]))
            axes.annotate(
                written, (edge, row), xycoords=("axes fraction", "data"), xytext=(-2 if edge else 2, 0),
                textcoords="offset points", va="center_baseline", ha="right" if edge else "left", fontsize=style.SMALL,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=4,
            )  # fmt: skip


def strongest(sizes: Array, count: int) -> tuple[list[int], list[int]]:
    """Split rows into the `count` largest, in their order, and the others; a single other row is kept instead.

    Example:
        >>> strongest(np.array([5.0, 1.0, 4.0, 2.0]), 2)
        ([0, 2], [1, 3])
    """
    if len(sizes) <= count + 1:
        return list(range(len(sizes))), []
    kept = set(np.argsort(-sizes, kind="stable")[:count].tolist())
    return sorted(kept), [row for row in range(len(sizes)) if row not in kept]
