"""From the base value to the score of one sample of a table, a step for each feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerlens.results import Attribution

from .. import style
from ..drawing import attribution_sample, intervals, steps as steps_from, table_rows
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(Attribution, kind="waterfall")
@each_sample(lambda one: len(one.score))
def waterfall(
    attribution: Attribution,
    sample: Which = None,
    *,
    count: int = 10,
    name: str | None = None,
    width: style.Width = "column",
    interval: float | None = 0.9,
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw how the features of one sample of a table add up to its score, the largest step at the top.

    Bars begin where the one below ends: from the base value at the bottom, which is the score minus all values, to the
    score at the top. Of a complete method, such as a Shapley value, the base value is the score of the baseline.
    Where values have an error, steps whose interval includes 0 are hatched.

    Args:
        attribution: values `(batch, feature)`.
        count: features with a step of their own; the others are one step, at the bottom.
        title: None for the method and the target, `""` for none.

    Returns:
        The plot; `data` holds `"items"` from the top, `"values"`, `"start"` and `"end"` of each step, `"base"` and
        `"score"`.

    Raises:
        OptionError: if there is no such sample or input name, or `count` is below 1.
        PlotError: if this is not the attribution of a table, or values are not finite.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.5, -1.0]])
        >>> found = Attribution(values, None, True, "score", "price", "kernel_shap", {}, torch.ones(1))
        >>> waterfall(found).data["base"]
        1.5
    """
    table = table_rows.read(attribution, name, interval)
    row = attribution_sample.sample_index(sample, len(table.values), "the table")
    values = table.values[row]
    kept, others = table_rows.order(np.abs(values), count)
    items = [table_rows.named(table, row, feature) for feature in kept]
    steps = values[kept]
    unsettled = None if table.widths is None else intervals.unsettled(steps, table.widths[row][kept])
    if others:
        items.append(f"{len(others)} others")
        steps = np.append(steps, values[others].sum())
        unsettled = None if unsettled is None else np.append(unsettled, False)
    score = float(attribution.score[row])
    base = score - float(values.sum())
    with Canvas(width=width, ax=ax) as canvas:
        sums = f"base {style.number(base)} + values {style.number(float(values.sum()))} = score {style.number(score)}"
        marks = intervals.note("hatched step", [unsettled], interval)
        canvas.title(title, f"{words(attribution.how)}, {attribution.target_of(row)}", "; ".join([sums, *marks]))
        axes = canvas.panel()
        height, start, end = steps_from.draw(
            axes, items, steps, base, score, attribution.units, canvas.width, hatched=unsettled
        )
        canvas.panels[-1].height = height
        return canvas.finish(
            {"items": items, "values": steps, "start": start, "end": end, "base": base, "score": score}
        )
