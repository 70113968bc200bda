"""What happened in each layer while a model was trained: layers against steps, under the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import TrainingHistory

from .. import style
from ..drawing import bars, matrix_cells, text
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array, Limits
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

MOST_LOGGED: Final = 3
LOGGED: Final = 0.5
"""Inches of height of a logged value."""
SPREAD: Final = 100.0
"""Largest over smallest logged value from which its axis is logarithmic."""
MARKS: Final[dict[str, dict[str, Any]]] = {
    "zero": {"facecolor": "#D55E00", "edgecolor": "white", "hatch": "....."},
    "infinite": {"facecolor": "black", "edgecolor": "white", "hatch": "xxxxx"},
    "NaN": {"facecolor": "white", "edgecolor": style.FAINT, "hatch": "//////"},
}
"""Cells that no color of the scale shows."""

LOGARITHMIC: Final = ("gradient norm", "update ratio", "weight norm", "activation std")
"""Quantities of which only positive values are expected; drawn on a log scale from one decade on."""
MOST_DECADES: Final = 8
"""Decades of a log scale, counted from its end."""


@figure(TrainingHistory, kind="training", usual=True)
def training(
    history: TrainingHistory,
    quantity: str | None = None,
    *,
    log: bool | None = None,
    logged: Sequence[str] | None = None,
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float | None = None,
    width: style.Width | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw a quantity of every layer over a training: layers from top to bottom, measured steps from left to right.

    Above are the numbers that the training loop logged, such as the loss, over the same steps. Cells without a color
    (NaN, infinity, and zero on a log scale) have their own marks, counted in the key. Steps at uneven distances are
    drawn equally wide, as a note says.

    Args:
        history: record of a training.
        quantity: one of the recorded quantities; None takes the gradient norm, or the first.
        log: whether colors are on a log scale; None for norms and ratios that span a decade.
        logged: logged values to draw above; None for the first three, `()` for none.
        cmap: matplotlib colormap; None is RdBu_r around zero for activation means and viridis for others.
        clip: ... None clips nothing.
        width: ... None is the page for more than 40 steps.
        title: None for quantity and method, `""` for none.
        labels: names of the rows instead of the layers' paths.
        ax: axes to draw the layers into, without logged values; None makes a figure.

    Returns:
        The plot; `data` holds `"values"` `(layers, steps)` unchanged, `"drawn"`, the cells of the figure, `"steps"`,
        and each logged value `(2, n)`, its steps and numbers.

    Raises:
        OptionError: for an unknown quantity, logged value, colormap or width, or a `vmax` or `clip` out of range.
        PlotError: if nothing was measured, names and layers do not agree in number, or a log scale is asked for values
            below zero.

    Example:
        >>> import torch
        >>> from layerlens import watch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with watch(net, optimizer, every=1) as watching:
        ...     for _ in range(4):
        ...         net(torch.ones(8, 4)).square().mean().backward()
        ...         optimizer.step()
        >>> training(watching.history, "activation mean").data["values"].shape
        (3, 4)
    """
    if not len(history):
        raise PlotError("no step of this training was measured: there is nothing to draw.")
    if quantity is None:
        quantity = "gradient norm" if "gradient norm" in history.values else next(iter(history.values))
    found = history.of(quantity)
    values: Array = found.values.detach().double().cpu().numpy()
    names = [text.printable(name) for name in (found.rows if labels is None else labels)]
    if len(names) != len(values) or not names:
        raise PlotError(f"{len(names)} labels for the {len(values)} layers of {quantity!r}; give one for each.")
    limits = _color_limits(values, quantity, signed=found.signed, log=log, vmax=vmax, clip=clip)
    curves = {} if ax is not None else _logged(history, logged)
    steps = history.steps.numpy()
    if width is None:
        width = "column" if len(steps) <= 40 else "page"
    with Canvas(width=width, ax=ax) as canvas:
        drawn, note = matrix_cells.pooled(values, canvas.width)
        uneven = "Columns are the measured steps, at uneven distances." if len(set(np.diff(steps))) > 1 else ""
        lost = [f"{name}: {count} not finite." for name, line in curves.items() if (count := _count_not_finite(line))]
        notes = " ".join(filter(None, (uneven, note, *lost)))
        canvas.title(title, f"{words(quantity)} of each layer, {found.method}", notes)
        for row, (name, line) in enumerate(curves.items()):
            _draw_logged(canvas.panel(row, height=LOGGED), name, line, steps)
        axes = canvas.panel(len(curves))
        across, high = _panel_size(canvas, names)
        canvas.panels[-1].height = high
        colors = style.colormap(cmap, signed=found.signed, unsigned="viridis")
        image, masks = _draw_cells(axes, drawn, values, limits, colors)
        matrix_cells.name_axes(
            axes, names, [str(step) for step in steps.tolist()], (high, across), ("", "measured step")
        )
        units = f" ({found.units})" if found.units not in ("", "1") else ""
        if limits is not None:
            label = f"{quantity}{units}"
            canvas.colorbar([axes], image, limits, bars.log_label(label) if limits.log else label, "right")
        if masks:
            canvas.legend(axes, masks)
        return canvas.finish({"values": values, "drawn": drawn, "steps": steps, **curves})


