"""The features of one sample of a table, sorted, with their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerlens.results import Attribution

from .. import style
from ..drawing import attribution_sample, bars, intervals, table_rows
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(Attribution, kind="bars")
@each_sample(lambda one: len(one.score))
def feature_bars(
    attribution: Attribution,
    sample: Which = None,
    *,
    count: int = 15,
    name: str | None = None,
    width: style.Width = "column",
    vmax: float | None = None,
    interval: float | None = 0.9,
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw the features of one sample of a table as bars with their names and values, the largest at the top.

    Where values have an error, lines show the intervals, and bars whose interval includes 0 are hatched.

    Args:
        attribution: values `(batch, feature)`.
        count: features with a bar of their own; the others are added up in one row.
        title: None for the method and the target, `""` for none.

    Returns:
        The plot; `data` holds `"items"` and `"values"` in the order drawn.

    Raises:
        OptionError: if there is no such sample or input name, or `count` is below 1.
        PlotError: if this is not the attribution of a table, or values are not finite.

    Example:
        >>> import torch
        >>> x = torch.tensor([[45.0, 21.5]])
        >>> found = Attribution(x * 0.1, None, True, "score", "price", "kernel_shap", {}, torch.ones(1), inputs=x)
        >>> feature_bars(found.named(["age", "bmi"])).data["items"]
        ['age = 45', 'bmi = 21.5']
    """
    table = table_rows.read(attribution, name, interval)
    row = attribution_sample.sample_index(sample, len(table.values), "the table")
    kept, others = table_rows.order(np.abs(table.values[row]), count)
    items = [table_rows.named(table, row, feature) for feature in kept]
    values, widths = table.values[row][kept], None if table.widths is None else table.widths[row][kept]
    if others:
        items.append(f"{len(others)} weaker, sum")
        values = np.append(values, table.values[row][others].sum())
        widths = None if widths is None else np.append(widths, [[np.nan, np.nan]], axis=0)
    with Canvas(width=width, ax=ax) as canvas:
        marks = intervals.note("hatched", [intervals.unsettled(values, widths)], interval)
        canvas.title(title, f"{words(attribution.how)}, {attribution.target_of(row)}", "; ".join(marks))
        axes = canvas.panel()
        canvas.panels[-1].height = bars.name_rows(axes, items, canvas.width)
        bars.draw(axes, values, colors=style.signed_colors(values), widths=widths)
        bars.value_axis(axes, attribution.units)
        if vmax is not None:
            axes.set_xlim(-vmax if attribution.signed else 0, vmax)
        most = 1.03 * float(np.abs(values).max())
        canvas.place.scales.append(style.Limits(-most, most, False, ""))
        return canvas.finish({"items": items, "values": values})
