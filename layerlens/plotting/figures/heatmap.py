"""One attribution of one sample: an image, a series, a row of tokens or a vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import PlotError
from layerlens.results import Attribution

from .. import style
from ..drawing import attribution_sample, bars, image_panels, intervals
from ..drawing.attribution_sample import Channel, Sample
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..drawing.token_text import spelled
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

MOST_TOKENS: Final = 60
MOST_FEATURES: Final = 40


@figure(Attribution, kind="heatmap", usual=True)
@each_sample(lambda one: len(one.score), "overlay", "boxes")
def heatmap(
    attribution: Attribution,
    sample: Which = None,
    *,
    overlay: bool | torch.Tensor | Array = True,
    boxes: torch.Tensor | Array | Sequence[Sequence[float]] | None = None,
    channel: Channel = "sum",
    name: str | None = None,
    width: style.Width = "column",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    interval: float | None = 0.9,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw one sample of an attribution.

    An image is drawn in colors over its input in middle gray, with opacity proportional to |value|; an image with many
    more pixels than the figure has dots is averaged over blocks, as a note says. A series is an image with time from
    left to right. Tokens are bars with their texts, at most 60: the weakest are added up in one row; tokens that are
    parts of one character are one bar, and several inputs of tokens follow each other, with a line between them. A
    vector is bars, or a line if it has more than 40 features.

    Where values have an error, places whose interval includes 0 are faded, and bars hatched; bars and lines show the
    intervals.

    Args:
        attribution: values `(batch, channel, height, width)`, `(batch, height, width)`, `(batch, time, feature)`,
            `(batch, token)` or `(batch, feature)`.
        overlay: True draws an image over its input, False alone; or a picture of the same height and width to draw it
            over, such as the photograph before it was standardized.
        boxes: boxes to outline on an image, such as those of a detector: `(n, 4)`, or one of 4 numbers, as left, top,
            right, bottom in pixels of the input.
        cmap: ... For images and series.
        clip: ... For images and series.
        labels: names of the features or tokens, or of the rows of a series; None takes those of the result.

    Returns:
        The plot; `data["values"]` is what was drawn.

    Raises:
        OptionError: if there is no such sample, channel, input name or colormap.
        PlotError: if the values are zero everywhere, not finite, or not of the shape of a picture.

    Example:
        >>> import torch
        >>> maps = Attribution(torch.randn(1, 3, 8, 8), None, True, "score", "class 7", "gradient", {}, torch.ones(1))
        >>> heatmap(maps).data["values"].shape
        (8, 8)
    """
    shown = _read(attribution, sample, channel, name, grouped=labels is None, interval=interval)
    if labels is not None:
        rows = len(shown.values)
        if shown.form == "image" or len(labels) != rows:
            have = "an image, which has none" if shown.form == "image" else f"{rows} rows"
            raise PlotError(f"{len(labels)} labels for {have}: labels= names features, tokens or the rows of a series.")
    if boxes is not None and shown.form != "image":
        raise PlotError(f"boxes= outlines places of an image, and {shown.what} is {shown.form}.")
    labels = shown.features if labels is None else labels
    with Canvas(width=width, ax=ax) as canvas:
        if shown.form == "image":
            shown = dataclasses.replace(shown, picture=image_panels.given_picture(overlay, shown))
        size = shown.values.shape
        (shown,), note = image_panels.averaged_to_fit([shown], canvas.width)
        limits = style.limits([shown.values], signed=shown.signed, clip=clip, vmax=vmax, what=shown.what)
        notes = [note, ", then ".join(part for part, _ in shown.parts)]
        notes += intervals.note(_look(shown), [shown.unsettled], interval)
        canvas.title(title, shown.title, "; ".join(filter(None, notes)))
        data = {"values": shown.values}
        if shown.form in ("image", "series"):
            colors = style.colormap(cmap, signed=shown.signed)
            if shown.form == "image":
                picture = shown.picture
                axes = canvas.panel(aspect=shown.values.shape[0] / shown.values.shape[1])
                mappable, data["alpha"] = image_panels.show_map(
                    axes, shown.values, limits, colors, picture=picture, faded=shown.unsettled
                )
                if picture is not None:
                    data["picture"] = picture
                if boxes is not None:
                    data["boxes"] = image_panels.show_boxes(axes, boxes, size, shown.values.shape)
            else:
                axes, mappable = _draw_series(canvas, shown, limits, colors, labels)
            if colorbar:
                canvas.colorbar([axes], mappable, limits, shown.units, "right")
        else:
            data["values"] = (_draw_bars if _fits_bars(shown) else _draw_line)(canvas, shown, labels, vmax)
            most = 1.03 * float(np.abs(data["values"]).max())
            canvas.place.scales.append(dataclasses.replace(limits, high=most, note=""))
        return canvas.finish(data)


