"""The samples of a data set that units respond to most, a row per unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import TopInputs

from .. import style
from ..drawing import image_panels, images
from ..drawing.canvas import Canvas
from ..plot import Plot, figure
from ..style import Array
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

Show = Literal["crop", "mask", "input"]


@figure(TopInputs, kind="inputs", usual=True)
def top_inputs(
    top: TopInputs,
    *,
    units: Sequence[int] | None = None,
    count: int = 6,
    show: Show = "mask",
    width: style.Width = "page",
    title: str | None = None,
    labels: Sequence[str] | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw the samples that units respond to most: a row per unit, strongest first.

    Args:
        top: units of a layer with samples of a data set of images.
        units: units in the order of the rows; None takes the five with the largest value.
        count: number of samples per unit.
        show: `"mask"` darkens what the unit does not see, `"crop"` cuts it away, `"input"` shows the whole sample; the
            region is `top.regions`, made a square for a crop.
        title: None for layer and method, `""` for none.
        labels: names of the rows; None is the unit's number.

    Returns:
        The plot; `data` holds what was drawn, `(height, width)` or `(height, width, 3)` by `"unit 3, sample 17"`.

    Raises:
        OptionError: if there is no such unit, or an option is out of range.
        PlotError: if the samples are not images, or there are no regions to mask or crop to.

    Example:
        >>> samples = {4: torch.rand(3, 8, 8), 9: torch.rand(3, 8, 8)}
        >>> index, values = torch.tensor([[9, 4]]), torch.tensor([[2.0, 1.0]])
        >>> box = torch.tensor([[0, 3], [1, 5], [2, 6]]).expand(1, 2, 3, 2)
        >>> place = torch.zeros(1, 2, 2, dtype=torch.int64)
        >>> top = TopInputs("conv", 0, "activation", (3,), index, values, place, box, samples, 10, "", "max", {})
        >>> list(top_inputs(top).data)
        ['unit 3, sample 9', 'unit 3, sample 4']
    """
    read_options(top, show, count)
    chosen = [unit for unit, _ in top.strongest(5)] if units is None else list(units)
    if not chosen:
        raise PlotError("units=[] draws nothing; give the units to draw, or None for the five strongest.")
    if labels is not None and len(labels) != len(chosen):
        raise PlotError(f"{len(labels)} labels for {len(chosen)} units; give one per unit.")
    data: dict[str, Any] = {}
    with Canvas(width=width, fig=fig) as canvas:
        name = f"{top.layer} #{top.call}" if top.call else top.layer
        target = f", {top.target}" if top.target else ""
        region = {"mask": "; framed: what the unit sees", "crop": "; cut to what the unit sees", "input": ""}[show]
        canvas.title(title, f"{name}: {words(top.method)}{target}", f"above each: its number and its value{region}")
        for row, unit in enumerate(chosen):
            canvas.header(row, f"unit {unit}" if labels is None else labels[row])
            data |= show_inputs(canvas, row, top, unit, count, show)
        return canvas.finish(data)


def read_options(top: TopInputs, show: Show, count: int) -> None:
    """Refuse options that cannot be drawn.

    Raises:
        OptionError: when `show` is unknown, or `count` is below 1.
        PlotError: when there are no regions to mask or crop to.
    """
    choose("way to show inputs", show, ("crop", "mask", "input"))
    if count < 1:
        raise OptionError(f"count={count!r} samples per unit; give 1 or more.")
    if show != "input" and top.regions is None:
        raise PlotError(f"show={show!r} needs regions, which were not kept: top_inputs(..., regions=True), or 'input'.")


def show_inputs(
    canvas: Canvas, row: int, top: TopInputs, unit: int, count: int, show: Show, *, column: int = 0
) -> dict[str, Array]:
    """Draw the samples of one unit from a column on; returns what was drawn, by `"unit 3, sample 17"`."""
    at, data = top.row(unit), {}
    for rank, index in enumerate(top.index[at, :count].tolist()):
        picture, box = _picture(top, index), _box(top, at, rank)
        shown = picture if show == "input" else _cropped(picture, box) if show == "crop" else _masked(picture, box)
        aspect = 1.0 if show == "crop" else shown.shape[0] / shown.shape[1]
        line = f"#{index}: {style.number(float(top.values[at, rank]))}"
        axes = canvas.panel(row, column + rank, aspect=aspect, title=line)
        image_panels.show_picture(axes, shown)
        if show == "mask":
            _outline(axes, box)
        data[f"unit {unit}, sample {index}"] = shown
    return data


def _picture(top: TopInputs, index: int) -> Array:
    sample = top.inputs[index]
    if not isinstance(sample, torch.Tensor) or sample.ndim != 3 or not sample.is_floating_point():
        shape = tuple(sample.shape) if isinstance(sample, torch.Tensor) else f"a dict with {', '.join(sample)}"
        raise PlotError(
            f"top_inputs shows images (channel, height, width); sample {index} is {shape}. Read index, value and place "
            "of each with .to_pandas()."
        )
    return images.picture(sample, f"sample {index}", channels_first=True)


def _box(top: TopInputs, row: int, rank: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right; the whole picture where the unit has no gradient."""
    height, width = top.inputs[int(top.index[row, rank])].shape[-2:]  # type: ignore[union-attr]
    if top.regions is None:
        return 0, height, 0, width
    (upper, lower), (left, right) = top.regions[row, rank, -2:].tolist()
    return (upper, lower, left, right) if lower > upper and right > left else (0, height, 0, width)


def _cropped(picture: Array, box: tuple[int, int, int, int]) -> Array:
    """The smallest square around the box that lies in the picture."""
    upper, lower, left, right = box
    height, width = picture.shape[:2]
    side = min(max(lower - upper, right - left), height, width)
    start = min(max((upper + lower - side) // 2, 0), height - side)
    begin = min(max((left + right - side) // 2, 0), width - side)
    square: Array = picture[start : start + side, begin : begin + side]
    return square


def _masked(picture: Array, box: tuple[int, int, int, int]) -> Array:
    """The picture, gray and dark outside of the box."""
    upper, lower, left, right = box
    dark: Array = 0.45 * (picture.mean(axis=-1, keepdims=True) if picture.ndim == 3 else picture)
    shown: Array = np.broadcast_to(dark, picture.shape).copy()
    shown[upper:lower, left:right] = picture[upper:lower, left:right]
    return shown


def _outline(axes: Axes, box: tuple[int, int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    upper, lower, left, right = box
    edge = Rectangle(
        (left - 0.5, upper - 0.5), right - left, lower - upper, fill=False, edgecolor="white", linewidth=0.6
    )
    axes.add_patch(edge)
