"""How parts of a model add up to a score, in order of execution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerlens.results import Contributions

from .. import style
from ..drawing import attribution_sample, steps, table_rows
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(Contributions, kind="contributions", usual=True)
def contributions(
    found: Contributions,
    sample: int | None = None,
    *,
    count: int = 16,
    width: style.Width = "column",
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw the direct contributions as steps to the score: the inputs at the bottom, then the parts as they ran.

    Bars begin where the one below ends. What is small is one step, `others`, above the inputs, constants and what rules
    absorbed.

    Args:
        found: result of `contributions`.
        sample: which sample of the batch; None takes the mean.
        count: parts with a step of their own, those of the largest size.

    Returns:
        The plot; `data` holds `"items"` from the top, `"values"`, `"start"` and `"end"` of each step, and `"score"`.

    Raises:
        OptionError: if there is no such sample, or `count` is below 1.
        PlotError: if values are not finite.

    Example:
        >>> import torch
        >>> from layerlens.results import Entry, Ledger
        >>> amounts = {"part": 2.0, "input": 0.5, "additive": 0.5}
        >>> entries = tuple(Entry(kind, "", "x", torch.tensor([amount])) for kind, amount in amounts.items())
        >>> table = torch.tensor([[2.0]])
        >>> ledger = Ledger(torch.tensor([3.0]), entries)
        >>> found = Contributions(("mlp",), ("mlp",), ((),), table, table, ledger, "layer", "class 1", None, "", {})
        >>> contributions(found).data["items"]
        ['mlp', 'constants', 'inputs']
    """
    if sample is not None:
        sample = attribution_sample.sample_index(sample, len(found.score), "the table")
    values = finite_array(found.values("direct", sample), "the direct contributions")

    def amount(part: object) -> float:
        array = finite_array(part, "an amount of the ledger")
        return float(array.mean() if sample is None else array[sample])

    kept, others = table_rows.order(np.abs(values), count)
    rows = [(found.items[place], float(values[place])) for place in sorted(kept, reverse=True)]
    if others:
        rows.append((f"{len(others)} others", float(values[others].sum())))
    rest = (("absorbed", found.absorbed), ("constants", found.constants), ("inputs", found.inputs))
    rows += [(name, value) for name, part in rest if (value := amount(part)) or name == "inputs"]
    items, sizes, score = [name for name, _ in rows], np.array([value for _, value in rows]), amount(found.score)
    several = "" if len(found.score) == 1 else "mean of the batch, " if sample is None else f"sample {sample}, "
    shown = found.target if found.targets is None or sample is None else found.targets[sample]
    with Canvas(width=width, ax=ax) as canvas:
        note = f"{several}direct contributions; the line is the score, {style.number(score)}"
        canvas.title(title, f"{words(found.method)}, {shown}", note)
        axes = canvas.panel()
        height, start, end = steps.draw(axes, items, sizes, 0.0, score, "score", canvas.width)
        canvas.panels[-1].height = height
        return canvas.finish({"items": items, "values": sizes, "start": start, "end": end, "score": score})