def _logged(history: TrainingHistory, names: Sequence[str] | None) -> dict[str, Array]:
    """Steps and numbers, `(2, n)`, of each logged value that is to be drawn."""
    chosen = list(history.logged)[:MOST_LOGGED] if names is None else [names] if isinstance(names, str) else names
    found = {name: history.logged[choose("logged value", name, history.logged)] for name in chosen}
    return {name: rows.reshape(-1, 2).T.double().numpy() for name, rows in found.items() if len(rows)}


def _count_not_finite(line: Array) -> int:
    return int((~np.isfinite(line[1])).sum())


def _draw_logged(axes: Axes, name: str, line: Array, steps: Array) -> None:
    """A logged value over the columns of the panel below; steps between two columns lie between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    at, values = line[0], np.where(np.isfinite(line[1]), line[1], np.nan)
    ends, places = steps.astype(np.float64), np.arange(len(steps), dtype=np.float64)
    if at.max() > ends[-1]:  # what was logged after the last measured step fills the rest of its cell
        ends, places = np.append(ends, at.max()), np.append(places, len(steps) - 0.5)
    alone = "o" if np.isfinite(values).sum() < 2 else None
    axes.plot(np.interp(at, ends, places), values, color=style.INK, linewidth=0.8, marker=alone, markersize=2)
    axes.set_xlim(-0.5, len(steps) - 0.5)
    known = values[np.isfinite(values)]
    if known.size and known.min() > 0 and known.max() >= SPREAD * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.5)
    shown = text.shorten(text.printable(name), style.TEXT, 2 * LOGGED)
    axes.set_ylabel(f"{shown}\nlog scale" if axes.get_yscale() == "log" else shown)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _panel_size(canvas: Canvas, names: list[str]) -> tuple[float, float]:
    """About how wide the panel will be, and how high it is to be, in inches."""
    if canvas.given is not None:
        return canvas.given.bbox.width / canvas.dpi, canvas.given.bbox.height / canvas.dpi
    across = max(canvas.width - min(text.widest(names, style.SMALL), 0.35 * canvas.width) - 0.8, 0.3)
    pitch = bars.PITCH if len(names) <= bars.MOST_WIDE else bars.DENSE
    return across, min(max(len(names) * pitch, 0.4), max(0.9 * canvas.width, 4.0))


def _draw_cells(
    axes: Axes, drawn: Array, values: Array, limits: Limits | None, colors: Colormap
) -> tuple[Any, list[Any]]:
    """Draw the cells; returns the image, for a colorbar, and the keys of the marks."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Patch

    log = limits is None or limits.log
    low, high = (1.0, 10.0) if limits is None else (limits.low, limits.high)
    norm = (LogNorm if log else Normalize)(low, high)
    hidden = {name: _cells_that_are(name, drawn) & (log or name != "zero") for name in MARKS}
    rows, columns = values.shape
    image = axes.imshow(
        np.ma.masked_array(drawn, np.logical_or.reduce(list(hidden.values()))), cmap=colors, norm=norm,
        interpolation="nearest", aspect="auto", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip
    keys = []
    for name, where in hidden.items():
        count = int(_cells_that_are(name, values).sum())
        if count and (log or name != "zero"):
            keys.append(Patch(linewidth=0, label=f"{name} ({count})", **MARKS[name]))
            _cover_cells(axes, where, values.shape, MARKS[name])
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    return image, keys


def _cells_that_are(name: str, values: Array) -> Array:
    found: Array = {"zero": values == 0, "infinite": np.isinf(values)}.get(name, np.isnan(values))
    return found


def _cover_cells(axes: Axes, where: Array, shape: tuple[int, ...], look: dict[str, Any]) -> None:
    """Cover cells by one patch, in the same look all over."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not where.any():
        return
    high, wide = shape[0] / where.shape[0], shape[1] / where.shape[1]
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)], dtype=np.float64)
    boxes = [corners * (wide, high) + (column * wide - 0.5, row * high - 0.5) for row, column in np.argwhere(where)]
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * len(boxes)
    axes.add_patch(PathPatch(Path(np.concatenate(boxes), codes), linewidth=0, **look))


def _color_limits(
    values: Array, quantity: str, *, signed: bool, log: bool | None, vmax: float | None, clip: float | None
) -> Limits | None:
    """The range of the colors; None where no value has a color.

    Args:
        values: any; those that are not finite, and on a log scale zeros, have no color.
        quantity: its name.
        signed: whether values are read as distances from zero to both sides.
        log: whether the scale is logarithmic; None for norms and ratios that span a decade.
        vmax: end of the scale; None fits the data.
        clip: percentile of |value| where colors saturate; None clips nothing.

    Raises:
        OptionError: when `vmax` or `clip` is out of range.
        PlotError: when a log scale is asked for values below zero.
    """
    percentile = 100.0 if clip is None else clip
    if not 0 < percentile <= 100:
        raise OptionError(f"clip={clip!r} is a percentile; give a number above 0 and at most 100.")
    if vmax is not None and not (math.isfinite(vmax) and vmax > 0):
        raise OptionError(f"vmax={vmax!r} is the largest value of the color scale; give a positive number.")
    known = values[np.isfinite(values)]
    positive = known[known > 0]
    if log and (known < 0).any():
        raise PlotError(
            f"{quantity!r} has values below zero (smallest {known.min():.3g}): no log scale. Use log=False."
        )
    if log is None:
        spans = bool(positive.size) and positive.max() >= 10 * positive.min()
        log = quantity in LOGARITHMIC and (spans or not positive.size)
    if log:
        return _log_limits(positive, vmax, percentile)
    if not known.size:
        return None
    low = float(known.min())
    if vmax is None and not (known.any() if signed else positive.size):  # one color: no constant unit anywhere
        return Limits(
            -1.0 if signed else 0.0, 1.0, False, "nothing above zero" if low < 0 else "zero everywhere", low < 0
        )
    shown = style.limits([known if signed else known.clip(0)], signed=signed, clip=percentile, vmax=vmax, what=quantity)
    if signed or low >= 0:
        return shown
    note = "; ".join(part for part in (shown.note, f"lowest {style.number(low)}") if part)
    return dataclasses.replace(shown, note=note, below=True)


def _log_limits(positive: Array, vmax: float | None, percentile: float) -> Limits | None:
    if not positive.size:
        return None
    largest, smallest = float(positive.max()), float(positive.min())
    high = float(np.percentile(positive, percentile)) if vmax is None else float(vmax)
    low = max(smallest, high * 10.0**-MOST_DECADES)
    if not low < high:
        low = high / 10
    notes = [f"clipped at {percentile:g}%"] if vmax is None and high < largest else []
    notes += [f"lowest {style.number(smallest)}"] if smallest < low else []
    return Limits(low, high, largest > high, "; ".join(notes), below=smallest < low, log=True)
