"""Figures in another style for a while: size of text, fonts, colours, other settings of matplotlib."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from layerlens.errors import OptionError, choose

from . import style


@contextlib.contextmanager
def using(
    *,
    size: float | None = None,
    family: str | None = None,
    colours: Sequence[str] | None = None,
    positive: str | None = None,
    negative: str | None = None,
    signed: str | None = None,
    rc: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Draw figures in another style inside of a `with`; `plotting.style(...)` is the same.

    Figures keep the style that they were drawn in when they are saved later. The style holds for the whole process, as
    that of matplotlib does: figures of other threads get it too.

    Args:
        size: of titles and labels in points, 6 to 24 (7 unless changed); numbers and notes are a point smaller, and
            not below 6.
        family: of the fonts: one that matplotlib finds on this machine; letters that it lacks are in DejaVu Sans.
        colours: of categories, in their order; the others of the seven stay.
        positive: colour of bars of positive values.
        negative: colour of bars of negative values.
        signed: the colormap of signed values.
        rc: other settings of matplotlib by name.

    Raises:
        OptionError: for a size out of range, or a font, colour, colormap or setting that matplotlib does not know.

    Example:
        >>> from layerlens import plotting
        >>> with plotting.style(size=9, colours=["black", "grey"]):
        ...     plotting.style.TEXT, plotting.style.SMALL, plotting.style.COLOURS[:3]
        (9.0, 8.0, ('black', 'grey', '#009E73'))
        >>> plotting.style.TEXT
        7.0
    """
    changed = _changed(size, family, colours, positive, negative, signed, dict(rc or {}))
    before = {name: getattr(style, name) for name in changed}
    vars(style).update(changed)
    try:
        yield
    finally:
        vars(style).update(before)


def _changed(
    size: float | None,
    family: str | None,
    colours: Sequence[str] | None,
    positive: str | None,
    negative: str | None,
    signed: str | None,
    rc: dict[str, Any],
) -> dict[str, Any]:
    """The names of `style` that change, with their new values."""
    import matplotlib
    from matplotlib.colors import is_color_like
    from matplotlib.font_manager import get_font_names

    changed: dict[str, Any] = {}
    if size is not None:
        if not 6 <= size <= 24:
            raise OptionError(f"size={size!r} points; give 6 to 24.")
        changed |= {"TEXT": float(size), "SMALL": max(6.0, size - 1.0)}
        sizes = {style.TEXT: changed["TEXT"], style.SMALL: changed["SMALL"]}
        rc = {name: sizes[value] for name, value in style.RC.items() if name.endswith("size") and value in sizes} | rc
    if family is not None:
        rc = {"font.family": [choose("font", family, get_font_names()), *style.RC["font.family"][-1:]]} | rc
    for name, colour in (("positive", positive), ("negative", negative), *(("colours", one) for one in colours or ())):
        if colour is not None and not is_color_like(colour):
            raise OptionError(f"{name}: {colour!r} is no colour. Give a name or '#rrggbb'.")
    if colours is not None:
        if not colours or isinstance(colours, str):
            raise OptionError(f"colours={colours!r}; give a list of one or more colours.")
        changed["COLOURS"] = (*colours, *style.COLOURS[len(colours) :])
    if signed is not None:
        changed["SIGNED"] = choose("colormap", signed, matplotlib.colormaps)
    changed |= {name: value for name, value in (("POSITIVE", positive), ("NEGATIVE", negative)) if value is not None}
    for name in rc:
        choose("setting of matplotlib", name, matplotlib.rcParams)
    try:
        with matplotlib.rc_context(rc):
            pass
    except ValueError as error:
        raise OptionError(f"rc=: {error}") from error
    return changed | {"RC": {**style.RC, **rc}}
