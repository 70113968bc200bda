"""Inputs before and after an attack, and what changed: a row for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import AdversarialExamples

from .. import style
from ..drawing import image_panels, images
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

COLUMNS = ("original", "changed", "change")


@figure(AdversarialExamples, kind="examples", usual=True)
def adversarial_examples(
    found: AdversarialExamples,
    *,
    sample: int | Sequence[int] | None = None,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    width: style.Width = "page",
    title: str | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw inputs before and after an attack, and the change: pictures, or lines for anything else.

    The change has its own scale, up to the largest |change| of all samples, which the note names; gray is none.

    Args:
        found: the result of `attack`.
        sample: sample by number, or a list of them; None draws the first four.
        class_names: names of the classes; None takes their numbers.

    Returns:
        The plot; `data` holds the values of the three panels by sample, `"sample 0"`.

    Raises:
        OptionError: if there is no such sample or input.
        PlotError: if values cannot be drawn.

    Example:
        >>> import torch
        >>> from layerlens import attack
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> list(adversarial_examples(attack(net, torch.rand(1, 1, 8, 8), eps=0.1)).data)
        ['sample 0']
    """
    rows = list(range(min(4, len(found)))) if sample is None else [sample] if isinstance(sample, int) else list(sample)
    if not rows or not all(-len(found) <= row < len(found) for row in rows):
        raise OptionError(f"sample={sample!r}: there are {len(found)} samples, 0 to {len(found) - 1}.")
    before, after, change = (_of_input(values, name) for values in (found.original, found.inputs, found.change))
    before, after, change = before[rows], after[rows], change[rows]
    largest = float(np.abs(change).max()) or 1.0
    low, high = float(min(before.min(), after.min())), float(max(before.max(), after.max()))
    pictures = _is_picture(before[0])
    data: dict[str, Any] = {}
    with Canvas(width=width, fig=fig) as canvas:
        canvas.title(title, found.method, f"largest change {style.number(largest)}{'; gray is none' * pictures}")
        for place, row in enumerate(rows):
            size = float(found.eps[row])
            eps = f"eps {style.number(size)}" if np.isfinite(size) else "not found"
            classes = [_answer(found, row, field, class_names) for field in ("before", "after")]
            canvas.header(place, f"{' to '.join(classes)}, {eps}")
            data[f"sample {row}"] = [before[place], after[place], change[place]]
            parts = before[place], after[place], change[place] / largest
            for column, values in enumerate(parts):
                own = (-1.0, 1.0) if column == 2 else (low, high)
                _draw(canvas, place, column, values, own, COLUMNS[column] if place == 0 else "")
        return canvas.finish(data)


def _of_input(values: Any, name: str | None) -> Array:
    """Return the values of one input as a float array.

    Raises:
        OptionError: when there is no such input, or several and none is named.
    """
    if isinstance(values, dict):
        if name not in values:
            raise OptionError(f"name={name!r}: the inputs are {', '.join(values)}; give one of them.")
        values = values[name]
    elif name is not None:
        raise OptionError(f"name={name!r}: there is one input, which has no name; leave it out.")
    return images.finite_array(values, "the inputs of an attack")


def _answer(found: AdversarialExamples, row: int, field: str, names: Sequence[str] | None) -> str:
    """Return a class by name or number, or a score.

    Raises:
        PlotError: when a class has no name.
    """
    value = getattr(found, field)[row]
    if value.is_floating_point():
        return style.number(float(value))
    number = int(value)
    if names is not None and number >= len(names):
        raise PlotError(f"class_names holds {len(names)} names, and a sample has class {number}.")
    return str(number) if names is None else str(names[number])


def _is_picture(values: Array) -> bool:
    return values.ndim == 3 and len(values) in (1, 3)


def _draw(canvas: Canvas, row: int, column: int, values: Array, limits: tuple[float, float], title: str) -> None:
    """Draw one input: a picture with channels first, or a line of its values."""
    low, high = limits
    if _is_picture(values):
        shown = np.moveaxis((values - low) / ((high - low) or 1), 0, -1)
        shown = shown[..., 0] if shown.shape[-1] == 1 else shown
        axes = canvas.panel(row, column, aspect=shown.shape[0] / shown.shape[1], title=title)
        image_panels.show_picture(axes, shown)
        return
    axes = canvas.panel(row, column, height=0.6, title=title)
    axes.plot(values.reshape(-1), color=style.COLORS[0], linewidth=0.8)
    margin = 0.05 * ((high - low) or 1)
    axes.set_ylim(low - margin, high + margin)
    image_panels.hide_ticks(axes)
