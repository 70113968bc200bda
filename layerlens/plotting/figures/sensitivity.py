"""Items in order: what matters most, how sure that is, and what chance gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import Attribution, Ranking, importance
from layerlens.signatures import public

from .. import style
from ..drawing import bars, images, text
from ..drawing.canvas import Canvas
from ..plot import Plot, figure, through
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SERIES: Final = 6
CHANCE: Final = style.INK


@figure(Ranking, kind="sensitivity", usual=True)
@public(renamed={"most": "count"})
def sensitivity(
    ranking: Ranking,
    *,
    series: str | int | Sequence[str | int] | None = None,
    count: int | None = 20,
    width: style.Width | None = None,
    vmax: float | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw a ranking: a row for each item, the largest at the top, a dot at its value.

    Signed values are ordered by size; of several series the largest counts. Lines through the dots are 95 % intervals
    or, if the ranking has none, one standard error to each side: the key says which. Chance is a dashed line if it is
    the same for all items, else an upright mark in each row. The last row says what was left out.

    Args:
        ranking: values `(items,)` or `(items, series)`.
        series: series to draw, by name or number; None draws all, at most 6.
        count: number of items; None for all.
        width: ... None is the column unless the names are long.
        vmax: ... Values beyond it are written at the edge.
        title: None for the method, `""` for none.
        labels: names of the items, in the order of `ranking.items`.

    Returns:
        The plot; `data` holds `"items"` in the order drawn, `"values"` `(items, series)` and, if known, `"interval"`
        `(items, series, 2)`, `"error"` and `"null"`.

    Raises:
        OptionError: if there is no such series, or `count`, `vmax` or `width` is out of range.
        PlotError: if no value is finite, or the sizes do not agree.

    Example:
        >>> import torch
        >>> drops = Ranking("drop", ("age", "sex"), torch.tensor([0.1, 0.4]), "score", True, "ablation", {})
        >>> sensitivity(drops).data["items"]
        ['sex', 'age']
    """
    if count is not None and count < 1:
        raise OptionError(f"count={count!r} items; give 1 or more, or None for all.")
    if vmax is not None and not (np.isfinite(vmax) and vmax > 0):
        raise OptionError(f"vmax={vmax!r} is the end of the axis; give a positive number.")
    chosen, drawn = _series(ranking, series)
    full = _read(ranking, chosen, labels)
    order, rest = _chosen_rows(full["values"], ranking.signed, count)
    names = [text.printable(name) for name in (ranking.items if labels is None else labels)]
    data: dict[str, Any] = {name: part[order] for name, part in full.items()}
    data = {"items": [(ranking.items if labels is None else labels)[row] for row in order], **data}
    rows = [names[row] for row in order]
    if width is None:
        width = "column" if bars.room_for_names(rows, 99) < 0.4 * style.WIDTHS["column"] else "page"
    with Canvas(width=width, ax=ax) as canvas:
        canvas.title(title, words(ranking.method))
        axes = canvas.panel()
        high = bars.name_rows(axes, rows, canvas.width)
        if rest:
            high *= 1 + 1 / len(rows)
            axes.set_ylim(len(rows) + 0.5, -0.6)
        crowded = max(1.0, 0.55 * len(chosen)) if high < bars.PAGE_FULL / 2 else 1.0
        canvas.panels[-1].height = max(min(high * crowded, bars.PAGE_FULL), 0.4)
        units = f" ({ranking.units})" if ranking.units not in ("", "1") else ""
        bars.value_axis(axes, f"{ranking.quantity}{units}")
        axes.set_xlim(*_axis_range(data, ranking.signed, vmax))
        handles = _draw(axes, data, drawn, ranking.signed)
        if rest:
            _write_rest(axes, len(rows), full["values"][rest], ranking.signed)
        if handles:
            canvas.legend(axes, handles)
        return canvas.finish(data)


