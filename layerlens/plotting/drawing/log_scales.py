"""Ranges of colors for quantities of layers, which often span decades: norms of gradients, ratios of updates."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import numpy as np

from layerlens.errors import OptionError, PlotError

from .. import style
from ..style import Array, Limits

LOGARITHMIC: Final = ("gradient norm", "update ratio", "weight norm", "activation std")
"""Quantities of which only positive values are expected; drawn on a log scale from one decade on."""
MOST_DECADES: Final = 8
"""Decades of a log scale, counted from its end."""


def limits(
    values: Array, quantity: str, *, signed: bool, log: bool | None, vmax: float | None, clip: float | None
) -> Limits | None:
    """The range of the colors; None where no value has a color.

    Args:
        values: any; those that are not finite, and on a log scale zeros, have no color.
        quantity: its name.
        signed: whether values are read as distances from zero to both sides.
        log: whether the scale is logarithmic; None for norms and ratios that span a decade.
        vmax: end of the scale; None fits the data.
        clip: percentile of |value| where colors saturate; None clips nothing.

    Raises:
        OptionError: when `vmax` or `clip` is out of range.
        PlotError: when a log scale is asked for values below zero.
    """
    percentile = 100.0 if clip is None else clip
    if not 0 < percentile <= 100:
        raise OptionError(f"clip={clip!r} is a percentile; give a number above 0 and at most 100.")
    if vmax is not None and not (math.isfinite(vmax) and vmax > 0):
        raise OptionError(f"vmax={vmax!r} is the largest value of the color scale; give a positive number.")
    known = values[np.isfinite(values)]
    positive = known[known > 0]
    if log and (known < 0).any():
        raise PlotError(
            f"{quantity!r} has values below zero (smallest {known.min():.3g}): no log scale. Use log=False."
        )
    if log is None:
        spans = bool(positive.size) and positive.max() >= 10 * positive.min()
        log = quantity in LOGARITHMIC and (spans or not positive.size)
    if log:
        return _log_limits(positive, vmax, percentile)
    if not known.size:
        return None
    low = float(known.min())
    if vmax is None and not (known.any() if signed else positive.size):  # one color: no constant unit anywhere
        return Limits(
            -1.0 if signed else 0.0, 1.0, False, "nothing above zero" if low < 0 else "zero everywhere", low < 0
        )
    shown = style.limits([known if signed else known.clip(0)], signed=signed, clip=percentile, vmax=vmax, what=quantity)
    if signed or low >= 0:
        return shown
    note = "; ".join(part for part in (shown.note, f"lowest {style.number(low)}") if part)
    return dataclasses.replace(shown, note=note, below=True)


def _log_limits(positive: Array, vmax: float | None, percentile: float) -> Limits | None:
    if not positive.size:
        return None
    largest, smallest = float(positive.max()), float(positive.min())
    high = float(np.percentile(positive, percentile)) if vmax is None else float(vmax)
    low = max(smallest, high * 10.0**-MOST_DECADES)
    if not low < high:
        low = high / 10
    notes = [f"clipped at {percentile:g}%"] if vmax is None and high < largest else []
    notes += [f"lowest {style.number(smallest)}"] if smallest < low else []
    return Limits(low, high, largest > high, "; ".join(notes), below=smallest < low, log=True)
