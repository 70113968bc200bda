"""Several samples of a batch in one figure, each drawn by the function that draws one, on one scale.

A canvas asks `current_place()` where it is drawn: in a figure of its own, or in a cell of the sheet of all samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import Attribution
from layerlens.signatures import public

from .. import style
from ..plot import Plot
from . import text
from .attribution_sample import Which as Which, sample_index

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

Drawing = TypeVar("Drawing", bound=Callable[..., Plot])

MOST: Final = 6
"""Samples that are drawn if none is chosen."""
PAGE: Final = 8.6
"""Inches of height that they may take."""
COLUMNS: Final = (1, 2, 3)
MARGIN: Final = 0.05


@dataclasses.dataclass
class Place:
    """Where a canvas is drawn.

    Attributes:
        label: which sample it shows.
        cell: subfigure of a sheet; None for a figure of its own.
        width: width of the cell, in inches.
        scales: color scales of the canvas, noted while it is drawn.
    """

    label: str
    cell: SubFigure | None = None
    width: float = 0.0
    scales: list[style.Limits] = dataclasses.field(default_factory=list)


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


def current_place() -> Place:
    """Where the next canvas is drawn."""
    return _PLACE.get() or Place("")


@contextlib.contextmanager
def _at(one: Place) -> Iterator[Place]:
    token = _PLACE.set(one)
    try:
        yield one
    finally:
        _PLACE.reset(token)


def resize(fig: Any, wide: float, high: float) -> None:
    """Give a figure, or a cell of a sheet, its size in inches."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    if isinstance(fig, Figure):
        fig.set_size_inches(wide, high)
    else:
        full = fig.figure.get_size_inches()
        fig.bbox_relative.set(Bbox.from_bounds(0, 0, wide / full[0], high / full[1]))


def each_sample(count: Callable[[Any], int], *of_one: str, narrowest: float = 1.0) -> Callable[[Drawing], Drawing]:
    """Let a figure of one `sample` draw several: the samples of a list, or for None the first that fit a page.

    A figure that is drawn into `ax=` or `fig=` shows the first sample, as its title says.

    Args:
        count: number of samples of what the figure draws.
        of_one: options that describe one sample, such as its picture: several samples are refused with them.
        narrowest: inches of the narrowest figure of a sample.
    """

    def decorate(draw: Drawing) -> Drawing:
        signature = inspect.signature(draw)
        first = next(iter(signature.parameters))

        @functools.wraps(draw)
        def drawn(*args: Any, **options: Any) -> Plot:
            given = signature.bind(*args, **options).arguments
            which = _numbers(given[first], given.pop("sample", None))
            total = _count(given[first])
            if which is None:
                inside = given.get("ax") is not None or given.get("fig") is not None
                which = 0 if total == 1 or inside else range(min(total, MOST))
            elif isinstance(which, (list, tuple)) and len(which) == 1:
                (which,) = which
            if isinstance(which, (range, list, tuple)):
                if not which:
                    raise OptionError(f"sample={which!r} draws nothing; give a number, or a list of them.")
                private = next((name for name in of_one if not isinstance(given.get(name), (bool, type(None)))), None)
                if private:
                    raise OptionError(f"{private}= is of one sample, and there are {total}. Say which: sample=0.")
                shared = "vmax" in signature.parameters and given.get("vmax") is None
                return _several(functools.partial(draw, **given), which, total, shared, narrowest)
            known = total > 1 and isinstance(which, (int, np.integer)) and -total <= which < total
            label = f"{sample_label(given[first], which % total)} of {total}" if known else _only_name(given[first])
            with _at(Place(label)):
                return draw(**given, sample=which)

        return cast(Drawing, public(drawn))

    def _count(result: Any) -> int:
        try:
            return count(result)
        except (AttributeError, IndexError, TypeError, StopIteration):
            return 1  # not a result of this figure, which refuses it

    return decorate


def sample_label(result: Any, sample: int, number: int | None = None) -> str:
    """The number of a sample, after its name where it has one; `number` where it is counted over several results."""
    first = _first(result)
    name = "" if first is None else f"{first.sample_name(sample)}, "
    return f"{name}sample {sample if number is None else number}"


def _first(result: Any) -> Attribution | None:
    """The attribution, or the first of a list, if its samples have names."""
    first = result[0] if isinstance(result, (list, tuple)) and result else result
    return first if isinstance(first, Attribution) and first.index is not None else None


def _numbers(result: Any, which: Any) -> Any:
    """The samples that are meant, those given by name by their number.

    Raises:
        OptionError: if no sample has such a name.
    """
    if isinstance(which, (list, tuple)):
        return [_numbers(result, one) for one in which]
    first = _first(result)
    if not isinstance(which, str) or first is None:
        return which
    names = [first.sample_name(number) for number in range(len(first.score))]
    return names.index(choose("sample", which, names))


def _only_name(result: Any) -> str:
    """The name of the sample of a batch of one, if it has one."""
    first = _first(result)
    if first is None or len(first.score) != 1:
        return ""
    name = first.sample_name(0)
    return f"index {name}" if name.isdigit() else name


