"""Several methods on one image, each on its own scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import Attribution
from layerlens.signatures import public

from .. import style
from ..drawing import attribution_sample, image_panels, intervals
from ..drawing.attribution_sample import Channel, Sample
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

NARROWEST: Final = 1.05
"""Inches of figure for a panel: the numbers of its colorbar and a word of its title."""


@public
@each_sample(lambda one: len(one[0].score))
def compare_methods(
    attributions: Sequence[Attribution],
    sample: Which = None,
    *,
    columns: int | None = None,
    overlay: bool = True,
    channel: Channel = "sum",
    name: str | None = None,
    width: style.Width = "page",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    interval: float | None = 0.9,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw several methods on the same image, after the picture itself; each has its own scale, as units differ.

    In maps of methods that have an error, places whose interval includes 0 are faded.

    Args:
        attributions: one per method, for the same inputs.
        columns: panels in a row; None takes up to five that are wide enough to be read.
        overlay: whether maps are drawn over the picture.
        vmax: end of every scale; None gives each its own, from `clip`.
        title: None for the target if all have the same, `""` for none.
        labels: titles of the maps; None takes their methods.

    Returns:
        The plot; `data` holds the maps drawn, by label.

    Raises:
        OptionError: if there is no such sample, channel, input name or colormap.
        PlotError: for anything but images, for differing inputs, or values that cannot be drawn.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 3, 8, 8)
        >>> maps = [
        ...     Attribution(x * scale, None, True, "score", "class 7", method, {}, torch.ones(1), inputs=x)
        ...     for method, scale in {"gradient": 1, "occlusion": 4}.items()
        ... ]
        >>> list(compare_methods(maps).data)
        ['gradient', 'occlusion']
    """
    several = list(attributions)
    if not several:
        raise PlotError("there is nothing to compare: the list of attributions is empty.")
    shown = [attribution_sample.read(one, sample, channel=channel, name=name, interval=interval) for one in several]
    image_panels.only_images(shown, "compare_methods")
    picture = common_picture(several, shown, sample)
    titles = [words(one.how) for one in several] if labels is None else list(labels)
    if len(titles) != len(several):
        raise PlotError(f"{len(titles)} labels for {len(several)} methods; give one per method.")
    count = len(shown) + (picture is not None)
    if columns is not None and columns < 1:
        raise OptionError(f"columns={columns!r}; give 1 or more.")
    sample = attribution_sample.sample_index(sample, len(several[0].score), "the batch")
    targets = {one.target_of(sample) for one in several}
    data: dict[str, Any] = {}
    with Canvas(width=width, fig=fig) as canvas:
        columns = _column_count(count, canvas.width) if columns is None else columns
        shown = [dataclasses.replace(one, picture=picture) for one in shown]
        shown, note = image_panels.averaged_to_fit(shown, canvas.width / columns)
        picture = shown[0].picture
        aspect = shown[0].values.shape[0] / shown[0].values.shape[1]
        notes = [*[note] * bool(note), *intervals.note("faded", [one.unsettled for one in shown], interval)]
        canvas.title(title, f"Target: {targets.pop()}" if len(targets) == 1 else "", "; ".join(notes))
        if picture is not None:
            axes = canvas.panel(aspect=aspect, title=f"Input, score {style.number(shown[0].score)}")
            image_panels.show_picture(axes, picture)
        for index, (one, line) in enumerate(zip(shown, titles, strict=True), start=count - len(shown)):
            row, column = divmod(index, columns)
            limits = style.limits([one.values], signed=one.signed, clip=clip, vmax=vmax, what=one.what)
            axes = canvas.panel(row, column, aspect=aspect, title=line)
            colors = style.colormap(cmap, signed=one.signed)
            below = picture if overlay else None
            mappable, _ = image_panels.show_map(axes, one.values, limits, colors, picture=below, faded=one.unsettled)
            key = several[len(data)].method if labels is None else line
            data[image_panels.unique_key(key, data)] = one.values
            if colorbar:
                canvas.colorbar([axes], mappable, limits, one.units, "bottom")
        return canvas.finish(data)


def _column_count(count: int, inches: float) -> int:
    """Columns for `count` panels: at most five and none too narrow, with the last row as full as can be."""
    rows = -(-count // int(min(max(inches / NARROWEST, 1), 5)))
    return -(-count // rows)


def common_picture(several: list[Attribution], shown: list[Sample], sample: Which) -> Array | None:
    """The input picture that all share, or None if none keeps it.

    Raises:
        PlotError: if the inputs differ.
    """
    first = shown[0]
    known = [(one, other.picture) for one, other in zip(several, shown, strict=True) if other.picture is not None]
    for other in shown[1:]:
        if other.values.shape != first.values.shape:
            raise PlotError(
                f"{first.what} is {first.values.shape[0]} x {first.values.shape[1]}, but {other.what} is "
                f"{other.values.shape[0]} x {other.values.shape[1]}. Compare maps of the same input, at its size."
            )
    for one, picture in known[1:]:
        if picture.shape != known[0][1].shape or not np.allclose(picture, known[0][1], atol=1e-5):
            raise PlotError(
                f"sample {sample} of {known[0][0].method!r} and of {one.method!r} are different inputs. Run both "
                "methods on the same inputs; for several images of one method use overlay_grid."
            )
    return known[0][1] if known else None
