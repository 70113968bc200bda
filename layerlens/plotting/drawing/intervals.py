"""How values look whose sign is not settled: their interval includes 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import numpy as np

from layerlens.results import Matrix

from ..style import Array

FADED: Final = 0.25
"""Opacity of what is not settled, as a share of what it would be."""

Look = Literal["faded", "hatched", "hatched step", "hollow", "band", "lines", "dotted", "dotted lines"]
NOTES: Final[dict[Look, str]] = {
    "faded": "faded: {} interval includes 0",
    "hatched": "lines: {} intervals; hatched: includes 0",
    "hatched step": "hatched: {} interval includes 0",
    "hollow": "hollow: {} interval includes 0",
    "band": "band: {} interval",
    "lines": "lines: {} intervals",
    "dotted lines": "dotted, hollow: {} interval includes 0",
    "dotted": "pale, dotted edge: {} interval includes 0",
}
"""Look -> what it means, with the share of the intervals."""


def note(look: Look, signs: Iterable[Array | None], share: float | None) -> list[str]:
    """Return a list of one note that says what the look means; empty where nothing has it.

    Args:
        look: how what is not settled is drawn.
        signs: which values are not settled; None where there is no error.
        share: share of the intervals.
    """
    known = [one for one in signs if one is not None]
    some = any(bool(one.any()) for one in known)
    if look == "hatched" and not some:
        look = "lines"
    shown = bool(known) and (some or look in ("band", "lines"))
    return [NOTES[look].format(f"{100 * (share or 0):g} %")] * shown


def faded(alpha: Array, places: Array | None) -> Array:
    """Return opacities with those of some places reduced.

    Args:
        alpha: opacities, 0 to 1.
        places: which are reduced, of the same shape; None for none.
    """
    return alpha if places is None else np.where(places, FADED * alpha, alpha)


def pale(fills: Array, which: Array) -> Array:
    """Return colors, some of them mixed with white.

    Args:
        fills: red, green, blue and opacity, `(colors, 4)`.
        which: those that become pale, `(colors,)`.
    """
    mixed: Array = np.where(which[:, None], 1 + FADED * (fills - 1), fills)
    return mixed


def unsettled(values: Array, widths: Array | None) -> Array | None:
    """Return which values have an interval that includes 0, or an unknown one; None where there is no error.

    Args:
        values: values of which they are the intervals.
        widths: how far they reach below and above, `(*values.shape, 2)`, NaN where they are unknown.
    """
    return None if widths is None else ~((values > widths[..., 0]) | (values < -widths[..., 1]))


def unsettled_of(found: Matrix, share: float | None) -> Array:
    """Return which values of a matrix are not settled, `(rows, columns)`; none without errors, or for a share of None.

    Args:
        found: values and their errors.
        share: share of the intervals.
    """
    if share is None or found.error is None:
        return np.zeros(tuple(found.values.shape), dtype=bool)
    which: Array = (~found.settled(share)).cpu().numpy()
    return which
