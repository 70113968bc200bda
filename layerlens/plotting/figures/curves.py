"""Quantities along something: accuracy against the size of an attack, drift against noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import Curve, Steering

from .. import style
from ..drawing import bars, text
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure, through
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES: Final[tuple[style.Line, ...]] = ("-", "-.", (0, (7, 2)), (0, (5, 1, 1, 1, 1, 1)), ":", (0, (1, 2, 4, 2)), "-")
"""Of the curves; fine dashes are left to chance."""
CHANCE: Final = (0, (2.5, 1.8))
MOST_MARKED: Final = 25
"""Points of a curve that are marked one by one."""
MOST_NAMED: Final = 7
"""Curves with a color of their own; more take the colors of a scale, in their order."""

FEW_POINTS: Final = 8
"""Points that carry the numbers of a logarithmic axis themselves."""


@figure(Curve, kind="curves", usual=True)
def curves(
    curve: Curve | Sequence[Curve],
    *,
    scale: Literal["linear", "log", "symlog"] = "linear",
    yscale: Literal["linear", "log"] = "linear",
    ylim: tuple[float, float] | None = None,
    width: style.Width = "column",
    title: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw curves: a line each, one standard error as a band around it, chance in thin dashes.

    Up to 7 curves have their own color, line and mark. More are an ordered row, such as layers, colored from the first
    (dark) to the last (light); some of them are named.

    Args:
        curve: one, or several of the same quantity along the same axis.
        scale: scale of the points: `"linear"`, `"log"`, or `"symlog"`, linear from zero to the smallest point.
        yscale: scale of the values: `"linear"` or `"log"`.
        ylim: smallest and largest value of the axis; None fits the data. A note counts the values outside.
        title: None for the method, `""` for none.
        labels: names of the lines; None takes the names of the series.

    Returns:
        The plot; `data` holds, for each label, `"points"`, `"values"` and, if known, `"error"` and `"null"`.

    Raises:
        OptionError: for an unknown scale or width, or a `ylim` that is not a range.
        PlotError: if there is nothing to draw, the curves do not belong together, names are missing or not distinct, or
            a logarithm of zero is asked for.

    Example:
        >>> import torch
        >>> values = torch.tensor([[1.0, 0.2]])
        >>> robust = Curve("accuracy", "eps", torch.tensor([0.0, 0.1]), ("PGD",), values, "1", "attack", {})
        >>> curves(robust).data["PGD"]["values"]
        array([1. , 0.2])
    """
    choose("scale", scale, ("linear", "log", "symlog"))
    shown = [curve] if isinstance(curve, Curve) else list(curve) if isinstance(curve, (list, tuple)) else []
    if not shown or not all(isinstance(one, Curve) for one in shown):
        raise PlotError(f"curves draws a Curve or a list of them, not {_kinds(curve)}.")
    _check_same_quantity(shown)
    data = _read(shown, labels)
    points = np.concatenate([line["points"] for line in data.values()])
    if scale == "log" and points.min() <= 0:
        raise PlotError(f"a log scale has no place for the point {points.min():g}. Use scale='symlog', or 'linear'.")
    _check_values_axis([line["values"] for line in data.values()], yscale, ylim)
    first = shown[0]
    with Canvas(width=width, ax=ax) as canvas:
        automatic = "; ".join(dict.fromkeys(words(one.method) for one in shown if one.method))
        many = len(data) > MOST_NAMED
        notes = [f"{len(data)} curves in order, from dark to light."] if many else []
        missing = {name: int(np.isnan(line["values"]).sum()) for name, line in data.items()}
        notes += [f"{name}: {count} point(s) without a number." for name, count in list(missing.items())[:5] if count]
        if ylim is not None:
            out = {
                name: int(((line["values"] < ylim[0]) | (line["values"] > ylim[1])).sum())
                for name, line in data.items()
            }
            notes += [
                f"{name}: {count} point(s) outside of the axis." for name, count in list(out.items())[:5] if count
            ]
        canvas.title(title, automatic, " ".join(notes))
        axes = canvas.panel(height=min(max(0.52 * canvas.width, 1.3), 2.6))
        _points_axis(axes, points, scale, canvas.width)
        _format_axes(axes, yscale, ylim)
        handles = [_draw_curve(axes, index, name, line, len(data)) for index, (name, line) in enumerate(data.items())]
        if many:
            handles = [handles[index] for index in np.unique(np.linspace(0, len(handles) - 1, 5).round().astype(int))]
        handles += _draw_chance(axes, data, first.null_name)
        values = f"{first.quantity} ({first.units})" if first.units not in ("", "1") else first.quantity
        axes.set_xlabel(_along(first.along, scale, points))
        axes.set_ylabel(bars.log_label(values) if yscale == "log" else values)
        if len(handles) > 1 or len(data) > 1:
            canvas.legend(axes, handles)
        return canvas.finish(data)


