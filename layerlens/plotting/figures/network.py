"""Pairs of features as a network: what each gives alone, and what two give together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerlens.errors import PlotError, check_count
from layerlens.results import Matrix

from .. import style
from ..drawing import intervals
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(Matrix, kind="network")
def network(
    found: Matrix,
    *,
    count: int = 30,
    interval: float | None = 0.9,
    width: style.Width = "column",
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw a symmetric matrix, such as `interactions`, as a network: a node per feature, a line per pair.

    The area of a node is the size of its diagonal value, the thickness of a line that of the pair's; red is positive,
    blue negative.

    Args:
        found: symmetric values, rows and columns the same.
        count: number of lines, those of the largest size.
        interval: share of the intervals, where values have an error; pairs whose interval includes 0 are dotted, such
            features hollow. None looks at none.
        title: None for method and quantity, `""` for none.

    Returns:
        The plot; `data` holds `"pairs"`, names of both ends, and their `"values"`, largest size first.

    Raises:
        OptionError: if `count` is below 1.
        PlotError: if the matrix is not symmetric, has fewer than two rows, or has values that are not finite.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.0, 6.0], [6.0, 2.0]])
        >>> network(Matrix("interaction", ("a", "b"), ("a", "b"), values, ("feature",) * 2, "", True, "SII", {})).data
        {'pairs': [('a', 'b')], 'values': array([6.])}
    """
    check_count("count", count)
    values = finite_array(found.values.double(), "the matrix")
    if found.rows != found.columns or not np.allclose(values, values.T) or len(values) < 2:
        raise PlotError("a network needs a symmetric matrix of two or more rows; draw this one with .plot('matrix').")
    first, second = np.triu_indices(len(values), 1)
    sizes = np.abs(values[first, second])
    order = [int(one) for one in np.argsort(-sizes, kind="stable")[:count] if sizes[one] > 1e-9 * np.abs(values).max()]
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(values)) / len(values)
    x, y = np.cos(angle), np.sin(angle)
    own = np.diagonal(values)
    unsettled = intervals.unsettled_of(found, interval)
    hollow = np.diagonal(unsettled)
    with Canvas(width=width, ax=ax) as canvas:
        note = f"lines: pairs, {len(order)} of {len(first)}; circles: one alone; red is positive"
        marks = intervals.note("dotted lines", [unsettled[first, second][order], hollow], interval)
        canvas.title(title, f"{words(found.method)}, {found.quantity}", "; ".join([note, *marks]))
        axes = canvas.panel(aspect=0.81)
        most = max(float(sizes.max()), 1e-300)
        for one in order[::-1]:
            a, b = first[one], second[one]
            (color,) = style.signed_colors(values[a, b][None])
            look = ":" if unsettled[a, b] else "-"
            axes.plot(x[[a, b]], y[[a, b]], look, color=color, linewidth=0.3 + 3.2 * sizes[one] / most, zorder=1)
        area = 8 + 130 * np.abs(own) / max(float(np.abs(own).max()), 1e-300)
        colors = style.signed_colors(own)
        fills = ["white" if empty else color for color, empty in zip(colors, hollow, strict=True)]
        edges = [color if empty else "white" for color, empty in zip(colors, hollow, strict=True)]
        axes.scatter(x, y, s=area, c=fills, edgecolors=edges, linewidths=0.6, zorder=2)
        for name, across, up in zip(found.rows, x, y, strict=True):
            side = "center" if abs(across) < 0.2 else "left" if across > 0 else "right"
            level = "center" if abs(up) < 0.2 else "bottom" if up > 0 else "top"
            axes.text(1.13 * across, 1.13 * up, name, ha=side, va=level, fontsize=style.SMALL, color=style.INK)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.3, 1.3), xticks=[], yticks=[])
        axes.set_frame_on(False)
        pairs = [(found.rows[first[one]], found.rows[second[one]]) for one in order]
        return canvas.finish({"pairs": pairs, "values": values[first, second][order]})