def _look(shown: Sample) -> intervals.Look:
    """How values look whose sign is not settled."""
    if shown.form in ("image", "series"):
        return "faded"
    return "hatched" if _fits_bars(shown) else "band"


def _fits_bars(shown: Sample) -> bool:
    return shown.form == "tokens" or len(shown.values) <= MOST_FEATURES


def _read(
    attribution: Attribution,
    sample: Which,
    channel: Channel,
    name: str | None,
    *,
    grouped: bool,
    interval: float | None,
) -> Sample:
    """The sample that is drawn: of several inputs the tokens of all, if all are tokens."""
    values = attribution.values if isinstance(attribution, Attribution) else None
    if isinstance(values, dict) and name is None and set(attribution_sample.text_inputs(attribution)) == set(values):
        return attribution_sample.read_texts(attribution, sample, grouped=grouped, interval=interval)
    return attribution_sample.read(attribution, sample, channel=channel, name=name, grouped=grouped, interval=interval)


def _draw_series(
    canvas: Canvas, shown: Sample, limits: style.Limits, colors: Colormap, labels: Sequence[str] | None
) -> Any:
    rows = len(shown.values)
    axes = canvas.panel(height=min(max(0.09 * rows, 0.8), 2.6) if labels is None else bars.pitch_of(1) * rows)
    image = axes.imshow(
        shown.values, cmap=colors, vmin=limits.low, vmax=limits.high, interpolation="nearest", aspect="auto",
        alpha=intervals.faded(np.ones(shown.values.shape), shown.unsettled),
    )  # fmt: skip
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(shown.axes[1])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if labels is None:
        axes.set_ylabel(shown.axes[0])
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        axes.set_yticks(range(rows), list(labels), fontsize=style.SMALL)
    return axes, image


def _draw_bars(canvas: Canvas, shown: Sample, labels: Sequence[str] | None, vmax: float | None) -> Array:
    if labels is not None:
        names = list(labels)
    elif shown.tokens is not None:
        names = [spelled(token) for token in shown.tokens]
    else:
        names = [str(index) for index in range(len(shown.values))]
    values, widths = shown.values, shown.widths
    kept, others = bars.strongest(np.abs(values), MOST_TOKENS)
    starts = [start for _, start in shown.parts[1:]]
    if others:
        starts = [int(np.searchsorted(np.asarray(kept), start)) for start in starts]
    if others:
        names = [*(names[row] for row in kept), f"{len(others)} weaker, sum"]
        values = np.append(values[kept], values[others].sum())
        widths = None if widths is None else np.append(widths[kept], [[np.nan, np.nan]], axis=0)
    axes = canvas.panel()
    canvas.panels[-1].height = bars.name_rows(axes, names, canvas.width)
    bars.draw(axes, values, colors=style.signed_colors(values), widths=widths)
    bars.value_axis(axes, shown.units)
    if vmax is not None:
        axes.set_xlim(-vmax if shown.signed else 0, vmax)
    for row in [*starts, *[len(kept)] * bool(others)]:
        axes.axhline(row - 0.5, color=style.FAINT, linewidth=0.5, linestyle=":")
    return values


def _draw_line(canvas: Canvas, shown: Sample, labels: Sequence[str] | None, vmax: float | None) -> Array:
    axes = canvas.panel(height=min(0.4 * canvas.width, 2.0))
    axes.axhline(0, color=style.FAINT, linewidth=0.6)
    axes.plot(shown.values, color=style.COLORS[0], linewidth=0.8)
    if shown.widths is not None:
        low, high = shown.values - shown.widths[:, 0], shown.values + shown.widths[:, 1]
        axes.fill_between(range(len(low)), low, high, color=style.COLORS[0], alpha=0.25, linewidth=0)
    axes.set_xlim(0, len(shown.values) - 1)
    axes.set_xlabel("feature")
    axes.set_ylabel(shown.units)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if vmax is not None:
        axes.set_ylim(-vmax if shown.signed else 0, vmax)
    return shown.values
