"""Where groups of samples differ: maps of the groups and of the effect, or bars of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import PlotError
from layerlens.results import GroupComparison, GroupEffects
from layerlens.results.reports.group_comparison import LEVEL

from .. import style
from ..drawing import attribution_sample, bars, image_panels, images
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS: Final = 40


@figure(GroupComparison, kind="places", usual=True)
@figure(GroupEffects, kind="effects", usual=True)
def group_effects(
    effects: GroupEffects | GroupComparison,
    contrast: int = 0,
    *,
    name: str | None = None,
    width: style.Width | None = None,
    cmap: str | None = None,
    vmax: float | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
) -> Plot:
    """Draw where groups differ: the mean map of each group and the effect size, places with p <= .05 outlined.

    Units, tokens and features are bars with whiskers of one standard error, strong where p <= .05; of more than 40 the
    largest are drawn. Series are a line.

    Args:
        effects: effects of a comparison, or a comparison whose attributions are drawn.
        contrast: index of the contrast.
        name: which input of a comparison, if there are several.
        width: ... None is the page for maps.
        cmap: matplotlib colormap of the effect; None is RdBu_r.
        title: None for contrast and contents, `""` for none.
        labels: names of the units, tokens or features; None takes those of the result.

    Returns:
        The plot; `data` holds `"effect"`, `"p"` and, for maps, `"means"`.

    Raises:
        OptionError: if there is no such contrast or input.
        PlotError: if there are more than two axes of places.
    """
    if isinstance(effects, GroupComparison):
        effects = effects.attribution(name)
    row = attribution_sample.sample_index(contrast, len(effects.contrasts), "the comparison (contrasts)")
    effect = images.finite_array(effects.effect[row], f"the effects on the {effects.what}")
    data: dict[str, Any] = {"effect": effect, "p": effects.p[row].numpy()}
    heading = f"{effects.what}, {effects.contrasts[row]}"
    if effect.ndim == 1:
        return _draw_row(effects, row, data, heading, width, vmax, title, labels)
    if effect.ndim != 2:
        raise PlotError(f"the {effects.what} has {effect.ndim} axes of places; a figure shows one or two.")
    first, _, second = effects.contrasts[row].partition(" - ")
    data["means"] = effects.means[row].numpy()
    with Canvas(width=width or "page") as canvas:
        canvas.title(title, heading, f"outlined: p <= {LEVEL:g}, corrected for all places, by permutation")
        signed = bool((data["means"] < 0).any())
        shared = style.limits(data["means"], signed=signed, clip=99.5, vmax=None, what=effects.what)
        aspect = effect.shape[0] / effect.shape[1]
        drawn = []
        for column, (mean, label) in enumerate(zip(data["means"], (first, second), strict=True)):
            axes = canvas.panel(0, column, aspect=aspect, title=label)
            mappable, _ = image_panels.show_map(axes, mean, shared, style.colormap(None, signed=signed), picture=None)
            drawn.append(axes)
        canvas.colorbar(drawn, mappable, shared, effects.units, "bottom")
        limits = style.limits([effect], signed=True, clip=100, vmax=vmax, what="the effect")
        axes = canvas.panel(0, 2, aspect=aspect, title="effect")
        mappable, _ = image_panels.show_map(axes, effect, limits, style.colormap(cmap, signed=True), picture=None)
        _outline_cells(axes, data["p"] <= LEVEL)
        canvas.colorbar([axes], mappable, limits, "standard deviations", "bottom")
        return canvas.finish(data)


def _outline_cells(axes: Axes, found: Array) -> None:
    """Lines around the cells that differ."""
    padded = np.pad(found, 1)
    lines = []
    for r, c in zip(*np.nonzero(found), strict=True):
        top, left = r - 0.5, c - 0.5
        if not padded[r, c + 1]:
            lines.append([(left, top), (left + 1, top)])
        if not padded[r + 2, c + 1]:
            lines.append([(left, top + 1), (left + 1, top + 1)])
        if not padded[r + 1, c]:
            lines.append([(left, top), (left, top + 1)])
        if not padded[r + 1, c + 2]:
            lines.append([(left + 1, top), (left + 1, top + 1)])
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, colors=style.INK, linewidths=0.9), autolim=False)


def _draw_row(
    effects: GroupEffects, row: int, data: dict[str, Any], heading: str, width: style.Width | None,
    vmax: float | None, title: str | None, labels: Sequence[str] | None,
) -> Plot:  # fmt: skip
    values, count = data["effect"], len(data["effect"])
    error = effects.error[row].numpy()
    labels = labels or effects.features or None
    names = (
        list(labels)
        if labels is not None
        else [f"{effects.axes[-1] if effects.axes else ''} {k}" for k in range(count)]
    )
    if len(names) != count:
        raise PlotError(f"{len(names)} labels for {count} quantities; they must agree.")
    with Canvas(width=width or "column") as canvas:
        if effects.axes == ("time",):
            return _draw_line(canvas, values, error, data, heading, title)
        kept = sorted(np.argsort(-np.abs(values), kind="stable")[:MOST_BARS].tolist())
        more = f"; the {len(kept)} largest of {count}" if len(kept) < count else ""
        canvas.title(title, heading, f"strong: p <= {LEVEL:g}, corrected{more}; whiskers: one standard error")
        axes = canvas.panel()
        canvas.panels[-1].height = max(bars.name_rows(axes, [names[k] for k in kept], canvas.width), 0.5)
        bars.value_axis(axes, "effect (standard deviations)")
        found = data["p"][kept] <= LEVEL
        colors = [
            c if strong else style.FAINT for c, strong in zip(style.signed_colors(values[kept]), found, strict=True)
        ]
        bars.draw(
            axes, values[kept], colors=colors, xerr=error[kept], error_kw={"elinewidth": 0.6, "ecolor": style.INK}
        )
        if vmax is not None:
            axes.set_xlim(-vmax, vmax)
        return canvas.finish(data)


def _draw_line(
    canvas: Canvas, values: Array, error: Array, data: dict[str, Any], heading: str, title: str | None
) -> Plot:
    canvas.title(title, heading, f"shaded: p <= {LEVEL:g}, corrected; band: one standard error")
    axes, steps = canvas.panel(height=1.2), np.arange(len(values))
    for step in np.flatnonzero(data["p"] <= LEVEL):
        axes.axvspan(step - 0.5, step + 0.5, color="#E6E6E6", linewidth=0)
    axes.fill_between(steps, values - error, values + error, color=style.COLORS[0], alpha=0.25, linewidth=0)
    axes.plot(steps, values, color=style.COLORS[0])
    axes.axhline(0, color=style.FAINT, linewidth=0.6)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xlabel("time step")
    axes.set_ylabel("effect (sd)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return canvas.finish(data)