def _along(name: str, scale: str, points: Array) -> str:
    """The label of the points, with where a logarithmic scale begins."""
    if scale != "symlog" or not points.any():
        return bars.log_label(name) if scale == "log" else name
    return f"{bars.log_label(name)} from {style.number(float(np.abs(points[points != 0]).min()))}"


def _kinds(curve: object) -> str:
    if isinstance(curve, (list, tuple)):
        return f"[{', '.join(type(one).__name__ for one in curve)}]"
    return f"a {type(curve).__name__}"


def _check_same_quantity(shown: list[Curve]) -> None:
    for what in ("quantity", "units", "along"):
        found = list(dict.fromkeys(getattr(one, what) for one in shown))
        if len(found) > 1:
            raise PlotError(
                f"curves of different {what} do not share axes: {', '.join(map(repr, found))}. Draw them one by one, "
                "side by side with ax=."
            )


def _read(shown: list[Curve], labels: Sequence[str] | None) -> dict[str, dict[str, Array]]:
    names = [text.printable(name) for one in shown for name in one.series]
    if labels is None and len(set(names)) < len(names):
        names = [
            f"{one.method}: {text.printable(name)}" if one.method else name for one in shown for name in one.series
        ]
    if labels is not None:
        if len(labels) != len(names):
            raise PlotError(
                f"{len(labels)} labels for {len(names)} curves ({', '.join(names[:6])}); give one for each."
            )
        names = [text.printable(name) for name in labels]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PlotError(f"more than one curve is named {twice!r}. Give labels=, a name for each.")
    lines = [line for one in shown for line in _arrays_of_curves(one)]
    if len(lines) != len(names) or not lines:
        raise PlotError(f"there are {len(names)} names for {len(lines)} curves; give a series for each.")
    return dict(zip(names, lines, strict=True))


def _arrays_of_curves(one: Curve) -> list[dict[str, Array]]:
    points = finite_array(one.points, f"the points of {one.quantity!r}").astype(np.float64)
    order = np.argsort(points, kind="stable")
    parts = {}
    for name in ("values", "error", "null"):
        part = getattr(one, name)
        if part is None:
            continue
        finite_array(part.nan_to_num(), f"{name} of the curve")  # only the type: NaN leaves a gap, with a note
        array = part.detach().double().cpu().numpy()
        if array.shape != (len(one.series), len(points)) or points.ndim != 1:
            raise PlotError(
                f"{name} of the curve of {one.quantity!r} has shape {array.shape}; for {len(one.series)} series over "
                f"{len(points)} points it is {(len(one.series), len(points))}."
            )
        parts[name] = np.where(np.isfinite(array), array, np.nan)[:, order]
    if np.isnan(parts["values"]).all():
        raise PlotError(f"none of the {parts['values'].size} values of {one.quantity!r} is finite.")
    return [
        {"points": points[order], **{name: part[index] for name, part in parts.items()}}
        for index in range(len(one.series))
    ]


def _color_and_dashes(index: int, count: int) -> tuple[Any, style.Line]:
    if count <= MOST_NAMED:
        return style.COLORS[index], LINES[index]
    import matplotlib

    return matplotlib.colormaps["viridis"](0.92 * index / (count - 1)), "-"


def _draw_curve(axes: Axes, index: int, name: str, line: dict[str, Array], count: int) -> Any:
    color, dashes = _color_and_dashes(index, count)
    few = count <= MOST_NAMED and len(line["points"]) <= MOST_MARKED
    if "error" in line:
        low, high = line["values"] - line["error"], line["values"] + line["error"]
        axes.fill_between(line["points"], low, high, color=color, alpha=0.2 if few else 0.1, linewidth=0)
    (handle,) = axes.plot(
        line["points"], line["values"], color=color, linestyle=dashes, label=name, linewidth=1.0,
        marker=style.MARKERS[index] if few or len(line["points"]) == 1 else None, markersize=3, markeredgewidth=0.8,
        markerfacecolor="white" if index % 2 else color,
    )  # fmt: skip
    return handle


