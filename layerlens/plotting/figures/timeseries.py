"""A series with its attribution: each channel as a line over the colors of its relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from layerlens.errors import OptionError, PlotError
from layerlens.results import Attribution

from .. import style
from ..drawing import attribution_sample, images, intervals, text
from ..drawing.attribution_sample import Sample
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

MOST_STEPS: Final = 2000
"""Colors along the time axis; more than a page has dots."""
WEIGHTS: Final = 1.0, 2.4
"""Points of the line, and of the white around it that keeps it apart from dark colors."""


@figure(Attribution, kind="timeseries")
@each_sample(lambda one: len(one.score), "signal")
def timeseries(
    attribution: Attribution,
    sample: Which = None,
    *,
    channels: Sequence[int] | None = None,
    count: int = 6,
    signal: torch.Tensor | Array | None = None,
    rate: float | None = None,
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
    """Draw a series over its relevance: a panel for each channel, its signal as a line on colored time steps.

    All channels share one color scale; each signal has its own axis. Of a series with more than 2,000 steps, each color
    is the value of largest size among several steps, as a note says; the line is of all steps. `recurrent_states` draws
    the states of a recurrent layer over time. Where values have an error, steps whose interval includes 0 are faded.

    Args:
        attribution: attribution of a series, `(batch, time, feature)`, `(batch, channel, length)` or `(batch, time)`.
        channels: channels from top to bottom; None takes the `count` with the largest sum of |relevance|, in their
            order.
        count: number of channels, where `channels` is None.
        signal: series to draw, shaped like one sample of the attribution; None takes the input that it keeps.
        rate: steps per second, for an axis in seconds; None counts steps.
        cmap: matplotlib colormap; None is RdBu_r for signed values and magma_r, pale for weak, for magnitudes.
        clip: ... It is taken over the channels drawn.
        labels: names of all channels of the series; None takes those of the result.

    Returns:
        The plot; `data` holds `"relevance"` and `"signal"`, `(channel, time)` each, and `"channels"`, their numbers.

    Raises:
        OptionError: if there is no such sample, channel, input name or colormap, or `count` or `rate` is too small.
        PlotError: if this is not a series, there is no signal of its shape, or values cannot be drawn.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 50, 3)
        >>> one = Attribution(0.1 * x, ("batch", "time", "feature"), True, "score", "class 2", "gradient x input", {},
        ...                   torch.ones(1), inputs=x)
        >>> timeseries(one, count=2).data["signal"].shape
        (2, 50)
    """
    shown, values, faded, axis = _read(attribution, sample, name, interval)
    lines = _signal(attribution, shown, values, signal, sample, name)
    rows = _rows(values, channels, count)
    if labels is not None and len(labels) != len(values):
        raise PlotError(f"{len(labels)} labels for the {len(values)} channels of the series; give one per channel.")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise OptionError(f"rate={rate!r} steps per second; give a positive number, or None to count steps.")
    labels = shown.features if labels is None else labels
    names = [f"{axis} {row}" for row in rows] if labels is None else [labels[row] for row in rows]
    values, lines = values[rows], lines[rows]
    faded = None if faded is None else faded[rows]
    limits = style.limits([values], signed=shown.signed, clip=clip, vmax=vmax, what=shown.what)
    colors = style.colormap(cmap, signed=shown.signed, unsigned="magma_r")
    cells, hidden, each = _pooled(values, faded)
    notes = [f"{len(rows)} of {len(shown.values)} {axis}s with the most relevance"] * (
        channels is None and len(rows) < len(shown.values) and shown.form == "series"
    )
    notes += [f"each color: the largest of {each} steps"] * (each > 1)
    notes += ["line: the input; color: the attribution", *intervals.note("faded", [faded], interval)]
    step = 1 / (rate or 1)
    with Canvas(width=width, fig=fig) as canvas:
        canvas.title(title, shown.title, "; ".join(notes))
        drawn = []
        for place, (line, strip, label) in enumerate(zip(lines, cells, names, strict=True)):
            axes = canvas.panel(place, height=0.62 if len(rows) > 1 else 1.1)
            end = (values.shape[1] - 0.5) * step
            _line(axes, line, step, label)
            low, high = axes.get_ylim()
            image = axes.imshow(
                strip[None], cmap=colors, vmin=limits.low, vmax=limits.high, interpolation="nearest", aspect="auto",
                extent=(-0.5 * step, (len(strip) * each - 0.5) * step, low, high), zorder=0,
                alpha=intervals.faded(np.ones((1, len(strip))), None if hidden is None else hidden[place][None]),
            )  # fmt: skip
            axes.set_xlim(-0.5 * step, end)
            axes.set_ylim(low, high)
            axes.tick_params(labelbottom=place == len(rows) - 1)
            drawn.append(axes)
        steps = "place" if shown.axes[1] == "length" else "step"
        drawn[-1].set_xlabel(steps if rate is None else "seconds")
        if colorbar:
            canvas.colorbar(drawn, image, limits, shown.units, "right")
        return canvas.finish({"relevance": values, "signal": lines, "channels": np.array(rows)})


def _read(
    attribution: Attribution, sample: Which, name: str | None, interval: float | None
) -> tuple[Sample, Array, Array | None, str]:
    """The sample, its values and which are not settled, `(channel, time)`, and what a channel is called.

    Raises:
        PlotError: if this is not a series.
    """
    shown = attribution_sample.read(attribution, sample, name=name, interval=interval)
    faded = shown.unsettled
    if shown.form == "series":
        return shown, shown.values, faded, shown.axes[0] or "channel"
    if shown.form == "vector":
        return shown, shown.values[None], None if faded is None else faded[None], "feature"
    raise PlotError(
        f"timeseries draws a series, (batch, time, feature), (batch, channel, length) or (batch, time); one sample of "
        f"{shown.what} has shape {shown.values.shape}, axes {attribution.axes}. Draw it with .plot(), or say what the "
        "axes are: dataclasses.replace(result, axes=('batch', 'time', 'feature'))."
    )


def _signal(
    attribution: Attribution,
    shown: Sample,
    values: Array,
    signal: torch.Tensor | Array | None,
    sample: Which,
    name: str | None,
) -> Array:
    """What is drawn as lines, `(channel, time)`.

    Raises:
        PlotError: if there is no signal of this shape.
    """
    kept = attribution.inputs
    if isinstance(kept, dict):
        kept = kept.get(name or "")
    if signal is None and kept is not None:
        signal = kept[attribution_sample.sample_index(sample, len(kept), "the batch")]
    if signal is None:
        raise PlotError(
            f"{shown.what} keeps no series to draw. Give it: signal=x[{sample}], or draw the relevance alone: heatmap."
        )
    array = images.finite_array(signal, "the signal")
    if shown.form == "series" and shown.axes[0] == "feature":  # read with time first, drawn from left to right
        array = array.T
    array = array[None] if shown.form == "vector" and array.ndim == 1 else array
    if array.shape != values.shape:
        channels, steps = values.shape
        raise PlotError(
            f"the signal has shape {tuple(signal.shape)}, but {shown.what} has {channels} channels and {steps} steps. "
            "Give one sample of the input, with its axes in the order of the attribution's."
        )
    return array


def _rows(values: Array, channels: Sequence[int] | None, count: int) -> list[int]:
    if channels is not None:
        if not len(channels):
            raise OptionError("channels=[] draws nothing; give some, or None for the strongest.")
        strange = [one for one in channels if isinstance(one, bool) or not -len(values) <= one < len(values)]
        if strange:
            raise OptionError(f"channels={strange}, but the series has {len(values)} (0 to {len(values) - 1}).")
        return [one % len(values) for one in channels]
    if count < 1:
        raise OptionError(f"count={count!r} channels; give 1 or more.")
    return sorted(np.argsort(-np.abs(values).sum(axis=1), kind="stable")[:count].tolist())


def _pooled(values: Array, faded: Array | None) -> tuple[Array, Array | None, int]:
    """At most so many colors, each the value of largest size among its steps, and which are faded."""
    each = -(-values.shape[1] // MOST_STEPS)
    if each == 1:
        return values, faded, 1

    def blocks(array: Array) -> Array:
        return np.pad(array, ((0, 0), (0, -array.shape[1] % each))).reshape(len(array), -1, each)

    best = np.abs(blocks(values)).argmax(axis=2)[..., None]

    def chosen(array: Array) -> Array:
        return np.take_along_axis(blocks(array), best, axis=2)[..., 0]

    return chosen(values), None if faded is None else chosen(faded), each


def _line(axes: Axes, line: Array, step: float, label: str) -> None:
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    weight, around = WEIGHTS
    thin = min(1.0, max(0.4, 300 / len(line)))  # a dense line would hide the colors
    halo = [Stroke(linewidth=around * thin, foreground="white"), Normal()]
    axes.plot(
        np.arange(len(line)) * step, line, color=style.INK, linewidth=weight * thin, path_effects=halo,
        marker="o" if len(line) == 1 else None, markersize=3,
    )  # fmt: skip
    axes.set_ylabel(text.shorten(label, style.SMALL, 0.9), fontsize=style.SMALL, rotation=0, ha="right", va="center")
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=step == 1))