def _series(ranking: Ranking, series: str | int | Sequence[str | int] | None) -> tuple[list[int], list[str]]:
    """Numbers and names of the series to draw.

    Raises:
        PlotError: if there are none, or too many.
    """
    count = ranking.values.reshape(len(ranking.items), -1).shape[1] if len(ranking.items) else 0
    names = list(ranking.series) or [f"series {index}" for index in range(count)]
    if not count or len(names) != max(count, 1):
        raise PlotError(
            f"the ranking of {ranking.quantity!r} has values of shape {tuple(ranking.values.shape)} for "
            f"{len(ranking.items)} items and {len(ranking.series)} named series; give (items,), or (items, series)."
        )
    asked = range(count) if series is None else [series] if isinstance(series, (str, int)) else list(series)
    for one in asked:
        ranking.column(one)  # says when there is none
    chosen = [names.index(one) if isinstance(one, str) else one % count for one in asked]
    if not 1 <= len(chosen) <= MOST_SERIES or len(set(chosen)) < len(chosen):
        raise PlotError(
            f"{len(chosen)} series of {ranking.quantity!r} to draw; give series= up to {MOST_SERIES} different ones "
            f"of: {', '.join(names[:12])}."
        )
    return chosen, [names[index] for index in chosen]


def _read(ranking: Ranking, chosen: list[int], labels: Sequence[str] | None) -> dict[str, Array]:
    count = len(ranking.items)
    if labels is not None and len(labels) != count:
        raise PlotError(f"{len(labels)} labels for {count} items; give one for each.")
    shape = tuple(ranking.values.shape)
    data = {}
    for name in ("values", "interval", "error", "null"):
        part = getattr(ranking, name)
        if part is None or (name == "error" and ranking.interval is not None):
            continue
        images.finite_array(part.nan_to_num(), f"{name} of the ranking")  # only the type: NaN is written out
        wanted = (*shape, 2) if name == "interval" else shape
        if tuple(part.shape) != wanted or shape[0] != count:
            raise PlotError(f"{name} of the ranking has shape {tuple(part.shape)}; for {count} items it is {wanted}.")
        array = part.detach().double().cpu().numpy().reshape(count, -1, *((2,) if name == "interval" else ()))
        data[name] = array[:, chosen]
    if not np.isfinite(data["values"]).any():
        raise PlotError(f"none of the {data['values'].size} values of {ranking.quantity!r} is finite.")
    return data


def _chosen_rows(values: Array, signed: bool, count: int | None) -> tuple[list[int], list[int]]:
    """Return the rows to draw, the largest first, and those left out; rows without a number come last."""
    sizes = np.where(np.isnan(values), -np.inf, np.abs(values) if signed else values).max(axis=1)
    order = np.argsort(-sizes, kind="stable").tolist()
    cut = len(order) if count is None or len(order) <= count + 1 else count  # never a line about one item
    return order[:cut], order[cut:]


def _axis_range(data: dict[str, Any], signed: bool, vmax: float | None) -> tuple[float, float]:
    seen = np.concatenate([data[name].ravel() for name in ("values", "interval", "null") if name in data])
    if "error" in data:
        seen = np.concatenate([seen, *((data["values"] + sign * data["error"]).ravel() for sign in (-1, 1))])
    seen = seen[np.isfinite(seen)]
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    margin = 0.04 * ((high - low) or 1.0)
    if vmax is not None:
        return (-vmax if signed and low < 0 else low - margin if low < 0 else 0.0), vmax
    return (low - margin if low < 0 else 0.0), (high + margin if high > 0 else 0.0 if low < 0 else 1.0)