def _draw_chance(axes: Axes, data: dict[str, dict[str, Array]], name: str) -> list[Any]:
    """Draw chance, by its `name`, once where it is the same for all curves; and the keys of bands and chance."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if any("error" in line for line in data.values()):
        keys.append(Patch(facecolor=style.FAINT, alpha=0.35, linewidth=0, label="±1 standard error"))
    nulls = [(index, line) for index, line in enumerate(data.values()) if "null" in line]
    if not nulls:
        return keys
    same = len(nulls) > 1 and all(
        a["points"].shape == b["points"].shape
        and np.array_equal(a["points"], b["points"])
        and np.allclose(a["null"], b["null"], rtol=1e-9, atol=0, equal_nan=True)
        for (_, a), (_, b) in itertools.pairwise(nulls)
    )
    alone = same or len(data) == 1
    for index, line in nulls[:1] if same else nulls:
        color = style.INK if alone else _color_and_dashes(index, len(data))[0]
        axes.plot(line["points"], line["null"], color=color, linestyle=CHANCE, linewidth=0.7)
    label = name if alone else f"{name} of each"
    return [*keys, Line2D([], [], color=style.INK, linestyle=CHANCE, linewidth=0.7, label=label)]


def _points_axis(axes: Axes, points: Array, scale: str, across: float) -> None:
    """Draw the axis of the points, with guide lines; `across` is the width of the figure in inches."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    if scale == "log":
        axes.set_xscale("log")
    elif scale == "symlog":
        sizes = np.abs(points[points != 0])
        axes.set_xscale("symlog", linthresh=float(sizes.min()) if sizes.size else 1.0, linscale=0.5)
    else:
        whole = bool((points == points.round()).all() and np.ptp(points) > 2)  # steps, samples, epochs
        axes.xaxis.set_major_locator(
            MaxNLocator(6, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole)
        )
    if scale != "linear" and len(np.unique(points)) <= FEW_POINTS:
        _point_ticks(axes, np.unique(points), across)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#E6E6E6", linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _check_values_axis(lines: Sequence[Array], yscale: str, ylim: tuple[float, float] | None) -> None:
    """Refuse an axis of values that cannot be drawn.

    Raises:
        OptionError: for an unknown scale, or a `ylim` that is not a range.
        PlotError: when a logarithm of zero or less is asked for.
    """
    choose("yscale", yscale, ("linear", "log"))
    if ylim is not None and not (len(ylim) == 2 and np.isfinite(ylim).all() and ylim[0] < ylim[1]):
        raise OptionError(f"ylim={ylim!r}; give the smallest and the largest value of the axis, such as (0, 1).")
    lowest = min(float(np.nanmin(line, initial=np.inf)) for line in lines) if ylim is None else float(ylim[0])
    if yscale == "log" and lowest <= 0:
        raise PlotError(
            f"a log scale has no place for the value {lowest:g}. Use yscale='linear', or ylim= from above zero."
        )


def _format_axes(axes: Axes, yscale: str, ylim: tuple[float, float] | None) -> None:
    """Set scale, ticks and limits of the value axis, and the format of the numbers on both axes."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if yscale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(bars.log_ticks())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if ylim is not None:
        axes.set_ylim(*ylim)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))


def _point_ticks(axes: Axes, points: Array, across: float) -> None:
    """Ticks at the points themselves, left out where their numbers would touch."""
    scaled = axes.xaxis.get_transform().transform(points)
    span = float(np.ptp(scaled)) or 1.0
    room = 0.8 * across / span
    kept, end = [], -np.inf
    for point, place in zip(points, scaled * room, strict=True):
        half = text.width(style.number(float(point)), style.SMALL) / 2
        if place - half > end + 0.04:
            kept.append(point)
            end = place + half
    axes.set_xticks(kept)
    axes.minorticks_off()


figure(Steering, kind="effect", usual=True)(through(Steering.curve, curves))
figure(Steering, kind="side_effects")(through(Steering.side_effects, curves))
