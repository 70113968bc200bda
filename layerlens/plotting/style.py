"""What all figures share: sizes, colors, text, limits of color scales. `style(...)` changes them for a while."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal

import numpy as np

from layerlens.errors import OptionError, PlotError, choose, warn
from layerlens.signatures import public

Array = np.ndarray[Any, Any]
Line = Literal["-", "--", "-.", ":", "none"] | tuple[float, Sequence[float]]
"""A style of lines: its mark, or offset and dashes."""
Width = Literal["column", "page"] | float
"""Width of a figure: one column of a paper (3.25 in), its page (6.75 in), or a number of inches."""

WIDTHS: Final = {"column": 3.25, "page": 6.75}
TEXT: Final = 7.0
"""Size of titles and labels, in points."""
SMALL: Final = 6.0
"""Size of numbers and notes, in points; nothing is smaller."""

INK: Final = "#262626"
FAINT: Final = "#8C8C8C"
POSITIVE: Final = "#B2182B"
NEGATIVE: Final = "#2166AC"
SIGNED: Final = "RdBu_r"
"""The colormap of signed values where none is asked for."""

# Okabe and Ito 2008, without the yellow that vanishes on white paper; each with its own line, for print in gray
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: Final[tuple[Line, ...]] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""Marks of the categories; every second one is drawn hollow."""

RC: Final[dict[Any, Any]] = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same figure on every machine
    "font.size": TEXT,
    "text.color": INK,
    "text.parse_math": False,  # a token such as "$5 or $6" is text, not mathematics
    "text.usetex": False,
    "text.hinting": "no_hinting",  # text as wide at every dpi, and in a PDF, as it was measured
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.5,
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.5,
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.minor.size": 1.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.0,
    "hatch.linewidth": 0.6,
    "image.origin": "upper",
    "figure.facecolor": "white",
    "figure.dpi": 200.0,
    "savefig.bbox": None,  # "tight" would change the width that was asked for
    "savefig.facecolor": "auto",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "layerlens",
}
"""Settings under which every figure is drawn and saved; the user's are restored afterwards."""


def inches(width: Width) -> float:
    """The width of a figure in inches.

    Raises:
        OptionError: for an unknown name or a width that no figure can have.

    Example:
        >>> inches("column"), inches(5)
        (3.25, 5.0)
    """
    if isinstance(width, str):
        return WIDTHS[choose("width", width, WIDTHS)]
    if not 1 <= width <= 40:
        raise OptionError(f"width={width!r} inches; give 1 to 40, or one of: {', '.join(WIDTHS)}.")
    return float(width)


