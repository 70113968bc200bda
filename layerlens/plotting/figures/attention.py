"""Attention weights of every layer and head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from layerlens.errors import OptionError, PlotError, suggestion
from layerlens.results import AttentionWeights

from .. import style
from ..drawing import attribution_sample, bars, images, text, token_text
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import FigureBase

Heads = Sequence[int] | Literal["mean"] | None
MOST: Final = 12
"""Layers, and heads of each, that are drawn if none are chosen."""
NARROWEST: Final = 0.5
"""Inches of a map with the gap next to it."""
BAR_WIDTH: Final = 0.6
"""Inches of the colorbar with its numbers."""
NAMES: Final = 0.35
"""Inches of tokens next to a map."""
TITLE: Final = 0.14
"""Inches of a line above a map."""
LONGEST: Final = 0.7
"""Inches of a token."""
PER_INCH: Final = 200
"""Dots that an inch of a map shows."""


@figure(AttentionWeights, kind="maps", usual=True)
@each_sample(lambda one: len(next(iter(one.weights.values()))), "labels", narrowest=3.2)
def attention(
    weights: AttentionWeights,
    sample: Which = None,
    *,
    layers: Sequence[str] | None = None,
    heads: Heads = None,
    width: style.Width | None = None,
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    title: str | None = None,
    labels: Sequence[str] | tuple[Sequence[str], Sequence[str]] | None = None,
    colorbar: bool = True,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw attention as maps of queries (down) by keys (across): the heads of each layer side by side, on one scale.

    Tokens are written along the left and the lower edge, every second or third where all would touch; notes say what
    was left out to fit a page, and how many tokens (padding) no query reads, which are not drawn. If a panel has fewer
    dots than tokens, neighbors are drawn together, as their largest weight; a note says so.

    Args:
        weights: attention of some layers.
        layers: layers from top to bottom; None for those that fit a page, at most 12.
        heads: heads from left to right; None for all, at most 12; `"mean"` for their mean.
        width: ... None is the page for more than one head.
        cmap: matplotlib colormap; None is viridis.
        title: None or `""` for none: the rows name their contents.
        labels: the tokens; None takes those of the tokenizer. `(queries, keys)` where these differ, as for
            cross-attention, which has the answer down and the source across.

    Returns:
        The plot; `data` holds the maps `(head, query, key)` of each layer.

    Raises:
        OptionError: if there is no such sample, layer or head.
        PlotError: if the labels do not fit, or there is no map.

    Example:
        >>> import torch
        >>> weights = AttentionWeights("Net", {"a": torch.rand(1, 2, 3, 3).softmax(-1)}, {"a": "softmax"})
        >>> attention(weights, heads="mean", labels=["the", "cat", "sat"]).data["a"].shape
        (1, 3, 3)
    """
    names = list(weights)[:MOST] if layers is None else list(layers)
    if not names:
        raise PlotError("there is no attention to draw.")
    for name in names:
        if name not in weights.weights:
            raise OptionError(f"there is no attention in {name!r}.{suggestion(name, weights.weights)}")
    data: dict[str, Any] = {name: _attention_maps(weights, name, sample, heads) for name in names}
    read = {name: _read_places(weights, name, sample) for name in names}
    data = {name: maps[:, read[name][0]][:, :, read[name][1]] for name, maps in data.items()}
    widest = max(map(len, data.values()))
    if width is None:
        width = "column" if widest == 1 and len(data) == 1 else "page"
    with Canvas(width=width, fig=fig) as canvas:
        grid = _grid(data, canvas.width)
        if layers is None:
            data = dict(list(data.items())[: grid.fitting])
        each = max(
            1,
            int(
                max(max(maps.shape[1:]) for maps in data.values())
                / (PER_INCH * canvas.width / grid.columns / grid.beside)
            ),
        )
        drawn = {name: _pooled(maps, each) for name, maps in data.items()}
        limits = style.limits(list(drawn.values()), signed=False, clip=clip, vmax=vmax, what="the attention")
        colors = style.colormap(cmap, signed=False, unsigned="viridis")
        short = text.unprefixed(list(drawn), style.SMALL, grid.wide)
        mean = heads == "mean" or weights.heads == "mean"
        every, unknown, lowest = 1, False, {}
        for index, (name, maps) in enumerate(drawn.items()):
            size = data[name].shape[1:]
            block, beside = divmod(index, grid.beside)
            known = _labels_along(labels) if labels is not None else _own_labels(weights, name, sample)
            known = _chosen(weights, name, known, read[name])
            unknown |= labels is None and weights.tokens is not None and name not in weights.inputs and None in known
            if beside == 0 and grid.beside == 1:
                canvas.header(block * grid.rows, name)
            for place, values in enumerate(maps):
                row, column = block * grid.rows + place // grid.columns, place % grid.columns
                which = "mean of heads" if mean else f"head {_head_number(heads, place)}"
                first = grid.beside > 1 and place == 0
                if first:
                    room = max(grid.wide * (1.8 if widest > 1 else 0.8), 0.6)
                    which = f"{text.shorten(short[index], style.SMALL, room)}\n{which}"
                across = beside * grid.columns + column
                axes = canvas.panel(row, across, aspect=size[0] / size[1], title=which, pair=first and widest > 1)
                image = axes.imshow(
                    values, cmap=colors, vmin=0, vmax=limits.high, interpolation="nearest", aspect="auto",
                    extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5),
                )  # fmt: skip
                axes.set_xticks([])
                axes.set_yticks([])
                if column == 0:
                    every = max(
                        every, _write_tokens(axes.yaxis, known[0], size[0], grid.wide * size[0] / size[1], across=False)
                    )
                if widest == 1:
                    axes.set_ylabel("query")
                    axes.set_xlabel("key")
                lowest[axes] = (row, across, known[1], size)
        bottom = {column: row for row, column, *_ in sorted(lowest.values(), key=lambda one: one[0])}
        for axes, (row, column, tokens, size) in lowest.items():
            if widest == 1 or bottom[column] == row:
                every = max(every, _write_tokens(axes.xaxis, tokens, size[1], grid.wide, across=True))
        notes = ["down: queries, across: keys"] * (widest > 1)
        notes += _left_out(weights, data, heads, layers is None)
        notes += [f"{_ordinal(every)} token is named"] * (every > 1)
        padding = max(weights[name].shape[-1] - len(read[name][1]) for name in data)
        notes += [f"{padding} tokens that no query reads (padding) are not drawn"] * bool(padding)
        notes += [f"each dot: the largest weight among {each} x {each} tokens"] * (each > 1)
        notes += ["which tokens these are is unknown: labels=(queries, keys)"] * unknown
        canvas.title(title, "", "; ".join(notes))
        if colorbar:
            last = max(lowest, key=lambda axes: (-lowest[axes][0], lowest[axes][1]))
            canvas.colorbar([last], image, limits, "attention", "right")
        return canvas.finish(data)


