"""Attention weights of every layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from layerlens.errors import OptionError, PlotError, suggestion
from layerlens.results import AttentionWeights

from .. import style
from ..drawing import attribution_sample, images, token_text
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

Heads = Sequence[int] | Literal["mean"] | None
MOST_TOKENS: Final = 40
"""Tokens that are written next to a map; more would not be legible."""
NARROWEST: Final = 0.5
"""Inches of a map with the gap next to it."""
BAR_WIDTH: Final = 0.6
"""Inches of the colorbar with its numbers."""
PER_INCH: Final = 200
"""Dots that an inch of a map shows."""


@figure(AttentionWeights, kind="maps", usual=True)
def attention(
    weights: AttentionWeights,
    sample: int = 0,
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

    Tokens are written next to the maps if there is one map of each layer and at most 40 tokens. If a panel has fewer
    dots than tokens, neighbors are drawn together, as their largest weight; a note says so.

    Args:
        weights: attention of some layers.
        layers: layers from top to bottom; None for all, at most 12.
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
    names = list(weights)[:12] if layers is None else list(layers)
    if not names:
        raise PlotError("there is no attention to draw.")
    for name in names:
        if name not in weights.weights:
            raise OptionError(f"there is no attention in {name!r}.{suggestion(name, weights.weights)}")
    data: dict[str, Any] = {name: _attention_maps(weights, name, sample, heads) for name in names}
    widest = max(map(len, data.values()))
    if width is None:
        width = "column" if widest == 1 else "page"
    unknown = False
    with Canvas(width=width, fig=fig) as canvas:
        columns = _columns(widest, canvas.width)
        each = max(1, int(max(max(maps.shape[1:]) for maps in data.values()) / (PER_INCH * canvas.width / columns)))
        drawn = {name: _pooled(maps, each) for name, maps in data.items()}
        limits = style.limits(list(drawn.values()), signed=False, clip=clip, vmax=vmax, what="the attention")
        colors = style.colormap(cmap, signed=False, unsigned="viridis")
        row, mean = -1, heads == "mean" or weights.heads == "mean"
        for name, maps in drawn.items():
            size = data[name].shape[1:]
            for place, values in enumerate(maps):
                row += place % columns == 0
                if place == 0:
                    canvas.header(row, name)
                which = "mean of heads" if mean else f"head {_head_number(heads, place)}"
                axes = canvas.panel(row, place % columns, aspect=size[0] / size[1], title=which)
                image = axes.imshow(
                    values, cmap=colors, vmin=0, vmax=limits.high, interpolation="nearest", aspect="auto",
                    extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5),
                )  # fmt: skip
                axes.set_xticks([])
                axes.set_yticks([])
                if len(maps) == 1:
                    known = _labels_along(labels) if labels is not None else _own_labels(weights, name, sample, size)
                    unknown |= labels is None and weights.tokens is not None and name not in weights.inputs
                    unknown &= None in known
                    _write_tokens(axes, weights, name, known, size)
                if place < columns:
                    last = axes  # of the first row of heads, which reaches farthest to the right
        notes = ["down: queries, across: keys"] * (widest > 1)
        notes += [f"each dot: the largest weight among {each} x {each} tokens"] * (each > 1)
        notes += ["which tokens these are is unknown: labels=(queries, keys)"] * unknown
        canvas.title(title, "", "; ".join(notes))
        if colorbar:
            canvas.colorbar([last], image, limits, "attention", "right")
        return canvas.finish(data)


def _columns(heads: int, inches: float) -> int:
    """Heads in a row, none too narrow, with the last row as full as can be."""
    rows = -(-heads // int(max((inches - BAR_WIDTH) / NARROWEST, 1)))
    return -(-heads // rows)


def _pooled(maps: Array, each: int) -> Array:
    """The largest weight of each block of `each` queries and keys."""
    for axis in (1, 2) if each > 1 else ():
        maps = np.maximum.reduceat(maps, np.arange(0, maps.shape[axis], each), axis=axis)
    return maps


def _attention_maps(weights: AttentionWeights, name: str, sample: int, heads: Heads) -> Array:
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
    weights: AttentionWeights, layer: str, sample: int, size: tuple[int, ...]
) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """The tokens of queries and of keys; None where there are not as many, as where a cache has the others."""
    parts = (weights.queries.get(layer), weights.keys.get(layer))
    known = zip(weights.tokens_along(layer, sample), parts, size, strict=True)
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


def _write_tokens(
    axes: Axes,
    weights: AttentionWeights,
    layer: str,
    tokens: tuple[Sequence[str] | None, Sequence[str] | None],
    shape: tuple[int, ...],
) -> None:
    """Write queries and keys next to a map.

    Raises:
        PlotError: if there is not one label per token.
    """
    queries, keys = weights.queries.get(layer), weights.keys.get(layer)
    axes.set_ylabel("query")
    axes.set_xlabel("key")
    for names, chosen, size, axis in (
        (tokens[0], queries, shape[0], axes.yaxis),
        (tokens[1], keys, shape[1], axes.xaxis),
    ):
        if names is None:
            continue
        places = list(range(size)) if chosen is None else list(chosen)
        if max(places) >= len(names) or (chosen is None and size != len(names)):
            raise PlotError(f"{len(names)} labels for {size} tokens; give one per token, labels=(queries, keys).")
        if size <= MOST_TOKENS:
            written = [token_text.spelled(names[place]) for place in places]
            axis.set_ticks(np.arange(size), written, fontsize=style.SMALL)
    axes.tick_params(axis="x", labelrotation=90, length=0)
    axes.tick_params(axis="y", length=0)
