"""The score while places are removed or put in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PlotError
from ..results import FaithfulnessCurve
from . import style
from .board import Board
from .plot import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def faithfulness_curve(
    curves: FaithfulnessCurve | Sequence[FaithfulnessCurve],
    *,
    labels: Sequence[str] | None = None,
    width: style.Width = "column",
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw one curve or several: the mean over samples as a line, its standard error as a band.

    Args:
        curves: with the same units.
        labels: a name for each; None for metric and fill.
        width: `"column"` (3.25 in), `"page"` (6.75 in), or inches.
        title: None for the target, `""` for none.
        ax: axes to draw into; None makes a figure.

    Returns:
        The plot; `data` holds the means by label.

    Raises:
        PlotError: when there is nothing to draw, the units differ, or names and curves do not agree in number.
    """
    shown = [curves] if isinstance(curves, FaithfulnessCurve) else list(curves)
    if not shown or not all(isinstance(one, FaithfulnessCurve) for one in shown):
        raise PlotError("faithfulness_curve draws one FaithfulnessCurve or more.")
    if len({one.units for one in shown}) > 1:
        raise PlotError(f"the curves have different units: {', '.join(one.units for one in shown)}.")
    names = [f"{one.name} ({one.fill})" for one in shown] if labels is None else list(labels)
    if len(names) != len(shown):
        raise PlotError(f"{len(names)} label(s) were given for {len(shown)} curve(s).")
    data = {}
    with Board(width=width, ax=ax) as board:
        board.title(title, shown[0].target)
        axes = board.panel(height=1.7)
        handles = []
        for index, (one, name) in enumerate(zip(shown, names, strict=True)):
            colour, line = style.COLOURS[index % len(style.COLOURS)], style.LINES[index % len(style.LINES)]
            shares, scores = one.shares.numpy(), one.scores.cpu().numpy()
            mean = scores.mean(axis=0)
            data[name] = mean
            handles += axes.plot(shares, mean, color=colour, linestyle=line, label=name)
            if len(scores) > 1:
                error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
                axes.fill_between(shares, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the places")
        axes.set_ylabel(shown[0].units)
        board.legend(axes, handles)
        return board.finish(data)
