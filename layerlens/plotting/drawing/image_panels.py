"""Panels of pictures: a map over its gray picture, or a picture alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import PlotError

from ..style import Array, Limits
from . import images, intervals
from .attribution_sample import Sample

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap

PAPER: Final = 0.65
"""The shade of gray on which a colorbar shows the colors of an overlay: the middle of the underlay's."""


DOTS: Final = 300
"""Pixels that an inch of figure shows."""


def show_picture(axes: Axes, picture: Array) -> None:
    """Draw a picture as it is."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    hide_ticks(axes)


def show_map(
    axes: Axes,
    values: Array,
    limits: Limits,
    colors: Colormap,
    *,
    picture: Array | None,
    faded: Array | None = None,
) -> tuple[ScalarMappable, Array]:
    """Draw a map in colors; over a picture, the opacity is |value| relative to the end of the scale.

    Args:
        axes: where.
        values: `(height, width)`.
        limits: range of the colors.
        colors: colormap.
        picture: `(height, width)` or `(height, width, 3)`, shown in middle gray; None draws the map opaque.
        faded: which places are drawn faded, `(height, width)`; None for none.

    Returns:
        What a colorbar needs, and the opacity of each place.
    """
    alpha = np.ones(values.shape)
    if picture is not None:
        axes.imshow(images.gray(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        alpha = np.minimum(np.abs(values) / limits.high, 1)
    alpha = intervals.faded(alpha, faded)
    image = axes.imshow(
        values, cmap=colors, vmin=limits.low, vmax=limits.high, interpolation="nearest", alpha=alpha
    )  # fmt: skip
    hide_ticks(axes)
    return (image if picture is None else _colors_over_gray(colors, limits)), alpha


def averaged_to_fit(shown: Sequence[Sample], inches: float) -> tuple[list[Sample], str]:
    """Maps with no more than twice the pixels that a panel shows, averaged over blocks; with a note of it.

    Drawn as they are, most pixels of a map much larger than its panel would not be seen.

    Args:
        shown: images, and other forms, which stay as they are.
        inches: width of a panel.
    """
    sizes = [max(one.values.shape) for one in shown if one.form == "image"]
    each = int(max(sizes, default=0) / (DOTS * inches))
    if each < 2:
        return list(shown), ""
    blocks = [
        one if one.form != "image" else dataclasses.replace(
            one, values=images.averaged(one.values, each),
            widths=None if one.widths is None else images.averaged(one.widths, each),
            picture=None if one.picture is None else images.averaged(one.picture, each),
        )
        for one in shown
    ]  # fmt: skip
    return blocks, f"each dot: the mean of {each} x {each} pixels"


def given_picture(overlay: bool | torch.Tensor | Array, sample: Sample) -> Array | None:
    """The picture under a map: the input for `overlay=True`, none for False, or the picture given instead.

    Raises:
        PlotError: when its size is not that of the map.
    """
    if isinstance(overlay, (bool, np.bool_)):
        return sample.picture if overlay else None
    shown = images.picture(overlay, "the picture given as overlay=")
    if shown.shape[:2] != sample.values.shape:
        raise PlotError(
            f"the picture given as overlay= is {shown.shape[0]} x {shown.shape[1]}, but {sample.what} is "
            f"{sample.values.shape[0]} x {sample.values.shape[1]}. Resize the picture to the model's input."
        )
    return shown


def show_boxes(axes: Axes, boxes: Any, size: tuple[int, ...], drawn: tuple[int, ...]) -> Array:
    """Outline boxes on a panel.

    Args:
        axes: the panel of the picture.
        boxes: `(n, 4)` or `(4,)`: left, top, right, bottom, in pixels.
        size: height and width of the picture that they are measured in.
        drawn: height and width of what is drawn, which may be a mean over blocks.

    Returns:
        The boxes, `(n, 4)`, as they were given.

    Raises:
        PlotError: when they are not boxes, or one lies outside of the picture.
    """
    from matplotlib.patches import Rectangle

    given = np.atleast_2d(np.asarray(boxes.detach().cpu() if hasattr(boxes, "detach") else boxes, dtype=float))
    high, wide = size
    if given.ndim != 2 or given.shape[1] != 4:
        raise PlotError(f"boxes= takes (n, 4) numbers, left, top, right, bottom; got shape {given.shape}.")
    for left, top, right, bottom in given:
        if not (left <= right and top <= bottom and right > 0 and bottom > 0 and left < wide and top < high):
            raise PlotError(
                f"the box {(left, top, right, bottom)} is not on a picture of {wide} x {high} pixels (width x height); "
                "give left, top, right, bottom in pixels."
            )
        across, down = drawn[1] / wide, drawn[0] / high
        corner, extent = (left * across - 0.5, top * down - 0.5), ((right - left) * across, (bottom - top) * down)
        for color, width in (("black", 2.2), ("white", 1.0)):  # seen on dark and on light
            axes.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=color, linewidth=width))
    return given


def _colors_over_gray(colors: Colormap, limits: Limits) -> ScalarMappable:
    """The colors of an overlay as they appear on middle gray, so that the colorbar matches the picture."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    values = np.linspace(limits.low, limits.high, 256)
    alpha = (np.abs(values) / limits.high)[:, None]
    seen = alpha * colors(np.linspace(0, 1, 256))[:, :3] + (1 - alpha) * PAPER
    return ScalarMappable(Normalize(limits.low, limits.high), ListedColormap(seen))


def hide_ticks(axes: Axes) -> None:
    """Hide the ticks of a panel; it keeps its faint outline."""
    axes.set_xticks([])
    axes.set_yticks([])


def only_images(samples: Iterable[Sample], figure: str) -> None:
    """Refuse samples that are not images.

    Raises:
        PlotError: naming the form, and the figure that draws it.
    """
    for sample in samples:
        if sample.form != "image":
            raise PlotError(
                f"{figure} shows maps over images; {sample.what} is {_KINDS[sample.form]} of shape "
                f"{sample.values.shape}. Draw each with heatmap(attribution, sample), side by side with ax=."
            )


_KINDS: Final = {"series": "a series", "tokens": "a row of tokens", "vector": "a vector"}


def unique_key(name: str, taken: Iterable[str]) -> str:
    """`name`, or `name #1`, `name #2` where it is taken."""
    known, count, fresh = set(taken), 0, name
    while fresh in known:
        count += 1
        fresh = f"{name} #{count}"
    return fresh