def _draw(axes: Axes, data: dict[str, Any], names: list[str], signed: bool) -> list[Any]:
    values = data["values"]
    count, rows = len(names), np.arange(len(values), dtype=np.float64)
    many = len(rows) > bars.MOST_WIDE
    low, high = axes.get_xlim()
    shows = np.isfinite(values)
    bars.write_hidden(axes, values, shows)
    handles: list[Any] = []
    if count > 1:
        for row in rows[1::2]:
            axes.axhspan(row - 0.5, row + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
    for index, name in enumerate(names):
        at = rows + (index - (count - 1) / 2) * 0.72 / count * (count > 1)
        column = np.where(shows[:, index], values[:, index], np.nan)
        color = style.COLORS[(0, 4, 2, 3, 5, 6)[index]] if count > 1 else style.COLORS[0]
        shades = style.signed_colors(np.nan_to_num(column)) if count == 1 and signed else [color] * len(rows)
        if count == 1:
            axes.hlines(at, 0, column, colors=shades, linewidth=1.2 if many else 2.6, alpha=0.3)
        for spread in _intervals(data, index):
            ends = np.clip(spread, low - (high - low), high + (high - low))
            axes.hlines(at, ends[:, 0], ends[:, 1], colors=shades, linewidth=0.9)
        axes.scatter(
            column, at, marker=style.MARKERS[index], s=4 if many else 11, linewidths=0.8, zorder=3, edgecolors=shades,
            facecolors=shades if index % 2 == 0 else "white",
        )  # fmt: skip
        if count > 1:
            handles.append(_legend_entry(name, color=color, marker=style.MARKERS[index], hollow=bool(index % 2)))
    bars.write_beyond(axes, values)
    return handles + _draw_chance(axes, data, count, rows, signed)


def _intervals(data: dict[str, Any], index: int) -> list[Array]:
    if "interval" in data:
        return [data["interval"][:, index]]
    if "error" in data:
        value, error = data["values"][:, index], data["error"][:, index]
        return [np.stack([value - error, value + error], axis=1)]
    return []


def _legend_entry(label: str, *, hollow: bool = False, **options: Any) -> Any:
    from matplotlib.lines import Line2D

    line = {"linestyle": "none", "markersize": 3.4, "markeredgewidth": 0.8, **options}
    if hollow:
        line["markerfacecolor"] = "white"
    return Line2D([], [], label=label, **line)


def _draw_chance(axes: Axes, data: dict[str, Any], count: int, rows: Array, signed: bool) -> list[Any]:
    """Draw chance; the keys of the intervals and of chance."""
    color = style.INK if count > 1 or signed else style.COLORS[0]
    handles = []
    if "interval" in data or "error" in data:
        label = "95 % interval" if "interval" in data else "±1 standard error"
        handles.append(_legend_entry(label, color=color, linestyle="-", linewidth=0.9))
    if "null" not in data:
        return handles
    null = data["null"]
    known = null[np.isfinite(null)]
    if known.size == null.size and np.ptp(known) <= 1e-12 * max(1.0, float(np.abs(known).max())):
        axes.axvline(known[0], color=CHANCE, linewidth=0.9, linestyle=(0, (4, 2)), zorder=2.5)
        return [*handles, _legend_entry("chance", color=CHANCE, linestyle=(0, (4, 2)), linewidth=0.9)]
    for index in range(count):
        at = rows + (index - (count - 1) / 2) * 0.72 / count * (count > 1)
        axes.scatter(
            null[:, index],
            at,
            marker="|",
            s=(12 if len(rows) > bars.MOST_WIDE else 36) / count,
            linewidths=1.1,
            color=CHANCE,
            zorder=2.8,
        )
    return [*handles, _legend_entry("chance", color=CHANCE, marker="|", markersize=6, markeredgewidth=1.1)]


def _write_rest(axes: Axes, row: int, values: Array, signed: bool) -> None:
    """Say in the last row how many items were left out, and the largest of them."""
    known = values[np.isfinite(values)]
    line = f"+ {len(values)} more"
    if known.size:
        line += f", largest {style.number(float(known[np.argmax(np.abs(known) if signed else known)]))}"
    missing = int((~np.isfinite(values)).any(axis=1).sum())
    line += f", {missing} without a number" if missing else ""
    axes.annotate(
        line, (1, row), xycoords=("axes fraction", "data"), xytext=(-2, 0), textcoords="offset points", va="center",
        ha="right", fontsize=style.SMALL, color="#595959", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


figure(Attribution, kind="importance")(through(importance, sensitivity))
