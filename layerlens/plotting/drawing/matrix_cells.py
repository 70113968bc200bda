"""Cells of a matrix: names of its rows and columns, numbers in the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from layerlens.errors import PlotError

from .. import style
from ..style import Array
from . import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

LONGEST_NAME: Final = 1.1
"""Inches of the name of a column."""
SHORTEST: Final = 0.25
"""Inches to which a text in a cell may be shortened, if it was asked for."""
LEGIBLE: Final = 0.33
"""Inches to which a text may be shortened so that it can still be known."""
LINE: Final = 1.2
"""Height of a line by the size of its letters."""
MOST_NUMBERS: Final = 5000
PER_INCH: Final = 80
"""Cells that an inch of figure shows; of more, neighbors are shown together."""
FEWEST_TOGETHER: Final = 200


def name_axes(
    axes: Axes, rows: list[str], columns: list[str], size: tuple[float, float], kinds: tuple[str, str]
) -> None:  # fmt: skip
    """Name rows and columns, as many as fit; long names lose what all begin with, then their middle.

    Args:
        axes: where.
        rows: their names.
        columns: their names.
        size: height and width of the panel, in inches.
        kinds: what rows and columns are.
    """
    line = style.SMALL * 1.25 / 72
    height, across = size
    limit = 0.35 * (across + 1.5)
    rows = text.unprefixed(rows, style.SMALL, limit)
    shown = range(0, len(rows), _round_step(line * len(rows) / height))
    axes.set_yticks(list(shown), [text.shorten(rows[row], style.SMALL, limit) for row in shown], fontsize=style.SMALL)
    columns = text.unprefixed(columns, style.SMALL, LONGEST_NAME)
    pitch = across / len(columns)
    lying = min(text.widest(columns, style.SMALL), LONGEST_NAME) + 0.05
    upright = lying > pitch and lying > 3 * line
    shown = range(0, len(columns), _round_step((line if upright else lying) / pitch))
    written = [text.shorten(columns[column], style.SMALL, LONGEST_NAME) for column in shown]
    axes.set_xticks(list(shown), written, fontsize=style.SMALL)
    axes.tick_params(axis="x", labelrotation=90 if upright else 0)
    axes.set_ylabel(kinds[0])
    axes.set_xlabel(kinds[1])


def _round_step(least: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ... that is not less."""
    tens = next(power for power in range(20) if 10 ** (power + 1) > least)
    return next(digit * int(10**tens) for digit in (1, 2, 5, 10) if digit * 10**tens >= least)


def pooled(values: Array, width: float) -> tuple[Array, str]:
    """Pool neighboring cells to what a figure can show, as the one farthest from zero; return them with a note.

    Args:
        values: `(rows, columns)`.
        width: width of the figure, in inches.
    """
    most, said = max(FEWEST_TOGETHER, int(PER_INCH * width)), []
    for axis, name in ((0, "rows"), (1, "columns")):
        count = values.shape[axis]
        each = -(-count // most)
        if each == 1:
            continue
        padding = [(0, 0), (0, 0)]
        padding[axis] = (0, -count % each)
        blocks = np.moveaxis(np.pad(values, padding, constant_values=np.nan), axis, -1)
        blocks = blocks.reshape(*blocks.shape[:-1], -1, each)
        place = np.where(np.isnan(blocks), -1, np.abs(blocks)).argmax(axis=-1)
        values = np.moveaxis(np.take_along_axis(blocks, place[..., None], axis=-1)[..., 0], -1, axis)
        said.append(f"{each} {name}")
    return values, f"each cell: {' x '.join(said)}, the value farthest from 0." if said else ""


def write_numbers(axes: Axes, image: AxesImage, values: Array, size: tuple[float, float], *, forced: bool) -> None:
    """Write the numbers into the cells; see `write_texts`."""
    write_texts(axes, image, values, _same_decimals(values), size, forced=forced, shortest=np.inf)


def legible(written: list[list[str]], size: tuple[float, float]) -> int:
    """How many columns of texts can be read in a panel of that height and width, in inches; 0 for none."""
    widest = max((text.width(one, style.SMALL) for row in written for one in row), default=0.0)
    high_enough = bool(written) and size[0] / len(written) >= style.SMALL * LINE / 72
    return int(size[1] / (min(widest, LEGIBLE) + 0.03)) if high_enough else 0


def write_texts(
    axes: Axes,
    image: AxesImage,
    values: Array,
    written: list[list[str]],
    size: tuple[float, float],
    *,
    forced: bool,
    shortest: float = SHORTEST,
) -> bool:
    """Write a text into each cell, dark on light and light on dark; return whether they fit.

    Args:
        axes: where.
        image: the cells as drawn.
        values: `(rows, columns)`; NaN is left out.
        written: the texts.
        size: height and width of the panel, in inches.
        forced: whether texts that do not fit are an error, rather than left out.
        shortest: inches to which a text may be shortened; infinite for numbers, which are whole or left out.

    Raises:
        PlotError: when they do not fit and are asked for.
    """
    height, across = size
    cell = across / values.shape[1], height / values.shape[0]
    fits = cell[1] >= style.SMALL * LINE / 72 and values.size <= MOST_NUMBERS
    widest = max((text.width(one, style.SMALL) for row in written for one in row), default=0.0) if fits else 0.0
    if not fits or min(widest, shortest) + 0.03 > cell[0]:
        if forced:
            raise PlotError(
                f"numbers do not fit into cells of {cell[0]:.2f} x {cell[1]:.2f} inches. Give a larger width= "
                "('page' is 6.75), fewer rows or columns, or annotate=False."
            )
        return False
    colors: Array = np.asarray(image.cmap(image.norm(values)))
    shades = colors[..., :3] @ np.array([0.2126, 0.7152, 0.0722])
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            shown = text.shorten(written[row][column], style.SMALL, cell[0] - 0.02)
            axes.text(
                column, row, shown, ha="center", va="center", fontsize=style.SMALL,
                color="white" if shades[row, column] < 0.45 else style.INK,
            )  # fmt: skip
    return True


def _same_decimals(values: Array) -> list[list[str]]:
    """All numbers with the same decimals, so that they compare at a glance; powers of ten where that takes too many."""
    sizes = np.abs(values[~np.isnan(values)])
    decimals = max(0, min(2, 2 - int(np.floor(np.log10(sizes.max() or 1.0)))))
    if not 0.1 <= (sizes.max() or 1.0) < 1e4:
        return [[style.number(float(value), 2) for value in row] for row in values]
    rounded = values.round(decimals) + 0.0  # no minus before a zero
    return [[f"{value:.{decimals}f}".replace("-", "−") for value in row] for row in rounded]
