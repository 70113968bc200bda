"""What the strongest units of some layers respond to: one row of tiles per layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import ActivationMaps

from .. import style
from ..drawing import attribution_sample, bars, image_panels, images, text
from ..drawing.canvas import GAP, Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.image import AxesImage

BAR_WIDTH: Final = 0.9
"""Inches that the colorbar of a row takes with its numbers."""


@figure(ActivationMaps, kind="mosaic", usual=True)
@each_sample(lambda one: len((one if isinstance(one, ActivationMaps) else one[0]).values))
def activation_mosaic(
    maps: ActivationMaps | Sequence[ActivationMaps],
    sample: Which = None,
    *,
    count: int = 6,
    picture: bool = True,
    width: style.Width = "page",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw the strongest units of each layer: a row per layer, a tile per unit, one scale per row.

    The strongest units have the largest mean activation over the places of the sample. Units of a transformer or
    recurrent layer are rows over its tokens or time steps; units of a dense layer are bars.

    Args:
        maps: maps of one layer or several, in the order of the rows.
        count: number of units of each layer.
        picture: whether a row of tiles begins with the input, where the maps keep it.
        cmap: matplotlib colormap; None is viridis, or RdBu_r for a layer with negative values.
        vmax: end of every row's scale; None gives each row its own, from `clip`.
        title: None or `""` for none: the rows name their contents.
        labels: names of the rows; None is the name of the layer and its size.

    Returns:
        The plot; `data` holds the tiles `(unit, *places)` of each row and `"units <label>"`, their units.

    Raises:
        OptionError: if there is no such sample or colormap, or `count` is below 1.
        PlotError: if there are no maps, or values cannot be drawn.

    Example:
        >>> import torch
        >>> values = torch.rand(1, 16, 6, 6)
        >>> axes = ("batch", "channel", "height", "width")
        >>> maps = ActivationMaps("blocks.0", 0, values, tuple(range(16)), axes)
        >>> activation_mosaic(maps, count=4).data["blocks.0: 4 of 16 units, 6 x 6"].shape
        (4, 6, 6)
    """
    several = [maps] if isinstance(maps, ActivationMaps) else list(maps)
    if not several:
        raise PlotError("there is nothing to draw: the list of activation maps is empty.")
    if count < 1:
        raise OptionError(f"count={count!r} units per layer; give 1 or more.")
    if labels is not None and len(labels) != len(several):
        raise PlotError(f"{len(labels)} labels for {len(several)} layers; give one per layer.")
    chosen = [_strongest_units(one, sample, count) for one in several]
    columns = max((len(tiles) for tiles, _ in chosen if tiles.ndim == 3), default=1) + (
        picture and any(_picture(one, sample) is not None for one in several)
    )
    data: dict[str, Any] = {}
    clipped = False
    with Canvas(width=width, fig=fig) as canvas:
        titles = _tile_titles([units for _, units in chosen], (canvas.width - BAR_WIDTH) / columns)
        for row, (one, (tiles, units)) in enumerate(zip(several, chosen, strict=True)):
            label = image_panels.unique_key(_row_label(one, len(units)) if labels is None else labels[row], data)
            canvas.header(row, label)
            data[label], data[f"units {label}"] = tiles, np.array(units)
            if tiles.ndim == 1:
                _draw_bars(canvas, row, tiles, units, vmax)
                continue
            signed = bool(tiles.min() < 0)
            limits = style.limits([tiles], signed=signed, clip=clip, vmax=vmax, what=f"layer {one.layer!r}")
            clipped |= bool(limits.note)
            limits = dataclasses.replace(limits, note="")  # said once, for all rows
            options = {
                "cmap": style.colormap(cmap, signed=signed, unsigned="viridis"),
                "vmin": limits.low,
                "vmax": limits.high,
                "interpolation": "nearest",
            }
            if tiles.ndim == 3:
                shown = _picture(one, sample) if picture else None
                axes, image = _draw_tiles(canvas, row, tiles, titles[row], options, shown)
            else:
                axes, image = _draw_steps(canvas, row, one, tiles, units, options)
            if colorbar:
                axes = _bar_place(canvas, row, columns, axes) if tiles.ndim == 3 else axes
                canvas.colorbar([axes], image, limits, "activation", "right")
        canvas.title(title, "", f"each row: clipped at {clip:g}% of its |activation|" if clipped else "")
        return canvas.finish(data)


