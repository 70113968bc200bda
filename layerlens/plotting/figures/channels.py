"""The units of one layer as a grid of tiles with their numbers, all on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import ActivationMaps

from .. import style
from ..drawing import attribution_sample, images, text
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE: Final = 8.2
"""Inches of height that a grid takes where it can choose its columns."""
GAP: Final = 0.04
"""Inches between tiles."""
STRIP: Final = 0.35
"""Height / width of a tile of a layer whose places are in a row."""
LARGEST: Final = 2.0
"""Inches of the width of a tile."""
BAR_WIDTH: Final = 0.5
"""Inches of a colorbar with its numbers."""

Order = Literal["strength", "number"]


class _Grid(NamedTuple):
    columns: int
    rows: int
    wide: float
    high: float
    line: float


@figure(ActivationMaps, kind="channels")
@each_sample(lambda one: len(one.values))
def channels(
    maps: ActivationMaps,
    sample: Which = None,
    *,
    count: int | None = None,
    order: Order = "number",
    columns: int | None = None,
    width: style.Width = "page",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw the units of one layer as tiles on one scale: all of them, or the strongest.

    Above each tile is the number of its unit; where tiles are too narrow, the rows are named by their first unit.
    Strength is the mean activation over the places of the sample. A unit of a convolution is its map, a unit of a
    transformer or recurrent layer a strip over its tokens or steps, a unit of a dense layer a square.

    Args:
        maps: maps of one layer; `activation_mosaic` draws several layers.
        count: number of units, the strongest; None for all.
        order: `"number"` of the unit, or `"strength"`, strongest first.
        columns: tiles in a row; None makes the tiles as large as a page allows.
        cmap: matplotlib colormap; None is viridis, or RdBu_r for a layer with negative values.
        title: None for the layer and the number of units, `""` for none.
        labels: names of the units of the layer, instead of their numbers.

    Returns:
        The plot; `data` holds `"tiles"` `(unit, *places)` and `"units"`, their units.

    Raises:
        OptionError: if there is no such sample, order or colormap, or `count` or `columns` is below 1.
        PlotError: if the values cannot be drawn, or there is not one label per unit.

    Example:
        >>> import torch
        >>> axes = ("batch", "channel", "height", "width")
        >>> maps = ActivationMaps("blocks.0", 0, torch.rand(1, 32, 6, 6), tuple(range(32)), axes)
        >>> channels(maps, count=10).data["tiles"].shape
        (10, 6, 6)
    """
    tiles, places, what = _chosen_tiles(maps, sample, count, order)
    units = [maps.units[place] for place in places]
    if labels is not None and len(labels) != len(maps.units):
        raise PlotError(f"{len(labels)} labels for the {len(maps.units)} units of {maps.layer!r}; give one per unit.")
    names = [str(unit) for unit in units] if labels is None else [labels[place] for place in places]
    signed = bool(tiles.min() < 0)
    limits = style.limits([tiles], signed=signed, clip=clip, vmax=vmax, what=what)
    shapes = tiles.reshape(
        len(tiles), *((1, 1) if tiles.ndim == 1 else (1, -1) if tiles.ndim == 2 else tiles.shape[1:])
    )
    aspect = STRIP if tiles.ndim == 2 else shapes.shape[1] / shapes.shape[2]
    with Canvas(width=width, ax=ax) as canvas:
        canvas.title(title, _heading(maps, len(units), order), _note(tiles, shapes))
        axes = canvas.panel()
        given = None if ax is None else axes.bbox.height / canvas.dpi
        room = canvas.width - 0.1 - BAR_WIDTH * colorbar if given is None else axes.bbox.width / canvas.dpi
        grid = _best_grid(names, aspect, room, given, columns)
        across = grid.columns * (grid.wide + GAP) - GAP
        down = _grid_height(grid)
        canvas.panels[-1].aspect = down / max(across, room)
        colors = style.colormap(cmap, signed=signed, unsigned="viridis")
        image = _draw_tiles(axes, shapes, names, grid, {"cmap": colors, "vmin": limits.low, "vmax": limits.high})
        if given is None:
            axes.set_xlim(0, max(across, room))
            axes.set_ylim(down, 0)
        else:
            axes.set_xlim(0, room)
            axes.set_ylim(max(given, down), 0)
        if colorbar:
            canvas.colorbar([axes], image, limits, "activation", "right")
        return canvas.finish({"tiles": tiles, "units": np.array(units)})


def _chosen_tiles(maps: ActivationMaps, sample: Which, count: int | None, order: Order) -> tuple[Array, list[int], str]:
    """The tiles to draw and their places among the units.

    Raises:
        OptionError: if `count` is below 1.
        PlotError: if the maps have no tiles.
    """
    choose("order", order, ("strength", "number"))
    if count is not None and count < 1:
        raise OptionError(f"count={count!r} units; give 1 or more, or None for all.")
    what = f"the activation of layer {maps.layer!r}"
    values = images.finite_array(maps.values[attribution_sample.sample_index(sample, len(maps.values), what)], what)
    if values.ndim not in (1, 2, 3):
        raise PlotError(
            f"{what} has shape {tuple(maps.values.shape)}; tiles show (batch, unit), (batch, unit, token) and "
            "(batch, unit, height, width). Take a slice of a volume or video, such as the one that holds most: "
            f"{attribution_sample.slice_call('maps', 'maps.values', maps.values, maps.axes)}."
        )
    best = np.argsort(-values.reshape(len(values), -1).mean(axis=1), kind="stable")[:count].tolist()
    places = sorted(best) if order == "number" else best
    return values[places], places, what