def number(value: float, digits: int = 3) -> str:
    """A number as text for a figure, with a true minus sign.

    Example:
        >>> number(-0.01234), number(172.0, 2), number(12345678.0)
        ('−0.0123', '170', '1.23e7')
    """
    text = f"{value:.{digits}g}"
    if "e+" in text and abs(value) < 1e4:  # 170 rather than 1.7e2
        text = f"{float(text):.0f}"
    if 0 < abs(value) < 1e-3:  # 1.6e-4 rather than 0.00016, whose zeros nobody counts
        text = f"{value:.{digits - 1}e}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return text.replace("-", "−")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a color scale.

    Attributes:
        low: value of the first color.
        high: value of the last color.
        clipped: whether some values lie outside.
        note: how the range was chosen, for the label of a colorbar.
        below: whether values lie below a scale that starts at 0.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    clipped: bool
    note: str
    below: bool = dataclasses.field(default=False, repr=False)
    log: bool = dataclasses.field(default=False, repr=False)

    @property
    def ticks(self) -> list[float]:
        """The ends and the middle."""
        return [self.low, (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2, self.high]


def limits(arrays: Iterable[Array], *, signed: bool, clip: float, vmax: float | None, what: str) -> Limits:
    """One range for several arrays: symmetric about 0 when signed, else from 0.

    Args:
        arrays: finite values.
        signed: whether negative values have a meaning.
        clip: percentile of |value| at which colors saturate, in (0, 100].
        vmax: the largest value; None takes it from `clip`.
        what: the name of the data, for errors.

    Raises:
        OptionError: when `clip` or `vmax` is out of range.
        PlotError: when all values are zero, or unsigned data is negative.

    Example:
        >>> limits([np.array([-2.0, 1.0])], signed=True, clip=100, vmax=None, what="map")
        Limits(low=-2.0, high=2.0, clipped=False, note='')
    """
    if not 0 < clip <= 100:
        raise OptionError(f"clip={clip!r} is a percentile; give a number above 0 and at most 100.")
    if vmax is not None and not (math.isfinite(vmax) and vmax > 0):
        raise OptionError(f"vmax={vmax!r} is the largest value of the color scale; give a positive number.")
    values = np.concatenate([np.ravel(array) for array in arrays]).astype(np.float64)
    sizes = np.abs(values)
    largest = float(sizes.max())
    if not signed and values.min() < -1e-6 * largest:
        raise PlotError(
            f"{what} says signed=False but holds negative values (smallest {values.min():.3g}), which would be drawn "
            "as zero. Build the result with signed=True, or take its absolute values."
        )
    if vmax is None:
        if largest == 0:
            raise PlotError(
                f"{what} is zero everywhere: there is nothing to draw. Check that the target depends on this input "
                "(a saturated or constant output has no gradient), or give vmax= to draw the zeros."
            )
        high = float(np.percentile(sizes, clip)) or largest  # a sparse map: the percentile itself may be zero
        note = f"clipped at {clip:g}%" if high < largest else ""
    else:
        high, note = float(vmax), ""
    return Limits(-high if signed else 0.0, high, largest > high, note)


def colormap(cmap: str | None, *, signed: bool, unsigned: str = "magma") -> Any:
    """The colormap asked for, or RdBu_r for signed data and `unsigned` for magnitudes.

    Raises:
        OptionError: when matplotlib knows no map of that name.
    """
    import matplotlib

    if cmap is not None and not isinstance(cmap, str):
        return cmap
    return matplotlib.colormaps[choose("colormap", cmap or (SIGNED if signed else unsigned), matplotlib.colormaps)]


def signed_colors(values: Sequence[float] | Array) -> list[str]:
    """Red for positive and blue for negative bars, as in the signed colormap."""
    return [POSITIVE if value >= 0 else NEGATIVE for value in values]


@public(renamed={"colours": "colors"})
@contextlib.contextmanager
def using(
    *,
    size: float | None = None,
    family: str | None = None,
    colors: Sequence[str] | None = None,
    positive: str | None = None,
    negative: str | None = None,
    signed: str | None = None,
    rc: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Draw figures in another style inside a `with` block; `plotting.style(...)` is the same function.

    A figure keeps its style when it is saved later. Like matplotlib's settings, the style holds for the whole process,
    other threads included.

    Args:
        size: size of titles and labels in points, 6 to 24 (default 7); numbers and notes are a point smaller, at
            least 6.
        family: font family that matplotlib finds on this machine; letters that it lacks are drawn in DejaVu Sans.
        colors: colors of the categories, in order; the rest of the seven stay.
        positive: color of bars of positive values.
        negative: color of bars of negative values.
        signed: colormap of signed values.
        rc: other settings of matplotlib by name.

    Raises:
        OptionError: for a size out of range, or a font, color, colormap or setting that matplotlib does not know.

    Example:
        >>> from layerlens import plotting
        >>> with plotting.style(size=9, colors=["black", "gray"]):
        ...     plotting.style.TEXT, plotting.style.SMALL, plotting.style.COLORS[:3]
        (9.0, 8.0, ('black', 'gray', '#009E73'))
        >>> plotting.style.TEXT
        7.0
    """
    changed = _changed(size, family, colors, positive, negative, signed, dict(rc or {}))
    before = {name: globals()[name] for name in changed}
    globals().update(changed)
    try:
        yield
    finally:
        globals().update(before)


def _changed(
    size: float | None,
    family: str | None,
    colors: Sequence[str] | None,
    positive: str | None,
    negative: str | None,
    signed: str | None,
    rc: dict[Any, Any],
) -> dict[str, Any]:
    """The names of `style` that change, with their new values.

    Raises:
        OptionError: if a value is not one that matplotlib knows.
    """
    import matplotlib
    from matplotlib.colors import is_color_like
    from matplotlib.font_manager import get_font_names

    changed: dict[str, Any] = {}
    if size is not None:
        if not 6 <= size <= 24:
            raise OptionError(f"size={size!r} points; give 6 to 24.")
        changed |= {"TEXT": float(size), "SMALL": max(6.0, size - 1.0)}
        sizes = {TEXT: changed["TEXT"], SMALL: changed["SMALL"]}
        rc = {name: sizes[value] for name, value in RC.items() if name.endswith("size") and value in sizes} | rc
    if family is not None:
        rc = {"font.family": [choose("font", family, get_font_names()), *RC["font.family"][-1:]]} | rc
    for name, color in (("positive", positive), ("negative", negative), *(("colors", one) for one in colors or ())):
        if color is not None and not is_color_like(color):
            raise OptionError(f"{name}: {color!r} is not a color. Give a name or '#rrggbb'.")
    if colors is not None:
        if not colors or isinstance(colors, str):
            raise OptionError(f"colors={colors!r}; give a list of one or more colors.")
        changed["COLORS"] = (*colors, *COLORS[len(colors) :])
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
    return changed | {"RC": {**RC, **rc}}


OLD_NAMES: Final = {"COLOURS": "COLORS", "signed_colours": "signed_colors"}


class _Style(types.ModuleType):
    """This module, which can be called: `with plotting.style(size=9): ...`."""

    def __call__(self, **options: Any) -> AbstractContextManager[None]:
        return using(**options)

    def __getattr__(self, name: str) -> Any:
        if name not in OLD_NAMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        warn(f"style.{name} is now style.{OLD_NAMES[name]}.", DeprecationWarning)
        return getattr(self, OLD_NAMES[name])


__signature__ = inspect.signature(using)
sys.modules[__name__].__class__ = _Style
