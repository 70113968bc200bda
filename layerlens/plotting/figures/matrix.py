"""One number for every pair of a row and a column, as colors: layers against layers, layers against positions."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import Generation, LogitLens, Matrix

from .. import style
from ..drawing import bars, matrix_cells, text, token_text
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure, through
from ..style import Array, Limits
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

BAR_NUMBERS: Final = 0.25
"""Inches that the numbers of a colorbar may take of the panel beyond what is reckoned with."""


@figure(Matrix, kind="matrix", usual=True)
def matrix(
    found: Matrix,
    *,
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float | None = None,
    annotate: bool | Literal["auto"] = "auto",
    width: style.Width | None = None,
    title: str | None = None,
    labels: tuple[Sequence[str], Sequence[str]] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw a matrix in colors, the first row at the top.

    The cells of a `LogitLens` hold the likeliest token there; of more positions than can be read, the last are drawn,
    as a note says. Cells without a number (NaN) are hatched. Names are thinned where they would touch. Of more cells
    than the figure can show, neighbors are drawn together, as the one farthest from zero; a note says so.

    Args:
        found: values `(rows, columns)`.
        cmap: matplotlib colormap; None is RdBu_r around zero for signed values and viridis for others.
        clip: ... None clips nothing.
        annotate: whether to write numbers, or tokens, into the cells; `"auto"` if they fit.
        width: ... None is the page for more than 40 columns, and for tokens.
        title: None for the method, `""` for none.
        labels: names of the rows and names of the columns.

    Returns:
        The plot; `data` holds `"values"` unchanged, and `"drawn"`, the cells of the figure.

    Raises:
        OptionError: for a `vmax`, `clip`, `annotate`, colormap or width that does not exist.
        PlotError: if there is no number to draw, one is infinite, names and values do not agree in number, or numbers
            that were asked for do not fit.

    Example:
        >>> import torch
        >>> cka = Matrix("CKA", ("a", "b"), ("a", "b"), torch.eye(2), ("layer", "layer"), "1", False, "linear", {})
        >>> matrix(cka).data["values"].shape
        (2, 2)
    """
    if annotate is not True and annotate is not False:
        choose("annotate", annotate, ("auto",))
    every = values = _values(found)
    rows, columns = _names(found, values.shape, labels)
    if width is None:
        width = "page" if values.shape[1] > 40 or isinstance(found, LogitLens) else "column"
    best = _likeliest(found) if isinstance(found, LogitLens) and annotate is not False else []
    with Canvas(width=width, ax=ax) as canvas:
        said = [_chance_note(found)]
        across, height = _panel_size(canvas, found, values.shape, rows)
        inside = across if canvas.given is not None else max(across - BAR_NUMBERS, 0.1)
        room = matrix_cells.legible(best, (height, inside))
        if annotate == "auto" and 0 < room < len(columns):
            said += [f"The last {room} of {len(columns)} {found.axes[1]}s; annotate=False draws all."]
            values, columns, best = values[:, -room:], columns[-room:], [row[-room:] for row in best]
        limits = _limits(values, found, clip, vmax)
        drawn, note = matrix_cells.pooled(values, canvas.width)
        said += [note]
        axes = canvas.panel()
        canvas.panels[-1].height = height
        image = _draw_cells(
            axes, drawn, values.shape, limits, style.colormap(cmap, signed=found.signed, unsigned="viridis")
        )
        matrix_cells.name_axes(axes, rows, columns, (height, across), found.axes)
        if best:
            fits = matrix_cells.write_texts(axes, image, values, best, (height, inside), forced=annotate is True)
            said += ["In each cell: the likeliest token." if fits else "Tokens do not fit: width=, or fewer layers=."]
        elif annotate is not False:
            matrix_cells.write_numbers(axes, image, values, (height, across), forced=annotate is True)
        canvas.title(title, words(found.method), " ".join(part for part in said if part))
        units = f" ({found.units})" if found.units not in ("", "1") else ""
        canvas.colorbar([axes], image, limits, f"{found.quantity}{units}", "right")
        if np.isnan(values).any():
            canvas.legend(axes, [_hatched_patch(label="no number (NaN)")])
        return canvas.finish({"values": every, "drawn": drawn})


def _likeliest(found: LogitLens) -> list[list[str]]:
    return [[token_text.spelled(_unquoted(found.name(one))) for one in row] for row in found.top[:, :, 0].tolist()]


def _unquoted(name: str) -> str:
    """The text of a token that is named with its quotes."""
    with contextlib.suppress(ValueError, SyntaxError):
        return str(ast.literal_eval(name)) if name[:1] in ("'", '"') else name
    return name


def _values(found: Matrix) -> Array:
    finite_array(found.values.nan_to_num(), f"the matrix of {found.quantity!r}")  # only the type: NaN is drawn
    values: Array = found.values.detach().double().cpu().numpy()
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise PlotError(
            f"the matrix of {found.quantity!r} is infinite at {infinite} of {values.size} places, which no color "
            "shows. Find where that arises, or make them NaN, which is drawn hatched."
        )
    if np.isnan(values).all():
        raise PlotError(f"all {values.size} values of the matrix of {found.quantity!r} are NaN: nothing to draw.")
    return values