class _Grid(NamedTuple):
    """Columns and rows of a layer, layers side by side, inches of a map, and layers that fit a page."""

    columns: int
    rows: int
    beside: int
    wide: float
    fitting: int


def _grid(data: dict[str, Array], inches: float) -> _Grid:
    """As few layers side by side as fit a page, for maps as large as can be."""
    widest = max(map(len, data.values()))
    columns = _columns(widest, inches)
    rows, aspect = -(-widest // columns), max(maps.shape[1] / maps.shape[2] for maps in data.values())
    found = []
    for beside in range(1, max(1, min(len(data), int((inches - BAR_WIDTH - NAMES) / NARROWEST) // columns)) + 1):
        wide = (inches - BAR_WIDTH - NAMES) / (columns * beside)
        block = rows * (wide * aspect + TITLE) + TITLE + (widest == 1) * NAMES
        fitting = max(1, int((bars.PAGE_FULL - NAMES) / block)) * beside
        found.append(_Grid(columns, rows, beside, wide, min(fitting, len(data))))
        if fitting >= len(data):
            break
    return max(found, key=lambda grid: (grid.fitting, -grid.beside))


def _left_out(weights: AttentionWeights, data: dict[str, Array], heads: Heads, chosen: bool) -> list[str]:
    """What is not drawn of all layers and heads, in words."""
    notes = [f"{len(data)} of {len(weights)} layers, layers= chooses others"] * (chosen and len(data) < len(weights))
    most = max(weights[name].shape[1] for name in data)
    return notes + [f"{MOST} of {most} heads, heads= chooses others"] * (heads is None and most > MOST)


def _ordinal(every: int) -> str:
    return f"every {every}{ {2: 'nd', 3: 'rd'}.get(every, 'th') }"


def _read_places(weights: AttentionWeights, name: str, sample: Which) -> tuple[Array, Array]:
    """The queries and keys that are drawn: without the keys that no query of any head reads, which are padding."""
    given = weights[name]
    one = images.finite_array(given[attribution_sample.sample_index(sample, len(given), "the attention")], name)
    kept = (one != 0).any(axis=(0, 1))
    square = one.shape[1] == one.shape[2] and weights.queries.get(name) == weights.keys.get(name)
    queries = kept if square and _own_pair(weights, name) else np.ones(one.shape[1], dtype=bool)
    if not (one[:, queries] != 0).any(axis=(0, 2)).all() or not kept.any():  # not a mask: queries that read nothing
        return np.arange(one.shape[1]), np.arange(one.shape[2])
    return np.flatnonzero(queries), np.flatnonzero(kept)


def _own_pair(weights: AttentionWeights, name: str) -> bool:
    """Whether queries and keys are the same tokens."""
    queries, keys = weights.inputs.get(name, ("", ""))
    return queries == keys


def _columns(heads: int, inches: float) -> int:
    """Heads in a row, none too narrow, with the last row as full as can be."""
    rows = -(-heads // int(max((inches - BAR_WIDTH) / NARROWEST, 1)))
    return -(-heads // rows)


def _pooled(maps: Array, each: int) -> Array:
    """The largest weight of each block of `each` queries and keys."""
    for axis in (1, 2) if each > 1 else ():
        maps = np.maximum.reduceat(maps, np.arange(0, maps.shape[axis], each), axis=axis)
    return maps


def _attention_maps(weights: AttentionWeights, name: str, sample: Which, heads: Heads) -> Array:
    """The maps of one layer, `(head, query, key)`.

    Raises:
        OptionError: if there is no such head.
    """
    given = weights[name]
    row = attribution_sample.sample_index(sample, len(given), f"the attention of {name!r}")
    values = images.finite_array(given[row], f"the attention of {name!r}")
    if heads == "mean":
        mean: Array = values.mean(axis=0, keepdims=True)
        return mean
    count = len(values)
    listed = list(range(min(count, 12))) if heads is None else list(heads)
    if not listed or any(isinstance(head, str) or not -count <= head < count for head in listed):
        raise OptionError(f"heads={heads!r}, but {name!r} has {count} (0 to {count - 1}), or 'mean'.")
    return values[listed]


def _head_number(heads: Heads, column: int) -> int:
    return column if heads is None else int(heads[column])


def _own_labels(
    weights: AttentionWeights, layer: str, sample: Which
) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """The tokens of queries and of keys; None where there are not as many, as where a cache has the others."""
    parts = (weights.queries.get(layer), weights.keys.get(layer))
    given = weights[layer]
    sample = attribution_sample.sample_index(sample, len(given), f"the attention of {layer!r}")
    known = zip(weights.tokens_along(layer, sample), parts, given.shape[-2:], strict=True)
    queries, keys = (
        None if names is None or (part is None and len(names) != count) or max(part or (0,)) >= len(names) else names
        for names, part, count in known
    )
    return queries, keys


def _labels_along(labels: Sequence[Any]) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """The labels of queries and of keys."""
    if len(labels) == 2 and not any(isinstance(one, str) for one in labels):
        return labels[0], labels[1]
    return labels, labels


def _chosen(
    weights: AttentionWeights,
    layer: str,
    tokens: tuple[Sequence[str] | None, Sequence[str] | None],
    read: tuple[Array, Array],
) -> tuple[list[str] | None, list[str] | None]:
    """The names of the queries and keys that are drawn.

    Raises:
        PlotError: if there is not one label per token.
    """
    found: list[list[str] | None] = []
    parts = (weights.queries.get(layer), weights.keys.get(layer))
    for names, part, size, kept in zip(tokens, parts, weights[layer].shape[-2:], read, strict=True):
        if names is None:
            found.append(None)
            continue
        places = list(range(size)) if part is None else list(part)
        if max(places) >= len(names) or (part is None and size != len(names)):
            raise PlotError(f"{len(names)} labels for {size} tokens; give one per token, labels=(queries, keys).")
        found.append([token_text.spelled(names[places[index]]) for index in kept])
    return found[0], found[1]


def _write_tokens(axis: Axis, names: list[str] | None, size: int, inches: float, *, across: bool) -> int:
    """Write tokens along an edge, as many as do not touch; return how many share a name."""
    if names is None:
        return 1
    every = max(1, math.ceil(size * style.SMALL * 1.15 / 72 / inches))
    written = [text.shorten(name, style.SMALL, LONGEST) for name in names[::every]]
    axis.set_ticks(np.arange(0, size, every), written, fontsize=style.SMALL)
    axis.set_tick_params(length=0, labelrotation=90 if across else 0)
    return every
