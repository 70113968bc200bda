"""The receptive field of one place: all that can reach it, and what does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerlens.errors import PlotError
from layerlens.results import ReceptiveField

from .. import style
from ..drawing import attribution_sample, image_panels, images
from ..drawing.canvas import Canvas
from ..drawing.each_sample import Which, each_sample
from ..plot import Plot, figure
from ..style import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure(ReceptiveField, kind="field", usual=True)
@each_sample(lambda one: len(one.effective))
def receptive_field(
    field: ReceptiveField,
    sample: Which = None,
    *,
    width: style.Width = "column",
    cmap: str | None = None,
    vmax: float | None = None,
    clip: float = 99.5,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Plot:
    """Draw the effective receptive field over the input, and the theoretical one as a dashed box.

    A series is drawn as a line, with the theoretical field shaded.

    Args:
        field: field of an image or a series.
        cmap: matplotlib colormap; None is magma.
        title: None for layer and sizes, `""` for none.

    Returns:
        The plot; `data` holds `"effective"` and `"box"`.

    Raises:
        OptionError: if there is no such sample.
        PlotError: if the input has more than two axes of places.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[[0, 3]], [[1, 4]], [[2, 5]]])
        >>> field = ReceptiveField("conv", 0, boxes, (5,), (1,), torch.rand(1, 5), {})
        >>> receptive_field(field).data["box"].tolist()
        [[1, 4]]
    """
    row = attribution_sample.sample_index(sample, len(field.effective), "the receptive field")
    what = f"the effective receptive field of layer {field.layer!r}"
    values = images.finite_array(field.effective[row], what)
    box = field.box.numpy()
    if values.ndim not in (1, 2):
        raise PlotError(f"{what} has {values.ndim} axes of places; take a slice of a volume.")
    data: dict[str, Any] = {"effective": values, "box": box}
    size = " x ".join(str(stop - start) for start, stop in box)
    line = f"{field.layer or '(model)'} at {field.place}: sees {size}, uses {float(field.effective_size[row]):.0f}"
    with Canvas(width=width, ax=ax) as canvas:
        seen = "dashed" if values.ndim == 2 else "shaded"
        canvas.title(title, f"{line} across" if values.ndim == 2 else line, f"{seen}: all that can reach it")
        if values.ndim == 1:
            _line(canvas, values, box)
            return canvas.finish(data)
        inside = values[tuple(slice(int(start), int(stop)) for start, stop in box)]  # the zeros around it do not count
        limits = style.limits([inside if inside.any() else values], signed=False, clip=clip, vmax=vmax, what=what)
        axes = canvas.panel(aspect=values.shape[0] / values.shape[1])
        shown = _picture(field, row, values.shape)
        mappable, _ = image_panels.show_map(axes, values, limits, style.colormap(cmap, signed=False), picture=shown)
        _outline(axes, box)
        if colorbar:
            canvas.colorbar([axes], mappable, limits, "gradient", "right")
        return canvas.finish(data)


def _picture(field: ReceptiveField, row: int, size: tuple[int, ...]) -> Array | None:
    inputs = field.inputs
    if inputs is None or inputs.ndim != 4 or tuple(inputs.shape[-2:]) != size:
        return None
    return images.picture(inputs[row], "the input", channels_first=True)


def _outline(axes: Axes, box: Array) -> None:
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = box
    axes.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=style.COLORS[0],
            linewidth=1.2,
            linestyle=(0, (3, 2)),
            clip_on=False,
        )
    )


def _line(canvas: Canvas, values: Array, box: Array) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = canvas.panel(height=1.0)
    axes.axvspan(box[0][0] - 0.5, box[0][1] - 0.5, color="#E6E6E6")
    axes.plot(np.arange(len(values)), values, color=style.COLORS[0])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(0, None)
    axes.set_xlabel("place")
    axes.set_ylabel("gradient")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
