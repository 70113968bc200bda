"""The layers of a model as a tree, with a number for each."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import LayerProfile, LayerRow, LayerTable

from .. import style
from ..drawing import bars, text
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

NARROWEST: Final = 2.2
"""Inches of a column of the tree."""
INDENT: Final = "   "

Quantity = Literal["parameters", "time", "memory"]
OF_TABLE: Final[dict[str, str]] = {
    "parameters": "own parameters",
    "time": "share of the time in the layer itself",
    "memory": "output (MiB)",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the tree.

    Attributes:
        name: last part of the path.
        kind: the class.
        level: how deep.
        value: its number; NaN where it has none, see `known`.
        known: whether it has a number.
        path: path of the layer, with `#1` for its second call.
        below: numbers of the layers that are not drawn.
        hidden: how many those are.
    """

    name: str
    kind: str
    level: int
    value: float
    known: bool
    path: str
    below: tuple[float, ...] = ()
    hidden: int = 0


@figure(LayerTable, kind="map", usual=True)
def model_map(
    table: LayerTable,
    profile: LayerProfile | None = None,
    *,
    quantity: Quantity = "parameters",
    series: str | int = 0,
    depth: int | None = None,
    scale: Literal["linear", "log"] = "linear",
    width: style.Width = "page",
    vmax: float | None = None,
    title: str | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw the layers of a model as an indented tree, with a bar and a number for each.

    A long tree continues in further columns, as many as fit the width. A longer one is cut at the level that fits a
    page: a row then says how many layers it holds, and shows the number of each as a tick. `layer_profile` draws
    standard errors and nulls.

    Args:
        table: result of `lens.layers()`.
        profile: numbers of some layers or all; None takes `quantity` from the table.
        quantity: own `"parameters"` of a layer, share of `"time"` in the layer itself, or `"memory"` of its output.
        series: series of the profile.
        depth: levels below the model; None takes as many as fit a page.
        title: None for model, quantity and method, `""` for none.

    Returns:
        The plot; `data` holds `"paths"` and `"values"` of the rows, NaN for a row without a number.

    Raises:
        OptionError: for an unknown quantity, series, scale or width, or a depth below 1.
        PlotError: if a layer of the profile is not in the table, or there is no number to draw.

    Example:
        >>> import torch
        >>> from layerlens.results import LayerRow
        >>> rows = (LayerRow("", "Net", 1, "", 30, 0, None), LayerRow("conv", "Conv2d", 1, "", 30, 30, None))
        >>> norms = LayerProfile("norm", ("conv",), torch.tensor([2.0]), "1", False, "exact", {})
        >>> model_map(LayerTable("Net", rows), norms).data["paths"]
        ['', 'conv']
    """
    choose("scale", scale, ("linear", "log"))
    if depth is not None and depth < 1:
        raise OptionError(f"depth={depth!r} levels; give 1 or more, or None for as many as fit.")
    numbers, label, how = _numbers(table, profile, quantity, series)
    inches = style.inches(width)
    columns = max(1, int(inches / NARROWEST))
    full = int(bars.PAGE_FULL / bars.pitch_of(99))
    deepest = max((row.path.count(".") + 1 for row in table.rows if row.path), default=1)
    for level in [depth] if depth is not None else range(deepest, 0, -1):
        rows = _tree(table, numbers, level)
        if len(rows) <= full * columns:
            break
    columns = min(columns, math.ceil(len(rows) / full)) if len(rows) <= full * columns else columns
    parts = _columns(rows, math.ceil(len(rows) / columns))
    every = max(map(len, parts))
    shown = np.array([value for row in rows for value in (row.value, *row.below)])
    fits = np.isfinite(shown) & ((shown > 0) if scale == "log" else True)
    if not fits.any():
        raise PlotError(
            f"none of the {len(numbers)} numbers ({label}) can be shown on a {scale} scale. "
            + ("Use scale='linear'." if scale == "log" else "All are NaN or infinite.")
        )
    low, high = _axis_range(shown[fits], scale, vmax)
    with Canvas(width=width, fig=fig) as canvas:
        cut = any(row.hidden for row in rows)
        notes = ["ticks: the layers inside of a row that are not drawn"] * cut
        notes += [_why_empty(profile, quantity)] * any(not row.known and row.kind for row in rows)
        canvas.title(title, f"{table.model}: {label}{f', {how}' if how else ''}", "; ".join(notes))
        for column, part in enumerate(parts):
            axes = canvas.panel(0, column)
            canvas.panels[-1].height = bars.pitch_of(len(rows)) * max(every, 4)
            _draw_column(axes, part, every, canvas.width / len(parts), scale, low, high)
            bars.value_axis(axes, label, log=scale == "log")
            axes.set_xlim(low, high)
        return canvas.finish({"paths": [row.path for row in rows], "values": np.array([row.value for row in rows])})


def _why_empty(profile: LayerProfile | None, quantity: Quantity) -> str:
    """Why rows have no number."""
    if profile is not None:
        return "rows without a number: layers that were not measured"
    return {
        "parameters": "rows without a number: layers without parameters of their own",
        "time": "rows without a number: layers that did not run",
        "memory": "rows without a number: layers whose output is that of the layers inside, or that did not run",
    }[quantity]


def _columns(rows: list[Row], every: int) -> list[list[Row]]:
    """The rows in columns, each but the first under the name of the layer that it continues."""
    parts = [rows[start : start + every] for start in range(0, len(rows), every)]
    for part in parts[1:]:
        parent = part[0].path.rpartition(".")[0]
        if parent:
            part.insert(0, Row(f"… in {parent}", "", 0, math.nan, False, ""))
    return parts


def _axis_range(values: Array, scale: str, vmax: float | None) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max()) if vmax is None else vmax
    if scale == "log":
        return low / 2, max(high * 1.1, low)
    if low >= 0:
        return 0.0, (high or 1.0) * 1.03
    edge = 0.03 * (max(high, 0) - low)
    return low - edge, max(high, 0) + edge


def _draw_column(
    axes: Axes, rows: list[Row], every: int, across: float, scale: str, low: float, high: float
) -> None:  # fmt: skip
    """Names to the left, bars, and numbers to the right."""
    room = min(max(text.width(INDENT * row.level + _row_label(row), style.SMALL) for row in rows), 0.5 * across)
    names = [_fitted_label(row, room) for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=style.SMALL, ha="left")
    axes.tick_params(axis="y", length=0, pad=72 * room + 3)
    axes.set_ylim(every - 0.4, -0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if scale == "log":
        axes.set_xscale("log")
    values = np.array([row.value for row in rows])
    fits = np.isfinite(values) & ((values > 0) if scale == "log" else True)
    ends = np.clip(np.where(fits, values, low), low, high)
    base = low if scale == "log" else 0.0
    signed = any(value < 0 for row in rows for value in (row.value, *row.below)) or low < 0
    colors = style.signed_colors(np.nan_to_num(values)) if signed else style.COLORS[0]
    axes.barh(np.arange(len(rows)), np.where(fits, ends - base, 0), left=base, height=0.72, color=colors, linewidth=0)
    for place, row in enumerate(rows):
        inside = [value for value in row.below if low <= value <= high]
        if inside:
            axes.plot(inside, [place] * len(inside), "|", color=style.INK, markersize=4.5, markeredgewidth=0.5)
        if row.known:
            lost = not fits[place]
            written = "NaN" if math.isnan(row.value) else style.number(row.value).replace("inf", "infinite")
            axes.annotate(
                written, (1, place), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points",
                va="center_baseline", ha="left", fontsize=style.SMALL, color=style.COLORS[1] if lost else style.INK,
            )  # fmt: skip


def _row_label(row: Row) -> str:
    inside = f" ({row.hidden} layers)" if row.hidden else ""
    return f"{row.name}{f'  {row.kind}' if row.kind else ''}{inside}"


def _fitted_label(row: Row, room: float) -> str:
    """The name of a row, with its class where there is room for both."""
    for name in (_row_label(row), _row_label(dataclasses.replace(row, kind=""))):
        if text.width(INDENT * row.level + name, style.SMALL) <= room:
            return INDENT * row.level + name
    return INDENT * row.level + text.shorten(
        name, style.SMALL, max(room - text.width(INDENT * row.level, style.SMALL), 0.2)
    )


def _numbers(
    table: LayerTable, profile: LayerProfile | None, quantity: Quantity, series: str | int
) -> tuple[dict[str, float], str, str]:
    """Return path (with `#1` for a second call) -> number, what the number is, and how it was measured.

    Raises:
        OptionError: if there is no such quantity or series.
        PlotError: if there is no number, or a layer is not in the table.
    """
    if profile is None:
        choose("quantity", quantity, OF_TABLE)
        found = {row.path: number for row in table.rows if (number := _number(row, quantity)) is not None}
        if not found:
            remedy = "; it is known after a run: lens.layers(x)" if quantity != "parameters" else ""
            raise PlotError(f"no layer of {table.model} has a number of {quantity}{remedy}.")
        return found, OF_TABLE[quantity], ""
    if not isinstance(profile, LayerProfile):
        raise PlotError(f"the numbers of a model_map come from a LayerProfile, not a {type(profile).__name__}.")
    values = profile.values.detach().double().cpu().reshape(len(profile.layers), -1)
    if isinstance(series, str):
        series = profile.series.index(choose("series", series, profile.series))
    if not -values.shape[1] <= series < values.shape[1]:
        raise OptionError(f"series={series}, but the profile holds {values.shape[1]} (0 to {values.shape[1] - 1}).")
    paths = {row.path for row in table.rows}
    named = ["" if name == "(model)" else name for name in profile.layers]
    strange = [name for name in named if name.split(" #")[0] not in paths]
    if strange:
        raise PlotError(
            f"{len(strange)} of the {len(named)} layers of the profile are not in {table.model}: "
            f"{', '.join(strange[:3])}. Give the table of the same model, or draw the profile: layer_profile."
        )
    what = f"{profile.quantity}, {profile.series[series]}" if profile.series else profile.quantity
    label = f"{what} ({profile.units})" if profile.units not in ("", "1") else what
    return dict(zip(named, values[:, series].tolist(), strict=True)), label, profile.method


def _number(row: LayerRow, quantity: str) -> float | None:
    if quantity == "parameters":
        return float(row.own) if row.own else None
    if quantity == "time":
        return row.share if row.calls else None
    return None if row.activation is None else row.activation / 2**20


def _tree(table: LayerTable, numbers: dict[str, float], depth: int) -> list[Row]:
    """The rows down to a level; those at it hold the numbers of all below them."""
    rows: list[Row] = []
    for row in table.rows:
        level = row.path.count(".") + 1 if row.path else 0
        calls = [path for path in (row.path, *_further_calls(row.path, numbers)) if path in numbers]
        if level > depth:
            below = (*rows[-1].below, *(numbers[path] for path in calls))
            rows[-1] = dataclasses.replace(rows[-1], below=below, hidden=rows[-1].hidden + 1)
            continue
        name = row.path.rpartition(".")[2] or "(model)"
        value = numbers.get(row.path, math.nan)
        rows.append(Row(name, row.type, level, value, row.path in numbers, row.path))
        for path in calls:
            if path != row.path:
                rows.append(Row(path.rpartition(" ")[2], "", level + 1, numbers[path], True, path))
    return rows


def _further_calls(path: str, numbers: dict[str, float]) -> list[str]:
    """The further calls of a layer that have numbers."""
    found, call = [], 1
    while f"{path} #{call}" in numbers:
        found.append(f"{path} #{call}")
        call += 1
    return found
