"""Inputs made for units and classes: a row of pictures for each target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import FeatureVisualization

from .. import style
from ..drawing import bars, image_panels, images
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


@figure(FeatureVisualization, kind="images", usual=True)
def feature_visualization(
    made: FeatureVisualization,
    *,
    columns: int = 4,
    curve: bool = False,
    width: style.Width = "page",
    cmap: str | None = None,
    clip: float = 99.5,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw the inputs that were made: pictures, series as heat maps over time, vectors as bars.

    Copies of a target are drawn side by side; targets with one copy each fill rows. The score is above each picture.

    Args:
        made: the result.
        columns: panels in a row.
        curve: whether to draw the scores over the steps below.
        cmap: matplotlib colormap for series.
        title: None or `""` for none: the panels name their contents.
        labels: names of the targets; None takes their own.

    Returns:
        The plot; `data` holds each picture by `"class 3"`, `"class 3 #1"`, ..., and `"curve"` `(input, step)`.

    Raises:
        OptionError: if `columns` is below 1.
        PlotError: if the labels do not fit, or values cannot be drawn.

    Example:
        >>> import torch
        >>> axes = ("batch", "channel", "height", "width")
        >>> some = torch.rand(2, 3, 8, 8), axes, (0.0, 1.0), ("class 1", "class 5"), torch.rand(2, 4), torch.rand(2)
        >>> list(feature_visualization(FeatureVisualization(*some, "score", {})).data)
        ['class 1', 'class 5', 'curve']
    """
    if columns < 1:
        raise OptionError(f"columns={columns!r}; give 1 or more.")
    targets = list(dict.fromkeys(made.targets))
    if labels is not None and len(labels) != len(targets):
        raise PlotError(f"{len(labels)} labels for {len(targets)} targets; give one per target.")
    names = dict(zip(targets, targets if labels is None else labels, strict=True))
    copies = len(made) > len(targets)
    kind = made.axes[1:]
    values = images.finite_array(
        made.pictures() if kind == ("channel", "height", "width") else made.images, "the inputs that were made"
    )
    data: dict[str, Any] = {}
    with Canvas(width=width, fig=fig) as canvas:
        canvas.title(title, "", f"above each: the target and the {made.units} that it has")
        row, column, before = 0, -1, made.targets[0]
        for index, target in enumerate(made.targets):
            column += 1
            if column and (column == columns or (copies and target != before)):
                row, column = row + 1, 0
            if (copies and target != before) or not index:
                if copies:
                    canvas.header(row, names[target])
                before = target
            score = style.number(float(made.score[index]))
            line = score if copies else f"{names[target]}: {score}"
            data[image_panels.unique_key(names[target], data)] = _draw_input(
                canvas, row, column, values[index], kind, line, cmap, clip
            )
        data["curve"] = images.finite_array(made.curve, "the curve")
        if curve:
            _draw_scores(canvas, row + 1, data["curve"], [names[target] for target in made.targets])
        return canvas.finish(data)


def _draw_input(
    canvas: Canvas,
    row: int,
    column: int,
    values: Array,
    kind: tuple[str, ...],
    title: str,
    cmap: str | None,
    clip: float,
) -> Array:
    """Draw one input; return what was drawn.

    Raises:
        PlotError: if inputs with these axes have no figure.
    """
    if kind == ("channel", "height", "width") and values.shape[1] * values.shape[2] > 1:
        picture = np.moveaxis(values, 0, -1)
        shown = picture[..., :3] if len(values) in (3, 4) else picture.mean(axis=-1)
        if shown.min() < 0 or shown.max() > 1:
            shown = images.picture(values, "an input that was made", channels_first=True)
        image_panels.show_picture(canvas.panel(row, column, aspect=shown.shape[0] / shown.shape[1], title=title), shown)
        return shown
    if values.ndim == 2:
        shown = values.T if kind[0] in ("time", "length") else values  # places from left to right
        limits = style.limits([shown], signed=bool(shown.min() < 0), clip=clip, vmax=None, what="an input")
        axes = canvas.panel(row, column, height=min(max(0.06 * len(shown), 0.6), 1.4), title=title)
        colors = style.colormap(cmap, signed=limits.low < 0, unsigned="viridis")
        image = axes.imshow(
            shown, cmap=colors, vmin=limits.low, vmax=limits.high, interpolation="nearest", aspect="auto"
        )
        first = kind[0] in ("time", "length")
        axes.set_xlabel(kind[0] if first else kind[1])
        axes.set_ylabel(kind[1] if first else kind[0])
        axes.set_yticks([])
        canvas.colorbar([axes], image, limits, "value", "right")
        return shown
    if max(values.shape) != values.size:
        raise PlotError(f"inputs with axes {kind} have no figure; take a slice: made.images[0, :, 4].")
    axes = canvas.panel(row, column, height=0.8, title=title)
    bars.draw_upright(axes, values.ravel())
    axes.set_xlabel("feature")
    return values.ravel()


def _draw_scores(canvas: Canvas, row: int, curve: Array, names: Sequence[str]) -> None:
    axes: Axes = canvas.panel(row, 0, height=0.9, span=True)
    handles: list[Any] = []
    for index, (values, name) in enumerate(zip(curve, names, strict=True)):
        place = list(dict.fromkeys(names)).index(name)
        color, line = style.COLORS[place % len(style.COLORS)], style.LINES[place % len(style.LINES)]
        drawn = axes.plot(values, color=color, linestyle=line, linewidth=0.8, label=_shortened(name))
        handles += drawn if names.index(name) == index else []
    axes.set_xlabel("step")
    axes.set_ylabel("score")
    axes.set_xlim(0, max(curve.shape[1] - 1, 1))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if 1 < len(handles) <= len(style.COLORS):
        canvas.legend(axes, handles)


def _shortened(name: str) -> str:
    return name if len(name) <= 48 else f"{name[:47]}…"
