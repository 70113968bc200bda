"""Pictures made for units next to the samples that they respond to: a row per unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import PlotError
from layerlens.results import FeatureVisualization, TopInputs
from layerlens.signatures import public

from .. import style
from ..drawing import image_panels, images
from ..drawing.canvas import Canvas
from ..plot import Plot
from ..style import Array
from ..words import words
from .top_inputs import Show, read_options, show_inputs

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@public
def feature_gallery(
    made: FeatureVisualization,
    top: TopInputs,
    *,
    units: Sequence[int] | None = None,
    count: int = 5,
    show: Show = "crop",
    width: style.Width = "page",
    title: str | None = None,
    labels: Sequence[str] | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw, for each unit of a layer, the picture made for it next to the samples that it responds to most.

    One without the other misleads: the picture shows what a unit responds to, alone and in excess, and the samples show
    what of it is in the data (Olah, Mordvintsev & Schubert 2017). Of several copies made for a unit, the one with the
    largest score is drawn.

    Args:
        made: pictures made for units, `lens.feature_visualization([neuron(layer, 3), ...], shape)`.
        top: samples ranked for the same layer, `lens.top_inputs(data, layer)`.
        units: the unit of each target of `made`, in order; None reads them from the targets.
        count: number of samples per unit.
        show: `"crop"` cuts to what the unit sees, `"mask"` darkens the rest, `"input"` shows the whole sample.
        title: None for the layer and how samples were ranked, `""` for none.
        labels: names of the rows; None is the unit's number.

    Returns:
        The plot; `data` holds what was drawn, `(height, width)` or `(height, width, 3)`, by `"unit 3, made"` and `"unit
        3, sample 17"`.

    Raises:
        OptionError: if a unit was not ranked, or an option is out of range.
        PlotError: if targets are not units of the layer, or there is something other than images to draw.

    Example:
        >>> import torch
        >>> axes, bounds = ("batch", "channel", "height", "width"), (0.0, 1.0)
        >>> some = torch.rand(1, 3, 8, 8), axes, bounds, ("unit 3 of conv",), torch.rand(1, 4), torch.rand(1)
        >>> made = FeatureVisualization(*some, "score", {})
        >>> samples, index, values = {4: torch.rand(3, 8, 8)}, torch.tensor([[4]]), torch.ones(1, 1)
        >>> box, place = torch.tensor([[[[0, 3], [1, 5], [2, 6]]]]), torch.zeros(1, 1, 2, dtype=torch.int64)
        >>> top = TopInputs("conv", 0, "activation", (3,), index, values, place, box, samples, 10, "", "max", {})
        >>> list(feature_gallery(made, top).data)
        ['unit 3, made', 'unit 3, sample 4']
    """
    if not isinstance(made, FeatureVisualization) or not isinstance(top, TopInputs):
        raise PlotError(
            "feature_gallery draws a FeatureVisualization and TopInputs of the same layer, not a "
            f"{type(made).__name__} and a {type(top).__name__}."
        )
    read_options(top, show, count)
    if made.axes[1:] != ("channel", "height", "width"):
        raise PlotError(f"feature_gallery shows images; what was made has axes {made.axes}. Use feature_visualization.")
    targets = list(dict.fromkeys(made.targets))
    numbers = _units_of_targets(targets, top) if units is None else list(units)
    if len(numbers) != len(targets):
        raise PlotError(
            f"{len(numbers)} units for {len(targets)} targets ({', '.join(targets[:4])}); give one for each."
        )
    if labels is not None and len(labels) != len(numbers):
        raise PlotError(f"{len(labels)} labels for {len(numbers)} units; give one per unit.")
    pictures = images.finite_array(made.pictures(), "the pictures that were made")
    data: dict[str, Any] = {}
    with Canvas(width=width, fig=fig) as canvas:
        name = f"{top.layer} #{top.call}" if top.call else top.layer
        target = f", {top.target}" if top.target else ""
        note = "left: made for the unit; then: samples that it responds to most, each with its number and value"
        canvas.title(title, f"{name}: {words(top.method)}{target}", note)
        for row, (unit, wanted) in enumerate(zip(numbers, targets, strict=True)):
            canvas.header(row, f"unit {unit}" if labels is None else labels[row])
            copies = [place for place, one in enumerate(made.targets) if one == wanted]
            best = max(copies, key=lambda place: float(made.score[place]))
            shown = _as_picture(pictures[best])
            line = f"made: {style.number(float(made.score[best]))}"
            image_panels.show_picture(canvas.panel(row, 0, aspect=shown.shape[0] / shown.shape[1], title=line), shown)
            data[f"unit {unit}, made"] = shown
            data |= show_inputs(canvas, row, top, unit, count, show, column=1)
        return canvas.finish(data)


def _units_of_targets(targets: Sequence[str], top: TopInputs) -> list[int]:
    """The units that targets name.

    Raises:
        PlotError: if a target is not a unit of the layer.
    """
    found = []
    for target in targets:
        match = re.fullmatch(rf"unit (\d+) of {re.escape(top.layer)}( at .*)?", target)
        if match is None:
            raise PlotError(
                f"the target {target!r} is not a unit of layer {top.layer!r}, whose inputs were ranked. Make it with "
                f"neuron({top.layer!r}, unit), or say which unit each target stands for: units=."
            )
        found.append(int(match[1]))
    return found


def _as_picture(values: Array) -> Array:
    channels = np.moveaxis(values, 0, -1)
    shown: Array = channels[..., :3] if len(values) in (3, 4) else channels.mean(axis=-1)
    if shown.min() < 0 or shown.max() > 1:
        return images.picture(values, "a picture that was made", channels_first=True)
    return shown
