"""A legend above a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


HANDLE = 0.7
"""Inches of a figure that a legend of one column leaves free: for the lines and the margins."""


def draw(axes: Axes, handles: Sequence[Artist], dpi: float) -> None:
    """Draw a legend above the panel, in as many columns as its width holds."""
    if not handles:  # nothing but the ends of a ledger, say
        return
    for columns in range(len(handles), 0, -1):
        legend = axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
            borderaxespad=0.1, borderpad=0.2, columnspacing=1.2, handlelength=2.4, handletextpad=0.5,
        )  # fmt: skip
        if legend.get_window_extent(text.renderer(dpi)).width <= axes.bbox.width:
            return
    room = axes.figure.canvas.figure.get_size_inches()[0] - HANDLE
    for name in legend.get_texts():
        name.set_text(text.shorten(name.get_text(), float(name.get_fontsize()), room))
    legend.set_loc("lower right")  # too wide: let it reach to the left, over the names of the rows
    legend.set_bbox_to_anchor((1, 1), transform=axes.transAxes)