def _names(
    found: Matrix, shape: tuple[int, ...], labels: tuple[Sequence[str], Sequence[str]] | None
) -> tuple[list[str], list[str]]:
    if labels is not None and (isinstance(labels, str) or len(labels) != 2):
        raise PlotError("labels= of a matrix are two: the names of the rows, and the names of the columns.")
    rows, columns = (found.rows, found.columns) if labels is None else labels
    if shape != (len(rows), len(columns)):
        raise PlotError(
            f"the matrix of {found.quantity!r} has values of shape {shape} for {len(rows)} names of rows and "
            f"{len(columns)} of columns; they must agree."
        )
    return [text.printable(name) for name in rows], [text.printable(name) for name in columns]


def _limits(values: Array, found: Matrix, clip: float | None, vmax: float | None) -> Limits:
    known = values[~np.isnan(values)]
    what = f"the matrix of {found.quantity!r}"
    if not known.any() and vmax is None:
        raise PlotError(f"{what} is zero everywhere: no scale follows from it. Give vmax= to draw the zeros.")
    percentile = 100.0 if clip is None else clip
    low, high = float(known.min()), float(known.max())
    if found.signed or low >= 0:
        return style.limits([known], signed=found.signed, clip=percentile, vmax=vmax, what=what)
    # unsigned, and yet below zero: an estimate about zero, such as debiased CKA, or a logarithm
    if vmax is not None or -low < 0.1 * high:
        above = style.limits([known.clip(0)], signed=False, clip=percentile, vmax=vmax, what=what)
        note = "; ".join(part for part in (above.note, f"lowest {style.number(low)}") if part)
        return Limits(0.0, above.high, above.clipped, note, below=True)
    if not 0 < percentile <= 100:
        raise OptionError(f"clip={clip!r} is a percentile; give a number above 0 and at most 100.")
    floor = float(np.percentile(known, 100 - percentile))
    note = f"clipped at {percentile:g}%" if floor > low else ""
    return Limits(floor, high if high > floor else 0.0, False, note, below=floor > low)


def _chance_note(found: Matrix) -> str:
    """What is known of chance and of the error, in words: a cell has one color."""
    said = []
    for part, name in ((found.null, "chance"), (found.error, "standard error")):
        known = None if part is None else part[~part.isnan()]
        if known is None or not known.numel():
            continue
        low, high = style.number(float(known.min()), 2), style.number(float(known.max()), 2)
        said.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return f"{'; '.join(said)}." if said else ""


def _panel_size(canvas: Canvas, found: Matrix, shape: tuple[int, ...], rows: list[str]) -> tuple[float, float]:
    """About how wide the panel will be, and how high it is to be, in inches."""
    if canvas.given is not None:
        return canvas.given.bbox.width / canvas.dpi, canvas.given.bbox.height / canvas.dpi
    names = min(text.widest(rows, style.SMALL), 0.35 * canvas.width)
    across = max(canvas.width - names - 0.8, 0.3)
    if found.axes[0] == found.axes[1]:
        return across, min(max(across * shape[0] / shape[1], 0.15), bars.PAGE_FULL)
    pitch = min(max(0.5 * across / shape[1], bars.pitch_of(1)), 0.25) if shape[0] <= 40 else bars.pitch_of(shape[0])
    return across, min(max(shape[0] * pitch, 0.3), max(0.65 * canvas.width, 4.0))


def _draw_cells(axes: Axes, drawn: Array, shape: tuple[int, ...], limits: Limits, colors: Colormap) -> AxesImage:
    if np.isnan(drawn).any():
        axes.add_patch(_hatched_patch(xy=(0, 0), width=1, height=1, transform=axes.transAxes, zorder=0))
    rows, columns = shape
    image = axes.imshow(
        np.ma.masked_invalid(drawn), cmap=colors, vmin=limits.low, vmax=limits.high, interpolation="nearest",
        aspect="auto", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    return image


def _hatched_patch(**options: Any) -> Any:
    from matplotlib.patches import Patch, Rectangle

    kind = Rectangle if "xy" in options else Patch
    return kind(facecolor="white", edgecolor=style.FAINT, hatch="//////", linewidth=0, **options)


def _lens_of(found: Generation) -> LogitLens:
    """The logit lens of the steps.

    Raises:
        PlotError: if it was not recorded.
    """
    if found.logit_lens is None:
        raise PlotError('no logit lens was recorded: lens.generate(prompt, record="logit_lens").')
    return found.logit_lens


figure(Generation, kind="considered", usual=True)(through(Generation.considered, matrix))
figure(Generation, kind="sources")(through(Generation.sources, matrix))
figure(Generation, kind="logit_lens")(through(_lens_of, matrix))
