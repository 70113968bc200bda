"""Several methods on several images: a row for each picture, a column for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerlens.errors import PlotError, check_count, choose
from layerlens.results import Attribution, Leaderboard
from layerlens.signatures import public

from .. import style
from ..drawing import attribution_sample, image_panels, intervals
from ..drawing.attribution_sample import Channel, Sample
from ..drawing.canvas import Canvas
from ..plot import Plot
from ..style import Array, Limits
from ..words import words
from .compare_methods import common_picture

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@public
def method_grid(
    attributions: Mapping[str, Attribution] | Sequence[Attribution],
    *,
    which: Sequence[int] | None = None,
    board: Leaderboard | None = None,
    metric: str | None = None,
    overlay: bool = False,
    channel: Channel = "sum",
    name: str | None = None,
    width: style.Width = "page",
    cmap: str | None = None,
    clip: float = 99.5,
    interval: float | None = 0.9,
    places: int = 112,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw methods side by side on several images, each picture first in its row; with a board, their numbers.

    Units differ between methods and sizes between pictures, so every map is shown as parts of its own largest value, on
    one colorbar; if any method is signed, maps of magnitude take the positive half of its colors. Large maps are
    averaged over blocks, as panels this small would leave out most of their places. In maps of methods that have an
    error, places whose interval includes 0 are faded.

    Args:
        attributions: by the names to show, each with all samples of the same inputs; or a sequence, named by method.
        which: samples to draw; None draws the first six.
        board: leaderboard of the same methods and samples: the score of each map is written below it, the best of the
            row in bold.
        metric: metric of the board; None is its first.
        overlay: whether maps are drawn over the picture, which hides what is fine in small panels.
        cmap: matplotlib colormap; None is RdBu_r if any method is signed, else magma.
        clip: percentile of |value| of each averaged map that counts as its largest, stated at the colorbar.
        places: largest height or width of a map as drawn; larger ones are averaged to it.
        title: None for the metric of the board, `""` for none.
        labels: names of the rows; None is the name of the sample, if it has one, its target and its score.

    Returns:
        The plot; `data["maps"]` holds what was drawn, as parts of the largest, `(rows, methods, height, width)`.

    Raises:
        OptionError: if there is no such sample, channel, input name, metric or colormap, or `places` is below 1.
        PlotError: for anything but images, for differing or missing inputs, a board of other methods or samples, or
            values that cannot be drawn.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3, 8, 8)
        >>> maps = {
        ...     method: Attribution(x * scale, None, True, "score", "class 7", method, {}, torch.ones(2), inputs=x)
        ...     for method, scale in {"gradient": 1, "occlusion": 4}.items()
        ... }
        >>> method_grid(maps).data["maps"].shape
        (2, 2, 8, 8)
    """
    named = dict(attributions) if isinstance(attributions, Mapping) else _by_name(attributions)
    if not named:
        raise PlotError("there is nothing to draw: no attributions were given.")
    several = list(named.values())
    check_count("places", places)
    numbers = _scores(board, metric, named)
    first = several[0]
    read = attribution_sample.read(first, 0, channel=channel, name=name)  # refuses anything else
    count = len(first.score)
    rows = (
        list(range(min(count, 6)))
        if which is None
        else [attribution_sample.sample_index(one, count, "the batch") for one in which]
    )
    if not rows:
        raise PlotError("which=[] draws nothing; give the samples to draw, or None for the first six.")
    shown = [
        [attribution_sample.read(one, row, channel=channel, name=name, interval=interval) for one in several]
        for row in rows
    ]
    image_panels.only_images([read, *(one for line in shown for one in line)], "method_grid")
    pictures = [common_picture(several, line, row) for row, line in zip(rows, shown, strict=True)]
    if labels is None:
        labels = [
            "\n".join(
                [
                    *[first.sample_name(row)] * (first.index is not None),
                    first.target_of(row),
                    f"score {style.number(line[0].score)}",
                ]
            )
            for row, line in zip(rows, shown, strict=True)
        ]
    elif len(labels) != len(rows):
        raise PlotError(f"{len(labels)} labels for {len(rows)} rows; give one per sample.")
    signed = any(one.signed for one in shown[0])
    colors = style.colormap(cmap, signed=signed)
    drawn = []
    with Canvas(width=width, fig=fig) as canvas:
        automatic = "" if board is None else f"{words(metric or board.metrics[0])} below each map"
        every = [one.unsettled for line in shown for one in line]
        canvas.title(title, automatic, "; ".join(intervals.note("faded", every, interval)))
        edge = []
        for place, (row, line, picture, label) in enumerate(zip(rows, shown, pictures, labels, strict=True)):
            aspect = line[0].values.shape[0] / line[0].values.shape[1]
            known = {method: float(values[row]) for method, values in numbers.items()}
            ahead = _best_score(known, board, metric)
            if picture is not None:
                left = canvas.panel(place, 0, aspect=aspect, title="" if place else "Input")
                image_panels.show_picture(left, picture)
            for column, (method, one) in enumerate(zip(named, line, strict=True), start=picture is not None):
                axes = canvas.panel(place, column, aspect=aspect, title="" if place else words(method))
                part, faded, limits = _relative_to_largest(one, signed, clip, places)
                drawn.append(part)
                below = picture if overlay else None
                mappable, _ = image_panels.show_map(axes, part, limits, colors, picture=below, faded=faded)
                for image in axes.images:  # the picture below may have more places
                    image.set_extent((-0.5, part.shape[1] - 0.5, part.shape[0] - 0.5, -0.5))
                if method in known:
                    text = _two_digits(known[method])
                    axes.set_xlabel(text, fontweight="bold" if text == ahead else "normal")
                if column == 0:
                    left = axes
            left.set_ylabel(label)
            edge.append(axes)
        if colorbar:
            canvas.colorbar(edge, mappable, limits, "part of each map's largest", "right")
        plot = canvas.finish({"maps": np.stack(drawn).reshape(len(rows), len(named), *drawn[0].shape)})
    _average_what_shrinks(plot)
    return plot


