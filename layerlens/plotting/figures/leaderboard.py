"""Methods compared: means with their intervals, the best at the top."""

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
from ..words import words

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

    A dashed line goes through the best control: a method on its wrong side says less than a map that never saw the
    model. Several boards of the same methods (other data, another model) or several metrics are drawn side by side,
    with the methods in the order of the first panel.

    Args:
        board: leaderboard, or several with the same methods.
        metric: one or several metrics; None is the first.
        width: ... None is the page for several panels.
        title: None for the metric, `""` for none.
        labels: names of the panels; None for the target, or the metric.
        ax: axes to draw one panel into; None makes a figure.

    Returns:
        The plot; `data` holds `"methods"` best first and, for the first panel, `"values"` `(methods,)` and `"interval"`
        `(methods, 2)`; the values of further panels are under their names.

    Raises:
        OptionError: if there is no such metric, or several panels do not fit `ax`.
        PlotError: if this is not a leaderboard, the boards have different methods, or a mean is not finite.

    Example:
        >>> import torch
        >>> values = torch.rand(2, 1, 8).double()
        >>> board = Leaderboard(("gradient", "edges"), ("insertion",), values, (True,), ("edges",), "class 7", {})
        >>> sorted(leaderboard(board).data["methods"])
        ['edges', 'gradient']
    """
    boards = _boards(board)
    panels = _panels(boards, metric, labels)
    if ax is not None and len(panels) > 1:
        raise OptionError(f"ax= holds one panel, and there are {len(panels)}: leave it out, or draw one at a time.")
    methods = _order(boards, panels[0])
    controls = [name for name in methods if name in boards[0].controls]
    rows = [f"{words(name)}{' (control)' * (name in controls and 'control' not in name)}" for name in methods]
    data: dict[str, Any] = {"methods": methods}
    one_metric = len({panel.metric for panel in panels}) == 1
    one_size = len({one.samples for one in boards}) == 1
    with Canvas(width=width or ("column" if len(panels) == 1 else "page"), ax=ax) as canvas:
        canvas.title(title, panels[0].better(": ") if one_metric else "", _note(boards, bool(controls), one_size))
        for column, panel in enumerate(panels):
            means, intervals = _numbers(panel, methods)
            size = "" if one_size else f", {panel.board.samples}"
            axes = canvas.panel(0, column, title=f"{panel.title}{size}")
            canvas.panels[-1].height = max(bars.name_rows(axes, rows, canvas.width), 0.5)
            axes.tick_params(axis="y", labelleft=column == 0)
            bars.value_axis(axes, words(panel.metric) if one_metric else panel.better(" (") + ")")
            _rows(axes, means, intervals, np.isin(methods, controls), higher=panel.higher)
            if column:
                data[image_panels.unique_key(panel.key, data)] = means
            else:
                data |= {"values": means, "interval": intervals}
        return canvas.finish(data)


@dataclasses.dataclass(frozen=True)
class _Panel:
    """One metric of one board, with its title and its key in `Plot.data`."""

    board: Leaderboard
    metric: str
    title: str
    key: str

    @property
    def higher(self) -> bool:
        """Whether a larger value is better."""
        return self.board.higher[self.board.metrics.index(self.metric)]

    def better(self, between: str) -> str:
        """The metric, and which way is better."""
        return f"{words(self.metric)}{between}{'higher' if self.higher else 'lower'} is better"


def _boards(board: Leaderboard | Sequence[Leaderboard]) -> list[Leaderboard]:
    boards: list[Any] = list(board) if isinstance(board, (list, tuple)) else [board]
    wrong = [type(one).__name__ for one in boards if not isinstance(one, Leaderboard)]
    if wrong or not boards:
        raise PlotError(f"leaderboard draws one Leaderboard or more, not {f'a {wrong[0]}' if wrong else 'none'}.")
    return [dataclasses.replace(one, values=one.values.detach().double()) for one in boards]


def _panels(
    boards: list[Leaderboard], metric: str | Sequence[str] | None, labels: Sequence[str] | None
) -> list[_Panel]:
    names = [metric] if isinstance(metric, str) or metric is None else list(metric)
    pairs = [(one, one.metrics[0] if name is None else name) for one in boards for name in names]
    if not pairs or (labels is not None and len(labels) != len(pairs)):
        count = len(pairs if labels is None else labels)
        raise PlotError(f"{count} label(s) for {len(pairs)} panel(s); give one per board and metric.")
    for one, name in pairs[:1]:
        one.of(one.methods[0], name)  # refuses an unknown metric
    panels = []
    for place, (one, name) in enumerate(pairs):
        key = name if len(boards) == 1 else one.target
        shown = "" if len(pairs) == 1 else words(name) if len(boards) == 1 else one.target
        key, shown = (key, shown) if labels is None else (labels[place] or name, labels[place])
        panels.append(_Panel(one, name, shown, key or name))
    return panels


def _note(boards: list[Leaderboard], controls: bool, one_size: bool) -> str:
    contents = [boards[0].samples] if one_size else []
    contents += [boards[0].target] if len(boards) == 1 and boards[0].target else []
    notes = [", ".join(contents), "whiskers: 95 % intervals", "dashed: the best control" if controls else ""]
    return "; ".join(note for note in notes if note)


def _order(boards: list[Leaderboard], first: _Panel) -> list[str]:
    for other in boards[1:]:
        if set(other.methods) != set(first.board.methods):
            odd = sorted(set(other.methods) ^ set(first.board.methods))
            raise PlotError(f"the boards have different methods: {', '.join(map(repr, odd))} is not in each of them.")
    means = {method: first.board.mean(method, first.metric) for method in first.board.methods}
    return sorted(means, key=means.__getitem__, reverse=first.higher)


def _numbers(panel: _Panel, methods: list[str]) -> tuple[Array, Array]:
    means = np.array([panel.board.mean(method, panel.metric) for method in methods])
    if not np.isfinite(means).all():
        raise PlotError(f"the means of {panel.metric!r} are not all finite: {means.tolist()}.")
    return means, np.array([panel.board.interval(method, panel.metric) for method in methods])


def _rows(axes: Axes, means: Array, intervals: Array, control: Array, *, higher: bool) -> None:
    axes.grid(axis="y", color="#F2F2F2", linewidth=0.5)
    if control.any():
        best = means[control].max() if higher else means[control].min()
        axes.axvline(best, color=style.FAINT, linewidth=0.6, linestyle=(0, (4, 3)), zorder=1.5)
    for row, (mean, interval, gray) in enumerate(zip(means, intervals, control, strict=True)):
        color = style.FAINT if gray else style.COLORS[0]
        axes.plot(interval, [row, row], color=color, linewidth=1.0)
        face = "white" if gray else color
        axes.plot(mean, row, color=color, marker="o", markersize=3.2, markerfacecolor=face, linestyle="none")