def _tile_titles(units: list[list[int]], across: float) -> list[list[str]]:
    """The title of each tile: the bare number where the word does not fit."""
    named = [[f"unit {unit}" for unit in row] for row in units]
    fits = max(text.width(name, style.SMALL) for row in named for name in row) <= across - GAP
    return named if fits else [[str(unit) for unit in row] for row in units]


def _strongest_units(one: ActivationMaps, sample: Which, count: int) -> tuple[Array, list[int]]:
    if not isinstance(one, ActivationMaps):
        raise PlotError(f"activation_mosaic draws ActivationMaps, not a {type(one).__name__}.")
    what = f"the activation of layer {one.layer!r}"
    values = images.finite_array(one.values[attribution_sample.sample_index(sample, len(one.values), what)], what)
    if values.ndim not in (1, 2, 3):
        raise PlotError(
            f"{what} has shape {tuple(one.values.shape)}; a mosaic shows (batch, unit), (batch, unit, token) and "
            "(batch, unit, height, width). Take a slice of a volume or video, such as the one that holds most: "
            f"{attribution_sample.slice_call('maps', 'maps.values', one.values, one.axes)}."
        )
    means = values.reshape(len(values), -1).mean(axis=1)
    best = np.argsort(-means, kind="stable")[:count]
    return values[best], [one.units[index] for index in best]


def _row_label(one: ActivationMaps, shown: int) -> str:
    name = f"{one.layer or '(model)'} #{one.call}" if one.call else one.layer or "(model)"
    places = one.values.shape[2:]
    size = f", {' x '.join(map(str, places))}" if len(places) > 1 else ""
    return f"{name}: {shown} of {one.values.shape[1]} units{size}"


def _picture(one: ActivationMaps, sample: Which) -> Array | None:
    inputs = one.inputs
    if inputs is None or inputs.ndim != 4 or inputs.shape[2] * inputs.shape[3] == 1:  # such as a latent
        return None
    return images.picture(
        inputs[attribution_sample.sample_index(sample, len(inputs), "the batch")], "the input", channels_first=True
    )


def _draw_tiles(
    canvas: Canvas, row: int, tiles: Array, titles: list[str], options: dict[str, Any], picture: Array | None
) -> tuple[Axes, AxesImage]:
    """The input, where it is a picture, and a tile for each unit."""
    aspect = tiles.shape[1] / tiles.shape[2]
    if picture is not None:
        image_panels.show_picture(canvas.panel(row, 0, aspect=aspect, title="input"), picture)
    for column, (tile, line) in enumerate(zip(tiles, titles, strict=True), start=picture is not None):
        axes = canvas.panel(row, column, aspect=aspect, title=line)
        image = axes.imshow(tile, **options)
        image_panels.hide_ticks(axes)
    return axes, image


def _bar_place(canvas: Canvas, row: int, columns: int, last: Axes) -> Axes:
    """The panel to the left of a colorbar: the last column's, so that the colorbars of all rows are aligned."""
    if canvas.panels[-1].column == columns - 1:
        return last
    axes = canvas.panel(row, columns - 1, aspect=0.1)
    image_panels.hide_ticks(axes)
    axes.set_axis_off()
    return axes


def _draw_steps(
    canvas: Canvas, row: int, one: ActivationMaps, tiles: Array, units: list[int], options: dict[str, Any]
) -> tuple[Axes, AxesImage]:
    """Units as rows over tokens or time steps."""
    from matplotlib.ticker import MaxNLocator

    axes = canvas.panel(row, 0, height=max(0.13 * len(units), 0.5), span=True)
    image = axes.imshow(tiles, aspect="auto", **options)
    axes.set_yticks(range(len(units)), [str(unit) for unit in units])
    axes.set_ylabel("unit")
    axes.set_xlabel(one.axes[2] if len(one.axes) > 2 else "place")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return axes, image


def _draw_bars(canvas: Canvas, row: int, values: Array, units: list[int], vmax: float | None) -> None:
    """Units without places: bars."""
    axes = canvas.panel(row, 0, height=0.7, span=True)
    bars.draw_upright(axes, values)
    axes.set_xticks(range(len(units)), [str(unit) for unit in units])
    axes.set_xlabel("unit")
    axes.set_ylabel("activation")
    if vmax is not None:
        axes.set_ylim(-vmax if values.min() < 0 else 0, vmax)