def _several(draw: functools.partial[Plot], which: Sequence[int], total: int, shared: bool, narrowest: float) -> Plot:
    """A figure with a cell for each sample.

    Raises:
        PlotError: if a sample cannot be drawn.
    """
    title, chosen = draw.keywords.get("title"), not isinstance(which, range)
    width = style.inches(draw.keywords.get("width") or "page")
    which = [sample_index(number, total, "the batch") for number in which]
    draw = functools.partial(draw, title=None if title is None else "", width=width)
    sheet, fitting = _arrangement(draw, which, width, narrowest)
    which = which if chosen else which[:fitting]
    for number in which[len(sheet.failed) + 1 :]:
        sheet.draw_next(draw, number)
    scales = [one.scales for one in sheet.places if one.scales]
    note = ""
    if shared and scales and all(len(one) == 1 for one in scales):
        ends = {one.high for (one,) in scales}
        if sheet.failed or len(ends) > 1:  # a sample of zeros has no scale of its own
            note = next((one.note for (one,) in scales if one.note), "")
            sheet = _Sheet(width, sheet.columns)
            draw = functools.partial(draw, vmax=max(ends))
            for number in which:
                sheet.draw_next(draw, number)
    if sheet.failed:
        raise sheet.failed[0]
    heading = [title] if title else []
    if title is None:
        heading += [f"{len(which)} of {total} samples"] if len(which) < total else [f"{total} samples"]
        heading += [f"one scale, {note}"] * bool(note)
    return sheet.finish("; ".join(heading), which)


def _arrangement(
    draw: functools.partial[Plot], which: Sequence[int], width: float, narrowest: float
) -> tuple[_Sheet, int]:
    """A sheet with one sample, the first that can be drawn, and how many fit a page.

    Its columns are as few as show all samples, else those that show most.

    Raises:
        PlotError: if no sample can be drawn.
    """
    found: list[tuple[_Sheet, int]] = []
    errors: list[PlotError] = []
    for columns in [one for one in COLUMNS[: len(which)] if one == 1 or width / one >= narrowest]:
        sheet = _Sheet(width, columns)
        if any(sheet.draw_next(draw, number) for number in which):
            fitting = max(1, int(PAGE / sheet.height(sheet.places[0]))) * columns
            found.append((sheet, min(fitting, len(which))))
            if fitting >= len(which):
                break
        errors += sheet.failed
    if not found:
        raise errors[0]
    return max(found, key=lambda one: (one[1], -one[0].columns))


class _Sheet:
    """A figure of cells, a row after the other."""

    def __init__(self, width: float, columns: int) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        self.columns, self.width = columns, width
        with matplotlib.rc_context(style.RC):
            self.fig = Figure(figsize=(width, width))
            self.grid = self.fig.add_gridspec(1, 1)
        self.places: list[Place] = []
        self.plots: list[Plot] = []
        self.failed: list[PlotError] = []

    def draw_next(self, draw: functools.partial[Plot], number: int) -> bool:
        """Draw a sample into the next cell; return whether it can be drawn."""
        wide = self.width / self.columns
        place = Place(
            sample_label(next(iter(draw.keywords.values())), number), self.fig.add_subfigure(self.grid[0, 0]), wide
        )
        resize(place.cell, wide, wide)
        try:
            with _at(place):
                plot = draw(sample=number, width=wide)
        except PlotError as error:
            self.failed.append(error)
            return False
        self.places.append(place)
        self.plots.append(plot)
        return True

    def height(self, place: Place) -> float:
        """Height of a cell, in inches."""
        assert place.cell is not None
        return float(place.cell.bbox.height / self.fig.dpi)

    def finish(self, heading: str, numbers: Sequence[int]) -> Plot:
        """Place the cells and write above them; return the figure."""
        import matplotlib
        from matplotlib.transforms import Bbox

        rows = [self.places[start : start + self.columns] for start in range(0, len(self.places), self.columns)]
        highs = [max(map(self.height, row)) for row in rows]
        lines = text.wrap(heading, style.TEXT, self.width - 2 * MARGIN) if heading else ""
        above = MARGIN + 1.3 * style.TEXT / 72 * (lines.count("\n") + 1) if lines else 0.0
        full = above + sum(highs)
        sizes = {id(place): self.height(place) for place in self.places}
        self.fig.set_size_inches(self.width, full)
        top = full - above
        for row, high in zip(rows, highs, strict=True):
            for column, place in enumerate(row):
                own, wide = sizes[id(place)], self.width / self.columns
                box = Bbox.from_bounds(column / self.columns, (top - own) / full, wide / self.width, own / full)
                assert place.cell is not None
                place.cell.bbox_relative.set(box)
            top -= high
        if lines:
            with matplotlib.rc_context(style.RC):
                self.fig.text(MARGIN / self.width, 1 - MARGIN / full, lines, fontsize=style.TEXT, ha="left", va="top")
        data: dict[str, Any] = {name: [plot.data.get(name) for plot in self.plots] for name in self.plots[0].data}
        axes = tuple(one for plot in self.plots for one in plot.axes)
        return Plot(self.fig, axes, {"samples": list(numbers), **data})
