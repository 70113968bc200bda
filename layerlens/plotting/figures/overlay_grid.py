"""One method on several images: each picture next to its map, all on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from layerlens.errors import OptionError, PlotError
from layerlens.results import Attribution

from .. import style
from ..drawing import attribution_sample, image_panels, intervals
from ..drawing.attribution_sample import Channel, Sample
from ..drawing.canvas import Canvas
from ..drawing.each_sample import sample_label
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

NARROWEST: Final = 1.9
"""Inches of figure for a pair."""


@figure(Attribution, kind="grid")
def overlay_grid(
    attributions: Attribution | Sequence[Attribution],
    *,
    which: Sequence[int] | None = None,
    columns: int | None = None,
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
    """Draw one method on several images: each input picture next to its map, on one shared scale.

    Where values have an error, places whose interval includes 0 are faded.

    Args:
        attributions: one attribution with several samples, or several of the same method, each with all its samples.
        which: samples to draw, counted over all attributions; None draws the first twelve.
        columns: pairs of picture and map in a row; None takes up to three that are wide enough to be seen.
        clip: ... It is taken over all samples.
        labels: names of the pairs; None is the number of the sample, after its name if it has one, and its score.

    Returns:
        The plot; `data` holds what was drawn, by label.

    Raises:
        OptionError: if there is no such sample, channel, input name or colormap.
        PlotError: for anything but images, for a missing input, several methods, or values that cannot be drawn.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3, 8, 8)
        >>> maps = Attribution(x - 0.5, None, True, "score", "class 7", "gradient", {}, torch.ones(2), inputs=x)
        >>> list(overlay_grid(maps).data)
        ['sample 0, score 1', 'sample 1, score 1']
    """
    shown, names = _samples(attributions, which, channel, name, interval)
    if labels is None:
        labels = [f"{called}, score {style.number(one.score)}" for called, one in zip(names, shown, strict=True)]
    elif len(labels) != len(shown):
        raise PlotError(f"{len(labels)} labels for {len(shown)} samples; give one per sample.")
    if columns is not None and columns < 1:
        raise OptionError(f"columns={columns!r}; give 1 or more.")
    colors = style.colormap(cmap, signed=shown[0].signed)
    data: dict[str, Any] = {}
    with Canvas(width=width, fig=fig) as canvas:
        if columns is None:
            columns = min(len(shown), 3, int(max(canvas.width / NARROWEST, 1)))
        shown, note = image_panels.averaged_to_fit(shown, canvas.width / (2 * columns))
        limits = style.limits(
            [one.values for one in shown], signed=shown[0].signed, clip=clip, vmax=vmax, what=shown[0].what
        )
        same = len({one.title for one in shown}) == 1
        first = attributions if isinstance(attributions, Attribution) else attributions[0]
        notes = [*[note] * bool(note), *intervals.note("faded", [one.unsettled for one in shown], interval)]
        canvas.title(title, shown[0].title if same else words(first.how), "; ".join(notes))
        edge = []
        for index, (one, label) in enumerate(zip(shown, labels, strict=True)):
            row, column = divmod(index, columns)
            aspect = one.values.shape[0] / one.values.shape[1]
            left = canvas.panel(row, 2 * column, aspect=aspect, title=label, pair=True)
            assert one.picture is not None  # _samples has seen to it
            image_panels.show_picture(left, one.picture)
            right = canvas.panel(row, 2 * column + 1, aspect=aspect)
            mappable, _ = image_panels.show_map(
                right, one.values, limits, colors, picture=one.picture, faded=one.unsettled
            )
            data[image_panels.unique_key(label, data)] = one.values
            if column == min(columns, len(shown)) - 1:
                edge.append(right)
        if colorbar:
            canvas.colorbar(edge, mappable, limits, shown[0].units, "right")
        return canvas.finish(data)


def _samples(
    attributions: Attribution | Sequence[Attribution],
    which: Sequence[int] | None,
    channel: Channel,
    name: str | None,
    interval: float | None,
) -> tuple[list[Sample], list[str]]:
    """Return the samples to draw, and what each is called: its number over all attributions, after its name.

    Raises:
        PlotError: if there is nothing to draw, or it is not one method of images.
    """
    several = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    if not several:
        raise PlotError("there is nothing to draw: the list of attributions is empty.")
    first = attribution_sample.read(several[0], 0, channel=channel, name=name)
    places = [(one, index) for one in several for index in range(len(one.score))]
    numbers = list(range(min(len(places), 12))) if which is None else list(which)
    if not numbers:
        raise PlotError("which=[] draws nothing; give the samples to draw, or None for the first twelve.")
    numbers = [attribution_sample.sample_index(number, len(places), "the batch") for number in numbers]
    shown = [
        attribution_sample.read(*places[number], channel=channel, name=name, interval=interval) for number in numbers
    ]
    image_panels.only_images([first, *shown], "overlay_grid")
    for other in several[1:]:
        mine, theirs = ((one.method, one.units, one.signed) for one in (several[0], other))
        if mine != theirs:
            raise PlotError(
                f"overlay_grid has one scale, so it draws one method; given were {mine[0]!r} (in {mine[1]}) and "
                f"{theirs[0]!r} (in {theirs[1]}). Put methods side by side with compare_methods."
            )
    for one in shown:
        if one.picture is None:
            raise PlotError(
                f"{one.what} keeps no input picture to show next to it. Add it: dataclasses.replace(result, inputs=x), "
                "or draw the map alone with heatmap."
            )
    names = [sample_label(*places[number], number) for number in numbers]
    targets = [one.target_of(row) for one, row in (places[number] for number in numbers)]
    return shown, names if len(set(targets)) == 1 else [": ".join(both) for both in zip(names, targets, strict=True)]