def _heading(maps: ActivationMaps, shown: int, order: Order) -> str:
    name = f"{maps.layer or '(model)'} #{maps.call}" if maps.call else maps.layer or "(model)"
    every = len(maps.units)
    which = f"the {shown} strongest of {every} units" if shown < every else f"{every} units"
    return f"{name}: {which}{', strongest first' if order == 'strength' else ''}"


def _note(tiles: Array, shapes: Array) -> str:
    if tiles.ndim == 1:
        return ""
    high, wide = shapes.shape[1:]
    return f"each tile: {wide} places from left to right" if tiles.ndim == 2 else f"each tile: {high} x {wide}"


def _best_grid(names: Sequence[str], aspect: float, room: float, given: float | None, columns: int | None) -> _Grid:
    """The grid with the largest tiles that fit the width and, if they can, the height of a page or of the axes.

    Raises:
        OptionError: if `columns` is below 1.
        PlotError: if the tiles do not fit.
    """
    count = len(names)
    if columns is not None and columns < 1:
        raise OptionError(f"columns={columns!r}; give 1 or more.")

    def grid(across: int) -> _Grid:
        wide = min((room + GAP) / across - GAP, LARGEST)
        named = wide >= max(text.widest(names, style.SMALL), 0.1)
        line = 1.3 * style.SMALL / 72 if named else 0.0
        return _Grid(across, math.ceil(count / across), wide, wide * aspect, line)

    if columns is not None:
        found = grid(columns)
    else:
        least = max(1, min(count, int((room + GAP) / (LARGEST + GAP)) or 1))
        options = [grid(across) for across in range(least, max(least, min(count, int(room / 0.08))) + 1)]
        found = options[-1]
        for high in (0.75 * room, PAGE) if given is None else (given,):
            fitting = [one for one in options if _grid_height(one) <= high]
            if fitting and (fitting[0].line or high in (PAGE, given)):
                found = fitting[0]
                break
    if found.wide < GAP:
        raise PlotError(
            f"{found.columns} tiles in a row of {room:.2f} inches would be {found.wide:.3f} inches wide. Give fewer "
            "columns= or a larger width=."
        )
    if given is not None and _grid_height(found) > given + 1e-6:
        raise PlotError(
            f"{count} tiles do not fit into axes of {room:.2f} x {given:.2f} inches. Give larger axes, a smaller "
            "count=, or leave out ax=."
        )
    return found


def _grid_height(grid: _Grid) -> float:
    return grid.rows * (grid.high + grid.line + GAP) - GAP


def _draw_tiles(axes: Axes, tiles: Array, names: Sequence[str], grid: _Grid, options: dict[str, Any]) -> Any:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    shape = tiles.shape[1:]
    outlines = []
    whole = np.full((grid.rows * (shape[0] + 1), grid.columns * (shape[1] + 1)), np.nan)
    for index, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        row, column = divmod(index, grid.columns)
        down, across = row * (shape[0] + 1), column * (shape[1] + 1)
        whole[down : down + shape[0], across : across + shape[1]] = tile
        left = column * (grid.wide + GAP)
        top = row * (grid.high + grid.line + GAP) + grid.line
        outlines.append(Rectangle((left, top), grid.wide, grid.high))
        if grid.line:
            axes.text(left, top - 0.01, name, fontsize=style.SMALL, va="bottom", ha="left").set_in_layout(False)
    # one image whose cells are wide within tiles and narrow between them draws in a moment, however many tiles
    right = _cell_edges(grid.columns, shape[1], grid.wide, GAP)
    below = _cell_edges(grid.rows, shape[0], grid.high, grid.line + GAP) + grid.line
    image = axes.pcolorfast(right, below, np.ma.masked_invalid(whole), **options)
    axes.add_collection(
        PatchCollection(outlines, facecolors="none", edgecolors=style.FAINT, linewidths=0.3), autolim=False
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    if not grid.line:
        rows = range(grid.rows)
        middles = [row * (grid.high + GAP) + grid.high / 2 for row in rows]
        every = math.ceil(1.2 * style.SMALL / 72 / (grid.high + GAP))
        axes.set_yticks(middles[::every], [names[row * grid.columns] for row in rows][::every], fontsize=style.SMALL)
        axes.tick_params(axis="y", length=0)
    return image


def _cell_edges(tiles: int, cells: int, size: float, gap: float) -> Array:
    """Where the cells of tiles begin, and the gaps after them, with the end of the last gap."""
    within = np.append(np.arange(cells) * size / cells, size)
    return np.append((np.arange(tiles)[:, None] * (size + gap) + within).ravel(), tiles * (size + gap))
