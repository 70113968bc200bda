"""Methods beside each other: means with their intervals, the best at the top."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import Leaderboard

from .. import style
from ..drawing import bars, image_panels
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(Leaderboard, kind="means", usual=True)
def leaderboard(
    board: Leaderboard | Sequence[Leaderboard],
    *,
    metric: str | Sequence[str] | None = None,
    width: style.Width | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw a row for each method: a dot at its mean, whiskers for the 95 % interval, controls hollow and in gray.

    A dashed line goes through the best control: what lies on its wrong side says less than a map that never saw the
    model. Several boards of the same methods (other data, another model) or several metrics stand side by side, in
    the order of the first.

    Args:
        board: the leaderboard, or several with the same methods.
        metric: which one, or several; None takes the first.
        width: `"column"` (3.25 in), `"page"` (6.75 in), or inches; None takes the page for several panels.
        title: None for the metric, `""` for none.
        labels: a name for each panel; None for the target, or the metric.
        ax: axes to draw one panel into; None makes a figure.

    Returns:
        The plot; `data` holds `"methods"` best first and, of the first panel, `"values"` `(methods,)` and `"interval"`
        `(methods, 2)`; those of further panels by their names.

    Raises:
        OptionError: when there is no such metric, or several panels do not fit `ax`.
        PlotError: when this is no leaderboard, the boards have different methods, or a mean is not finite.

    Example:
        >>> import torch
        >>> values = torch.rand(2, 1, 8).double()
        >>> board = Leaderboard(("gradient", "edges"), ("insertion",), values, (True,), ("edges",), "class 7", {})
        >>> sorted(leaderboard(board).data["methods"])
        ['edges', 'gradient']
    """
    shown: list[Any] = list(board) if isinstance(board, (list, tuple)) else [board]
    wrong = [type(one).__name__ for one in shown if not isinstance(one, Leaderboard)]
    if wrong or not shown:
        raise PlotError(f"leaderboard draws one Leaderboard or more, not {f'a {wrong[0]}' if wrong else 'none'}.")
    shown = [dataclasses.replace(one, values=one.values.detach().double()) for one in shown]
    names = [metric] if isinstance(metric, str) or metric is None else list(metric)
    pairs = [(one, one.metrics[0] if name is None else name) for one in shown for name in names]
    if labels is None:
        labels = [name if len(shown) == 1 else one.target for one, name in pairs] if len(pairs) > 1 else [""]
    if not pairs or len(labels) != len(pairs):
        raise PlotError(f"{len(labels)} label(s) for {len(pairs)} panel(s); give one per board and metric.")
    if ax is not None and len(pairs) > 1:
        raise OptionError(f"ax= holds one panel, and there are {len(pairs)}: leave it out, or draw one at a time.")
    methods = _order(shown, *pairs[0])
    controls = [name for name in methods if name in shown[0].controls]
    rows = [f"{name} (control)" if name in controls and "control" not in name else name for name in methods]
    data: dict[str, Any] = {"methods": methods}
    with Canvas(width=width or ("column" if len(pairs) == 1 else "page"), ax=ax) as canvas:
        first, name = pairs[0]
        better = "higher" if first.higher[first.metrics.index(name)] else "lower"
        heading = f"{name}: {better} is better" if len({name for _, name in pairs}) == 1 else ""
        same = len({one.samples for one in shown}) == 1
        what = [first.samples] if same else []
        what += [first.target] if len(shown) == 1 and first.target else []
        notes = [", ".join(what), "whiskers: 95 % intervals", "dashed: the best control" if controls else ""]
        canvas.title(title, heading, "; ".join(note for note in notes if note))
        for column, ((one, name), label) in enumerate(zip(pairs, labels, strict=True)):
            means, spans = _numbers(one, name, methods)
            axes = canvas.panel(0, column, title=label if same else f"{label}, {one.samples}")
            canvas.panels[-1].height = max(bars.name_rows(axes, rows, canvas.width), 0.5)
            if column:
                axes.tick_params(axis="y", labelleft=False)
            up = one.higher[one.metrics.index(name)]
            bars.value_axis(axes, f"{name} ({'higher' if up else 'lower'} is better)" if not heading else name)
            _rows(axes, means, spans, [method in controls for method in methods], up=up)
            if column == 0:
                data |= {"values": means, "interval": spans}
            else:
                data[image_panels.unique(label or name, data)] = means
        return canvas.finish(data)


def _order(boards: list[Leaderboard], first: Leaderboard, metric: str) -> list[str]:
    first.of(first.methods[0], metric)  # refuses a metric that is not there, with those that are
    for other in boards[1:]:
        if set(other.methods) != set(first.methods):
            apart = sorted(set(other.methods) ^ set(first.methods))
            raise PlotError(f"the boards have different methods: {', '.join(map(repr, apart))} is not in each of them.")
    up = first.higher[first.metrics.index(metric)]
    return sorted(first.methods, key=lambda method: first.mean(method, metric), reverse=up)


def _numbers(board: Leaderboard, metric: str, methods: list[str]) -> tuple[Array, Array]:
    means = np.array([board.mean(method, metric) for method in methods])
    if not np.isfinite(means).all():
        raise PlotError(f"the means of {metric!r} are not all finite: {means.tolist()}.")
    return means, np.array([board.interval(method, metric) for method in methods])


def _rows(axes: Axes, means: Array, spans: Array, control: list[bool], *, up: bool) -> None:
    axes.grid(axis="y", color="#F2F2F2", linewidth=0.5)
    known = means[np.array(control)]
    if len(known):
        best = known.max() if up else known.min()
        axes.axvline(best, color=style.FAINT, linewidth=0.6, linestyle=(0, (4, 3)), zorder=1.5)
    for row, (mean, span, gray) in enumerate(zip(means, spans, control, strict=True)):
        color = style.FAINT if gray else style.COLORS[0]
        axes.plot(span, [row, row], color=color, linewidth=1.0)
        face = "white" if gray else color
        axes.plot(mean, row, color=color, marker="o", markersize=3.2, markerfacecolor=face, linestyle="none")
