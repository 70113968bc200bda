"""The axes of curves: of their points, linear or logarithmic, and of their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from layerlens.errors import OptionError, PlotError, choose

from .. import style
from ..style import Array
from . import bars, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS: Final = 8
"""Points that carry the numbers of a logarithmic axis themselves."""


def along(axes: Axes, points: Array, scale: str, across: float) -> None:
    """The axis of the points of curves, with guide lines.

    Args:
        axes: where.
        points: points of all curves.
        scale: `"linear"`, `"log"` or `"symlog"`.
        across: width of the figure, in inches.
    """
    from matplotlib.ticker import MaxNLocator, NullFormatter

    if scale == "log":
        axes.set_xscale("log")
    elif scale == "symlog":
        sizes = np.abs(points[points != 0])
        axes.set_xscale("symlog", linthresh=float(sizes.min()) if sizes.size else 1.0, linscale=0.5)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if scale != "linear" and len(np.unique(points)) <= FEW_POINTS:
        _ticks(axes, np.unique(points), across)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#E6E6E6", linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def check_values(lines: Sequence[Array], yscale: str, ylim: tuple[float, float] | None) -> None:
    """Refuse an axis of values that cannot be drawn.

    Args:
        lines: the values of each curve.
        yscale: `"linear"` or `"log"`.
        ylim: smallest and largest value, or None.

    Raises:
        OptionError: for an unknown scale, or a `ylim` that is not a range.
        PlotError: when a logarithm of zero or less is asked for.
    """
    choose("yscale", yscale, ("linear", "log"))
    if ylim is not None and not (len(ylim) == 2 and np.isfinite(ylim).all() and ylim[0] < ylim[1]):
        raise OptionError(f"ylim={ylim!r}; give the smallest and the largest value of the axis, such as (0, 1).")
    lowest = min(float(np.nanmin(line, initial=np.inf)) for line in lines) if ylim is None else float(ylim[0])
    if yscale == "log" and lowest <= 0:
        raise PlotError(
            f"a log scale has no place for the value {lowest:g}. Use yscale='linear', or ylim= from above zero."
        )


def values(axes: Axes, yscale: str, ylim: tuple[float, float] | None) -> None:
    """The axis of the values of curves, and the numbers of both."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if yscale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(bars.log_ticks())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if ylim is not None:
        axes.set_ylim(*ylim)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))


def _ticks(axes: Axes, points: Array, across: float) -> None:
    """Ticks at the points themselves, left out where their numbers would touch."""
    scaled = axes.xaxis.get_transform().transform(points)
    span = float(np.ptp(scaled)) or 1.0
    room = 0.8 * across / span
    kept, end = [], -np.inf
    for point, place in zip(points, scaled * room, strict=True):
        half = text.width(style.number(float(point)), style.SMALL) / 2
        if place - half > end + 0.04:
            kept.append(point)
            end = place + half
    axes.set_xticks(kept)
    axes.minorticks_off()
