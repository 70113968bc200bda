"""Bars that begin where the one below ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import style
from ..style import Array
from . import bars, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    axes: Axes,
    items: Sequence[str],
    steps: Array,
    base: float,
    score: float,
    units: str,
    figure_width: float,
    hatched: Array | None = None,
) -> tuple[float, Array, Array]:
    """Draw steps from a base value at the bottom to the score at the top.

    Args:
        axes: where.
        items: name of each step, from the top.
        steps: size of each.
        base: where the last one starts.
        score: where the first one ends.
        units: units of the values.
        figure_width: in inches.
        hatched: which steps are drawn hatched; None for none.

    Returns:
        The height that the rows need in inches, and the start and end of each step.
    """
    height = bars.name_rows(axes, items, figure_width)
    end = base + np.cumsum(steps[::-1])[::-1]  # the last row is the first step
    start = end - steps
    places = np.arange(len(items))
    drawn = axes.barh(places, steps, left=start, height=0.72, color=style.signed_colors(steps), linewidth=0)
    if hatched is not None:
        bars.hatch(drawn, hatched)
    edges = np.concatenate([start, end, [base, score]])
    low, high = float(edges.min()), float(edges.max())
    bars.value_axis(axes, units)
    room = 0.22 * ((high - low) or 1.0)
    axes.set_xlim(low - room, high + room)
    for at, one in ((base, "--"), (score, "-")):
        axes.axvline(at, color=style.INK, linewidth=0.6, linestyle=one, zorder=1)
    axes.vlines(end[1:], places[1:] - 0.64, places[1:], color=style.FAINT, linewidth=0.5)
    inch = (high - low + 2 * room) / (figure_width - bars.room_for_names(items, figure_width))  # in units of the axis
    for place, (step, begin, stop) in enumerate(zip(steps, start, end, strict=True)):
        shown = f"{'+' if step > 0 else ''}{style.number(float(step))}"
        left = stop - (text.width(shown, style.SMALL) + 0.1) * inch
        right = step >= 0 or left < low - room  # where it would run into the name of the row
        axes.annotate(
            shown, (max(begin, stop) if right else stop, place),
            va="center_baseline", xytext=(2 if right else -2, 0), textcoords="offset points", fontsize=style.SMALL,
            ha="left" if right else "right",
        )  # fmt: skip
    return height, start, end
