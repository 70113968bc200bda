"""One number for every layer, or one per series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from layerlens.errors import PlotError, choose
from layerlens.results import GradientCheck, GroupComparison, LayerProfile, Relevance, UnitStatistics

from .. import style
from ..drawing import bars
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure, through
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS: Final = 40
LEVEL: Final = 0.05
"""Largest p that is drawn as a filled mark."""
NULL_LINE: Final = (0, (1, 1.5))
"""Joins the marks of the null of one series, where there are several."""


@figure(LayerProfile, kind="profile", usual=True)
def layer_profile(
    profile: LayerProfile,
    *,
    scale: Literal["linear", "log"] = "linear",
    width: style.Width | None = None,
    vmax: float | None = None,
    p: str | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw a profile: layers from top to bottom in order of execution, values from left to right.

    One series of at most 40 layers is drawn as bars; more layers, several series, a log scale or a p of each layer are
    lines. Whiskers are one standard error to each side, upright marks the null. Where p is known, hollow marks have a p
    above 0.05. A value without a place on the axis (NaN, infinity, zero or
    less on a log scale) is written at the left edge.

    Args:
        profile: values `(layers,)` or `(layers, series)`.
        width: ... None is the column unless the names are long.
        p: name of the check that holds the p of each series, before the name of the series, such as `"p of slope"`;
            None for `"p"` where it is known.
        title: None for the method, `""` for none.
        labels: names of the rows instead of the layers' paths.

    Returns:
        The plot; `data` holds `"values"` `(layers, series)` and, if known, `"error"`, `"null"` and `"p"`.

    Raises:
        OptionError: for an unknown scale or width.
        PlotError: if no value has a place on the scale, the sizes do not agree, or there is no such p.

    Example:
        >>> import torch
        >>> names = ("stem", "blocks.0", "head")
        >>> norms = LayerProfile("Jacobian norm", names, torch.tensor([3.0, 2.0, 1.0]), "1", False, "exact", {})
        >>> layer_profile(norms).data["values"].shape
        (3, 1)
    """
    choose("scale", scale, ("linear", "log"))
    names = list(profile.layers if labels is None else labels)
    data = _read(profile, len(names), p)
    values = data["values"]
    series = profile.series or (profile.quantity,)
    shows = np.isfinite(values) & ((values > 0) if scale == "log" else True)
    if not shows.any():
        raise PlotError(
            f"none of the {values.size} values of {profile.quantity!r} can be shown on a {scale} scale "
            f"(first: {values.flat[0]:.3g}). "
            + ("Use scale='linear'." if scale == "log" else "All are NaN or infinite.")
        )
    label = f"{profile.quantity} ({profile.units})" if profile.units not in ("", "1") else profile.quantity
    lines = len(names) > MOST_BARS or len(series) > 1 or scale == "log" or "p" in data
    if width is None:
        width = "column" if bars.room_for_names(names, 99) < 0.4 * style.WIDTHS["column"] else "page"
    with Canvas(width=width, ax=ax) as canvas:
        axes = canvas.panel()
        canvas.panels[-1].height = max(bars.name_rows(axes, names, canvas.width), 0.5)
        every = -(-len(names) // len(axes.get_yticks()))
        canvas.title(title, words(profile.method), f"one name for {every} layers" if every > 1 else "")
        bars.value_axis(axes, label, log=scale == "log")
        if vmax is not None:
            axes.set_xlim(right=vmax)
        shown = {name: np.where(shows, part, np.nan) if name == "values" else part for name, part in data.items()}
        handles = _draw_lines(axes, shown, series, scale) if lines else _draw_bars(axes, shown)
        # of several series, one that has no number at a row is a gap in its line; a log axis names all it cannot show
        gaps = np.isnan(values) & shows.any(axis=1, keepdims=True) & (len(series) > 1 and scale == "linear")
        across = canvas.width - bars.room_for_names(names, canvas.width) - 0.2
        bars.write_hidden(axes, values, shows | gaps, profile.series, across if lines else None)
        for key in (one for one in handles if one.get_label() == "null"):
            key.set_label(profile.null_name)
        if "p" in data and (data["p"] > LEVEL).any():
            handles.append(_key(color=style.FAINT, marker="o", markerfacecolor="white", label=f"{p or 'p'} > {LEVEL}"))
        if handles:
            canvas.legend(axes, handles)
        return canvas.finish(data)


def _profile_of(relevance: Relevance) -> LayerProfile:
    if relevance.profile is None:
        raise PlotError(
            "this relevance has no profile: no layers were asked for. Give layers= to the method, or draw kind='flow'."
        )
    return relevance.profile


def _separation_of(comparison: GroupComparison) -> LayerProfile:
    return comparison.separation


figure(Relevance, kind="profile")(through(_profile_of, layer_profile))
figure(GradientCheck, kind="profile")(through(GradientCheck.profile, layer_profile))
figure(GroupComparison, kind="layers")(through(GroupComparison.profile, layer_profile))
figure(GroupComparison, kind="separation")(through(_separation_of, layer_profile))
figure(UnitStatistics, kind="profile")(through(UnitStatistics.profile, layer_profile))


def _read(profile: LayerProfile, rows: int, p: str | None) -> dict[str, Array]:
    if not rows:
        raise PlotError(f"the profile of {profile.quantity!r} has no layers.")
    data = {}
    for name in ("values", "error", "null"):
        part = getattr(profile, name)
        if part is None:
            continue
        # values that are not finite are shown as such, by name, so only the type is checked here
        finite_array(part.nan_to_num(), f"{name} of the profile")
        array = part.detach().double().cpu().numpy()
        if array.shape[0] != rows or array.size != rows * max(len(profile.series), 1):
            raise PlotError(
                f"{name} of the profile has shape {tuple(part.shape)} for {rows} layers or labels and "
                f"{len(profile.series)} named series; give (layers,), or (layers, series) with a name for each series."
            )
        data[name] = array.reshape(rows, -1)
    columns = [profile.checks.get(f"{p or 'p'} {name}") for name in profile.series]
    known = [one.double().cpu().numpy() for one in columns if one is not None and one.shape == (rows,)]
    if known and len(known) == len(columns):
        data["p"] = np.stack(known, axis=1)
    elif p is not None:
        raise PlotError(
            f"the profile of {profile.quantity!r} has no check {p!r} of each series; it has {sorted(profile.checks)}."
        )
    return data


def _draw_bars(axes: Axes, data: dict[str, Array]) -> list[Any]:
    values = data["values"][:, 0]
    color = style.signed_colors(np.nan_to_num(values)) if (values < 0).any() else style.COLORS[0]
    bars.draw(axes, values, colors=color)
    _draw_errors_and_null(axes, data, 0, style.INK, style.COLORS[4])
    return _legend_entries(data, style.INK, style.COLORS[4])


def _draw_lines(axes: Axes, data: dict[str, Array], series: Sequence[str], scale: str) -> list[Any]:
    rows = np.arange(len(data["values"]))
    handles: list[Any] = []
    if scale == "log":  # a whisker that reaches zero ends a decade below its value
        values = data["values"]
        data = {**data, "null": np.where(data["null"] > 0, data["null"], np.nan)} if "null" in data else data
        data = {**data, "error": np.fmin(data["error"], 0.9 * values)} if "error" in data else data
    for index, name in enumerate(series):
        color, line = style.COLORS[index % len(style.COLORS)], style.LINES[index % len(style.LINES)]
        handles += axes.plot(
            data["values"][:, index], rows, color=color, linestyle=line, label=name,
            marker=style.MARKERS[index % len(style.MARKERS)], markersize=3 if len(rows) <= MOST_BARS else 1.8,
            markerfacecolor="white" if index % 2 and "p" not in data else color, markeredgewidth=0.8,
        )  # fmt: skip
        if "p" in data:
            above = np.where(data["p"][:, index] > LEVEL, data["values"][:, index], np.nan)
            hollow: dict[str, Any] = {
                "markerfacecolor": "white",
                "markeredgecolor": color,
                "markersize": 3,
                "zorder": 4,
            }
            axes.plot(above, rows, linestyle="none", marker=style.MARKERS[index % len(style.MARKERS)], **hollow)
        several = len(series) > 1
        _draw_errors_and_null(
            axes, data, index, color, color if several else style.COLORS[4], line=NULL_LINE if several else "none"
        )
    if len(series) > 1:
        return handles + _legend_entries(data, style.FAINT, style.FAINT, NULL_LINE)
    return _legend_entries(data, style.COLORS[0], style.COLORS[4])


def _draw_errors_and_null(
    axes: Axes, data: dict[str, Array], index: int, color: str, null: str, line: style.Line = "none"
) -> None:
    """Whiskers of the standard error and marks of the null."""
    rows = np.arange(len(data["values"]))
    if "error" in data:
        axes.errorbar(
            data["values"][:, index], rows, xerr=data["error"][:, index], fmt="none", ecolor=color, elinewidth=0.7,
            capsize=1.2, capthick=0.7,
        )  # fmt: skip
    if "null" in data:
        axes.plot(
            data["null"][:, index], rows, color=null, linestyle=line, linewidth=0.6, marker="|",
            markersize=6 if line == "none" else 4, markeredgewidth=1.2 if line == "none" else 0.9,
        )  # fmt: skip


def _legend_entries(data: dict[str, Array], color: str, null: str, line: style.Line = "none") -> list[Any]:
    keys = []
    if "error" in data:
        keys.append(_key(color=color, linestyle="-", linewidth=0.7, marker="|", label="±1 standard error"))
    if "null" in data:
        mark = {"marker": "|", "markersize": 6, "markeredgewidth": 1.2}
        keys.append(_key(color=null, linestyle=line, linewidth=0.6, label="null", **mark))
    return keys


def _key(**options: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linestyle": "none", "markersize": 3, **options})
