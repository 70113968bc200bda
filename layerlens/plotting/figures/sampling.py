"""A sampled picture, where each word of its prompt counted, and in which step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layerlens.errors import OptionError
from layerlens.results import SamplingAttribution

from .. import style
from ..drawing import bars, image_panels, images, matrix_cells, text
from ..drawing.attribution_sample import sample_index
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array
from ..words import words as readable

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

MOST_WORDS: Final = 40
"""Words of which the steps are drawn; of more, those with the most relevance."""


@figure(SamplingAttribution, kind="sampling", usual=True)
@each_sample(lambda one: len(one.score))
def sampling(
    found: SamplingAttribution,
    sample: Which = None,
    *,
    count: int = 6,
    width: style.Width = "page",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    title: str | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw the picture, maps of the words that count most, and the relevance of every word in every step.

    All maps have one scale: red raises the contrast of a cell, blue lowers it. Of prompts with more than 40 words the
    strongest are drawn.

    Args:
        found: result of `explain_sampling`.
        count: number of words whose maps are drawn, where there are maps.
        cmap: matplotlib colormap; None is RdBu_r.
        vmax: end of the scale of the maps; None fits the data.
        clip: percentile of |value| where the colors of the maps saturate, stated at the colorbar.

    Returns:
        The plot; `data` holds `"picture"`, `"steps"` `(word, step)`, and each map by its word.

    Raises:
        OptionError: if there is no such sample or colormap, or `count` is below 1.
        PlotError: if values cannot be drawn.
    """
    if count < 1:
        raise OptionError(f"count={count!r} words; give 1 or more.")
    row = sample_index(sample, len(found.score), "the batch")
    picture = _shown(images.finite_array(found.picture[row], "the picture"))
    steps = images.finite_array(found.by_step[row], "the relevance of words by step")
    data: dict[str, Any] = {"picture": picture, "steps": steps}
    with Canvas(width=width, fig=fig) as canvas:
        canvas.title(title, f"{readable(found.method)}: {found.target}")
        axes = canvas.panel(0, 0, aspect=picture.shape[0] / picture.shape[1], title="picture")
        image_panels.show_picture(axes, picture)
        if found.maps is not None:
            data |= _draw_maps(canvas, found, row, count, (cmap, vmax, clip))
        if len(steps):
            _draw_steps(canvas, found, steps, cmap)
        return canvas.finish(data)


def _shown(picture: Array) -> Array:
    """A picture of 1 or 3 channels as it is, around 0 from -1 to 1; of others, such as latents, the mean channel."""
    if len(picture) not in (1, 3):
        picture = picture.mean(axis=0, keepdims=True)
        spread = np.ptp(picture) or 1.0
        picture = 2 * (picture - picture.min()) / spread - 1
    if picture.min() < 0:
        picture = (picture.clip(-1, 1) + 1) / 2
    return images.picture(picture.clip(0, None), "the picture", channels_first=True)


def _draw_maps(
    canvas: Canvas, found: SamplingAttribution, row: int, count: int, options: tuple[str | None, float | None, float]
) -> dict[str, Array]:
    """A tile for each of the strongest words, in the order of the prompt."""
    assert found.maps is not None
    maps = images.finite_array(found.maps[row], "the maps of words")
    sizes = np.abs(maps).sum(axis=(1, 2))
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:count])
    limits = style.limits([maps[chosen]], signed=True, clip=options[2], vmax=options[1], what="the maps of words")
    drawn, panels = dict[str, Array](), []
    for column, word in enumerate(chosen.tolist(), start=1):
        name = text.printable(found.names[word])
        axes = canvas.panel(0, column, aspect=maps.shape[1] / maps.shape[2], title=name)
        image = axes.imshow(
            maps[word], cmap=style.colormap(options[0], signed=True), vmin=limits.low, vmax=limits.high,
            interpolation="nearest",
        )  # fmt: skip
        image_panels.hide_ticks(axes)
        panels.append(axes)
        drawn[image_panels.unique_key(name, {**drawn, "picture": 0, "steps": 0})] = maps[word]
    canvas.colorbar([panels[-1]], image, limits, "relevance", "right")
    return drawn


def _draw_steps(canvas: Canvas, found: SamplingAttribution, steps: Array, cmap: str | None) -> None:
    """Words x steps in colors."""
    strongest = np.sort(np.argsort(-np.abs(steps).sum(axis=1), kind="stable")[:MOST_WORDS])
    shown = steps[strongest]
    limits = style.limits([shown], signed=True, clip=100.0, vmax=None, what="the relevance of words by step")
    high = max(len(shown) * bars.pitch_of(len(shown)), 0.5)
    axes = canvas.panel(1, 0, height=high, span=True)
    image = axes.imshow(
        shown, cmap=style.colormap(cmap, signed=True), vmin=limits.low, vmax=limits.high, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    names = [text.printable(found.names[k]) for k in strongest]
    matrix_cells.name_axes(axes, names, list(found.levels), (high, canvas.width - 1.5), ("word", "step"))
    canvas.colorbar([axes], image, limits, "relevance", "right")
