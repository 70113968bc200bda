"""Outputs along directions of a latent space: a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layerlens.errors import OptionError, PlotError
from layerlens.results import LatentTraversal

from .. import style
from ..drawing import image_panels, images
from ..drawing.canvas import Canvas
from ..plot import Plot, figure

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase


@figure(LatentTraversal, kind="rows", usual=True)
def latent_traversal(
    traversal: LatentTraversal,
    *,
    rows: Sequence[str | int] | None = None,
    count: int = 6,
    width: style.Width = "page",
    title: str | None = None,
    labels: Sequence[str] | None = None,
    fig: FigureBase | None = None,
) -> Plot:
    """Draw the outputs along directions of the latent space: pictures from the smallest step to the largest.

    All pictures share one range of brightness, so that they can be compared; outputs other than images are lines.

    Args:
        traversal: the result.
        rows: directions by name or latent; None takes those with the largest effect.
        count: number of directions where `rows` is None.
        title: None or `""` for none: rows and columns name their contents.
        labels: names of the rows; None is the direction and its effect.

    Returns:
        The plot; `data` holds the outputs of each row as drawn, by direction.

    Raises:
        OptionError: if there is no such direction, or `count` is below 1.
        PlotError: if the outputs cannot be drawn.

    Example:
        >>> import torch
        >>> outputs = torch.rand(2, 3, 1, 8, 8)
        >>> made = LatentTraversal(
        ...     ("latent 0", "latent 4"), torch.tensor([-1.0, 0.0, 1.0]), "set", outputs, outputs[0, 1],
        ...     torch.tensor([0.1, 0.3]), {},
        ... )
        >>> list(latent_traversal(made).data)
        ['latent 4', 'latent 0']
    """
    if count < 1:
        raise OptionError(f"count={count!r} directions; give 1 or more.")
    chosen = [name for name, _ in traversal.strongest(count)] if rows is None else list(rows)
    places = [traversal.row(name) for name in chosen]
    if not places:
        raise PlotError("rows=[] draws nothing; give directions, or None for those with the largest effect.")
    if labels is not None and len(labels) != len(places):
        raise PlotError(f"{len(labels)} labels for {len(places)} rows; give one per row.")
    values = images.finite_array(traversal.outputs[places], "the outputs of a traversal")
    if values.ndim not in (3, 4, 5):
        raise PlotError(
            f"outputs of shape {values.shape[2:]} have no figure; a traversal shows (channel, height, width), (height, "
            "width) and (feature,)."
        )
    low, high = float(values.min()), float(values.max())
    data: dict[str, Any] = {}
    sign = "+" if traversal.move == "add" else ""
    with Canvas(width=width, fig=fig) as canvas:
        where = "move along each direction" if traversal.move == "add" else "value of each latent"
        canvas.title(title, "", f"columns: {where}")
        for row, place in enumerate(places):
            name = traversal.names[place]
            effect = f"{name}: moves the output by {style.number(float(traversal.effect[place]))}"
            canvas.header(row, effect if labels is None else labels[row])
            shown = []
            for column, step in enumerate(traversal.steps.tolist()):
                line = f"{sign if step > 0 else ''}{style.number(step)}" if row == 0 else ""
                one = values[row, column]
                if one.ndim == 1:
                    axes = canvas.panel(row, column, height=0.6, title=line)
                    axes.plot(one, color=style.COLORS[0], linewidth=0.8)
                    axes.set_ylim(low, high)
                    image_panels.hide_ticks(axes)
                    shown.append(one)
                    continue
                # one range for all: the stretch of a single picture would hide what changes
                gray = one if one.ndim == 2 or len(one) in (1, 3, 4) else one.mean(axis=0)
                picture = images.picture((gray - low) / ((high - low) or 1), "an output", channels_first=True)
                picture = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
                axes = canvas.panel(row, column, aspect=picture.shape[0] / picture.shape[1], title=line)
                image_panels.show_picture(axes, picture)
                shown.append(picture)
            data[name] = shown
        return canvas.finish(data)
