"""Features of a table as rows: their order, their names with values, and points that do not hide each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from layerlens.errors import InputError, OptionError, PlotError
from layerlens.results import Attribution
from layerlens.results.maps.table_values import table_of

from .. import style
from ..style import Array
from . import attribution_sample, images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS: Final = 60
"""Places along the values axis at which points are put side by side."""


class Table(NamedTuple):
    """Values of a table, features `(batch, feature)` or None, their names, and widths of intervals."""

    values: Array
    inputs: Array | None
    names: tuple[str, ...]
    widths: Array | None


def read(attribution: Attribution, name: str | None, interval: float | None = None) -> Table:
    """Read the values of a table for drawing.

    Args:
        attribution: values `(batch, feature)`.
        name: name of the input, where there are several.
        interval: share of the intervals that are read with the values; None reads none.

    Raises:
        PlotError: if the attribution is not that of a table, or holds no finite values.
    """
    try:
        values, inputs, names = table_of(attribution, name)
    except InputError as error:
        raise PlotError(str(error)) from error
    known = images.finite_array(values, f"the {attribution.method} attribution")
    widths = attribution_sample.interval_widths(attribution, name, interval)
    return Table(known, None if inputs is None else inputs.numpy(), names, widths)


def order(sizes: Array, count: int) -> tuple[list[int], list[int]]:
    """Split features into the `count` largest, in this order, and the others; a single other feature is kept.

    Raises:
        OptionError: if `count` is below 1.
    """
    if count < 1:
        raise OptionError(f"count={count!r} features; give 1 or more.")
    best = np.argsort(-sizes, kind="stable").tolist()
    kept = len(best) if len(best) <= count + 1 else count
    return best[:kept], best[kept:]


def named(table: Table, sample: int, feature: int) -> str:
    """The name of a feature with its value."""
    if table.inputs is None:
        return table.names[feature]
    return f"{table.names[feature]} = {style.number(float(table.inputs[sample, feature]))}"


def draw_points(axes: Axes, across: Array, up: Array, *, size: float, colors: Any, hollow: Array | None) -> None:
    """Draw points, some of them hollow.

    Args:
        axes: where.
        across: where each lies from left to right.
        up: where each lies from bottom to top.
        size: area of a point, in square points.
        colors: one for all, or one for each, `(points, 4)`.
        hollow: which are hollow; None for none.
    """
    which = np.zeros(len(across), dtype=bool) if hollow is None else hollow
    for chosen, wide in ((~which, 0.0), (which, 0.5)):
        if not chosen.any():
            continue
        own = colors if isinstance(colors, str) else colors[chosen]
        look: dict[str, Any] = {"facecolors": "none", "edgecolors": own} if wide else {"c": own}
        axes.scatter(
            across[chosen], up[chosen], s=size, linewidths=wide, zorder=2, rasterized=len(across) > 2000, **look
        )


def spread(values: Array, low: float, high: float) -> Array:
    """Offsets, -1 to 1, that put points with nearly the same value side by side, the most crowded over all the room.

    Args:
        values: along the axis.
        low: start of the axis.
        high: end of the axis.
    """
    bins = np.round((values - low) / ((high - low) or 1.0) * BINS).astype(int)
    found = np.zeros(len(values))
    for one in np.unique(bins):
        places = np.flatnonzero(bins == one)
        ranks = np.arange(len(places))
        found[places] = (ranks + 1) // 2 * np.where(ranks % 2, 1, -1)
    most = float(np.abs(found).max(initial=0.0))
    return found / max(most, 4.0)