def _by_name(several: Sequence[Attribution]) -> dict[str, Attribution]:
    found: dict[str, Attribution] = {}
    for one in several:
        if not isinstance(one, Attribution):
            raise PlotError(f"method_grid draws Attributions, not a {type(one).__name__}.")
        found[image_panels.unique_key(one.how, found)] = one
    return found


def _scores(board: Leaderboard | None, metric: str | None, named: Mapping[str, Attribution]) -> dict[str, Any]:
    if board is None:
        return {}
    if not isinstance(board, Leaderboard):
        raise PlotError(f"board= takes a Leaderboard, not a {type(board).__name__}.")
    numbers = {method: board.of(choose("method of the board", method, board.methods), metric) for method in named}
    for method, one in named.items():
        if len(one.score) != board.values.shape[2]:
            raise PlotError(
                f"the board is of {board.values.shape[2]} sample(s), and {method!r} of {len(one.score)}: give a board "
                "of the same samples."
            )
    return numbers


def _best_score(known: dict[str, float], board: Leaderboard | None, metric: str | None) -> str | None:
    """The best number of a row as it is written, when there are several to choose from."""
    if board is None or len(known) < 2:
        return None
    up = board.higher[board.metrics.index(metric or board.metrics[0])]
    return _two_digits(max(known.values()) if up else min(known.values()))


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−") if abs(value) < 100 else style.number(value)


def _relative_to_largest(one: Sample, signed: bool, clip: float, places: int) -> tuple[Array, Array | None, Limits]:
    """The map as parts of its largest value, which places are not settled, and the range that all share."""
    values, widths = one.values, one.widths
    if max(values.shape) > places:
        high, wide = (max(1, round(side * places / max(values.shape))) for side in values.shape)
        values = _averaged(values, high, wide)
        if widths is not None:
            widths = np.stack([_averaged(widths[..., side], high, wide) for side in (0, 1)], axis=-1)
    own = style.limits([values], signed=one.signed, clip=clip, vmax=None, what=one.what)
    shared = Limits(-1.0 if signed else 0.0, 1.0, clip < 100, own.note)
    return values / own.high, intervals.unsettled(values, widths), shared


def _averaged(values: Array, high: int, wide: int) -> Array:
    """The means over blocks, `(high, wide)`."""
    given = torch.from_numpy(values[None].astype(np.float64))
    averaged: Array = torch.nn.functional.adaptive_avg_pool2d(given, (high, wide))[0].numpy()
    return averaged


def _average_what_shrinks(plot: Plot) -> None:
    """Let panels of fewer pixels than their picture show means, where nearest pixels would leave out lines."""
    for axes in plot.axes:
        for image in axes.images:
            if image.get_size()[1] > axes.get_window_extent().width:
                image.set_interpolation("antialiased")
                image.set_interpolation_stage("data")  # +1 and -1 make 0, where red and blue would make purple
