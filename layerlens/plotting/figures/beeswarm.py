"""The values of every feature of a table over many samples: a point for each sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.results import Attribution

from .. import style
from ..drawing import bars, intervals, table_rows
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array, Limits
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW: Final = 0.24
"""Inches of a feature."""
ENDS: Final = (5, 95)
"""Percentiles of a feature at the ends of its colors."""


@figure(Attribution, kind="beeswarm")
def beeswarm(
    attribution: Attribution,
    *,
    count: int = 15,
    name: str | None = None,
    width: style.Width = "page",
    cmap: str | None = None,
    interval: float | None = 0.9,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw the attribution of a table: a row for each feature, the most important at the top, a point for each sample.

    Rows are in the order of mean |value|. Points are colored by the feature itself, each feature from its 5th to its
    95th percentile; they are gray if the inputs are not kept, or the feature is the same everywhere. The last row is
    the sum of the other features, sample by sample. Where values have an error, points whose interval includes 0 are
    hollow.

    Args:
        attribution: values `(batch, feature)`.
        count: features with a row of their own.
        cmap: matplotlib colormap; None is viridis.
        title: None for the method and the target, `""` for none.

    Returns:
        The plot; `data` holds `"items"`, `"values"` `(items, batch)` and `"mean"`, their mean |value|.

    Raises:
        OptionError: if there is no such input name or colormap, or `count` is below 1.
        PlotError: if this is not the attribution of a table, or values are not finite.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.5, -1.0], [0.1, 2.0]])
        >>> found = Attribution(values, None, True, "score", "price", "kernel_shap", {}, torch.ones(2))
        >>> beeswarm(found.named(["age", "bmi"])).data["items"]
        ['bmi', 'age']
    """
    table = table_rows.read(attribution, name, interval)
    kept, others = table_rows.order(np.abs(table.values).mean(axis=0), count)
    rows = [table.values[:, feature] for feature in kept]
    items = [table.names[feature] for feature in kept]
    if others:
        rows.append(table.values[:, others].sum(axis=1))
        items.append(f"{len(others)} others, sum")
    unsettled = intervals.unsettled(table.values, table.widths)
    low, high = min(float(row.min()) for row in rows), max(float(row.max()) for row in rows)
    colors = style.colormap(cmap, signed=False, unsigned="viridis")
    with Canvas(width=width, ax=ax) as canvas:
        samples = f"{len(table.values)} sample{'s' * (len(table.values) != 1)}"
        marks = intervals.note("hollow", [None if unsettled is None else unsettled[:, kept]], interval)
        canvas.title(title, f"{words(attribution.how)}, {attribution.target}", "; ".join([samples, *marks]))
        axes = canvas.panel()
        canvas.panels[-1].height = max(bars.name_rows(axes, items, canvas.width), ROW * len(items))
        bars.value_axis(axes, attribution.units)
        for place, values in enumerate(rows):
            shares = _shares(table.inputs, kept[place]) if place < len(kept) else None
            hollow = unsettled[:, kept[place]] if unsettled is not None and place < len(kept) else None
            table_rows.draw_points(
                axes, values, place + 0.38 * table_rows.spread(values, low, high), size=5, hollow=hollow,
                colors=style.FAINT if shares is None else colors(shares),
            )  # fmt: skip
        if colorbar and table.inputs is not None:
            _colorbar(canvas, axes, colors)
        means = np.array([np.abs(row).mean() for row in rows])
        return canvas.finish({"items": items, "values": np.stack(rows), "mean": means})


def _shares(inputs: Array | None, feature: int) -> Array | None:
    """Where each sample lies between the ends of a feature, 0 to 1; None for a feature that is the same everywhere."""
    if inputs is None:
        return None
    low, high = np.percentile(inputs[:, feature], ENDS)
    if low == high:  # such as a rare category
        low, high = inputs[:, feature].min(), inputs[:, feature].max()
    return None if low == high else np.clip((inputs[:, feature] - low) / (high - low), 0, 1)


def _colorbar(canvas: Canvas, axes: Axes, colors: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    limits = Limits(*ENDS, False, "")
    label = "percentile of the feature"
    canvas.colorbar([axes], ScalarMappable(Normalize(*ENDS), colors), limits, label, "right")
