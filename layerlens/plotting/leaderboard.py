"""Methods beside each other: means with their intervals, the best at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PlotError
from ..results import Leaderboard
from . import bars, style
from .board import Board
from .plot import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def leaderboard(
    board: Leaderboard,
    *,
    metric: str | None = None,
    width: style.Width = "column",
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw one metric: a row for each method, a dot at its mean, whiskers for the 95 % interval, controls in grey.

    Args:
        board: the leaderboard.
        metric: which one; None takes the first.
        width: `"column"` (3.25 in), `"page"` (6.75 in), or inches.
        title: None for the metric, `""` for none.
        ax: axes to draw into; None makes a figure.

    Returns:
        The plot; `data` holds `"values"` `(methods,)` and `"interval"` `(methods, 2)`, best first.

    Raises:
        OptionError: when there is no such metric.
        PlotError: when this is no leaderboard, or a mean is not finite.
    """
    if not isinstance(board, Leaderboard):
        raise PlotError(f"leaderboard draws a Leaderboard, not a {type(board).__name__}.")
    name = board.metrics[0] if metric is None else metric
    board.of(board.methods[0], name)
    up = board.higher[board.metrics.index(name)]
    methods = sorted(board.methods, key=lambda method: board.mean(method, name), reverse=up)
    means = np.array([board.mean(method, name) for method in methods])
    spans = np.array([board.interval(method, name) for method in methods])
    if not np.isfinite(means).all():
        raise PlotError(f"the means of {name!r} are not all finite: {means.tolist()}.")
    rows = np.arange(len(methods))
    with Board(width=width, ax=ax) as canvas:
        note = f"{board.values.shape[2]} sample(s), {board.target}; whiskers: 95 % intervals"
        canvas.title(title, f"{name}: {'higher' if up else 'lower'} is better", note)
        axes = canvas.panel()
        canvas.panels[-1].height = max(bars.name_rows(axes, methods, canvas.width), 0.5)
        bars.value_axis(axes, name)
        for row, method in zip(rows, methods, strict=True):
            colour = style.FAINT if method in board.controls else style.COLOURS[0]
            axes.plot(spans[row], [row, row], color=colour, linewidth=1.0)
            axes.plot(means[row], row, color=colour, marker="o", markersize=3.2, linestyle="none")
        return canvas.finish({"values": means, "interval": spans, "methods": methods})
