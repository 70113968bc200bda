"""The training samples that helped and harmed a prediction most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerlens.errors import check_count
from layerlens.results import Influence

from .. import style
from ..drawing import bars
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes


@figure(Influence, kind="influence", usual=True)
def influence(
    found: Influence,
    sample: int = 0,
    *,
    count: int = 8,
    width: style.Width = "column",
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw the most helpful and the most harmful training samples as bars, or those with the largest self influence.

    Args:
        found: influences of training samples.
        sample: explained sample, by its number.
        count: number of bars of each kind.
        title: None for the method and the sample, `""` for none.

    Returns:
        The plot; `data` holds `"index"` in the training data and `"values"`, from the top.

    Raises:
        OptionError: if there is no such sample, or `count` is below 1.
        PlotError: if a value is not finite.

    Example:
        >>> import torch
        >>> label = torch.tensor([0, 1, 1])
        >>> found = Influence(torch.tensor([[0.5, -2.0, 1.0]]), label, label[:1], False, "tracin", {})
        >>> influence(found, count=1).data["index"]
        [2, 1]
    """
    check_count("count", count)
    finite_array(found.values.double(), "the influence")
    shown = found.ranked(sample, count)
    if not found.itself:
        left = [pair for pair in found.ranked(sample, count, harmful=True) if pair not in shown]
        shown += left[::-1]
    values = np.array([value for _, value in shown])
    names = [f"#{index}, label {_text(found.labels[index])}" for index, _ in shown]
    of = "self influence" if found.itself else f"sample {sample}, label {_text(found.explained_labels[sample])}"
    with Canvas(width=width, ax=ax) as canvas:
        note = "" if found.itself else "right: lowers its loss; left: raises it"
        canvas.title(title, f"{words(found.method)}, {of}", note)
        axes = canvas.panel()
        canvas.panels[-1].height = bars.name_rows(axes, names, canvas.width)
        bars.draw(axes, values, colors=style.signed_colors(values))
        bars.value_axis(axes, "influence")
        return canvas.finish({"index": [index for index, _ in shown], "values": values})


def _text(label: torch.Tensor) -> str:
    return style.number(float(label)) if label.is_floating_point() else str(int(label))
