"""A colorbar of constant thickness at the edge of one panel or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from .. import style
from . import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.transforms import Bbox

Side = Literal["right", "bottom"]
THICK: Final = 0.08
PAD: Final = 0.06
LONGEST: Final = 2.4
"""Inches; a bar along many rows of panels would be all color and no numbers."""


def attach(panels: Sequence[Axes], mappable: ScalarMappable, limits: style.Limits, side: Side) -> Colorbar:
    """Draw a colorbar along the right or bottom edge of panels; it follows them wherever they are placed.

    Args:
        panels: one column (right) or row (bottom) of panels.
        mappable: colors and range.
        limits: its numbers.
        side: where.
    """
    last = panels[-1]
    fig = last.figure
    axes = last.inset_axes((1, 0, 0.1, 1))

    def locate(_axes: object, _renderer: object) -> Bbox:
        from matplotlib.transforms import Bbox

        dpi = fig.figure.dpi
        box = Bbox.union([panel.bbox for panel in panels])
        if side == "right":
            cut = max(0, box.height - LONGEST * dpi) / 2
            edges = (box.x1 + PAD * dpi, box.y0 + cut, box.x1 + (PAD + THICK) * dpi, box.y1 - cut)
        else:
            cut = max(0, box.width - LONGEST * dpi) / 2
            edges = (box.x0 + cut, box.y0 - (PAD + THICK) * dpi, box.x1 - cut, box.y0 - PAD * dpi)
        return Bbox.from_extents(*edges).transformed(fig.transSubfigure.inverted())

    axes.set_axes_locator(locate)  # before the colorbar, which makes room for its clip marks inside this box
    orientation = "vertical" if side == "right" else "horizontal"
    bar = fig.colorbar(mappable, cax=axes, orientation=orientation, ticks=limits.ticks, extend=_extend(limits))
    axis = axes.yaxis if side == "right" else axes.xaxis
    axis.set_ticks(limits.ticks, [style.number(tick) for tick in limits.ticks], fontsize=style.SMALL)
    axes.minorticks_off()
    axes.tick_params(length=1.5, pad=1.5)
    axis.label.set_fontsize(style.SMALL)
    bar.outline.set_linewidth(0.4)
    bar.outline.set_edgecolor(style.FAINT)
    return bar


def drop_middle_number(bar: Colorbar, side: Side, room: float) -> None:
    """Leave out the middle number of a bar that is too short for three; those below a map stay inside of its width.

    Args:
        bar: from `attach`.
        side: where it is.
        room: its length, in inches.
    """
    axis = bar.ax.yaxis if side == "right" else bar.ax.xaxis
    labels = [tick.label2 if side == "right" else tick.label1 for tick in axis.get_major_ticks()]
    if side == "right":
        needed = 1.1 * style.SMALL / 72 * len(labels)
    else:
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")
        sizes = [text.width(label.get_text(), style.SMALL) for label in labels]
        needed = 2 * max(sizes[0] + sizes[1] / 2, sizes[1] / 2 + sizes[2]) + 2 * PAD
    labels[1].set_visible(needed <= room)


def _extend(limits: style.Limits) -> str:
    below = limits.below or (limits.clipped and limits.low < 0)
    if limits.clipped:
        return "both" if below else "max"
    return "min" if below else "neither"
