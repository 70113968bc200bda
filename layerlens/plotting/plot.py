"""A figure as an object to show, save and change; the registry of figures by the result that they draw."""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from layerlens.errors import OptionError, PlotError, UnknownOption, choose
from layerlens.files import no_place, whole
from layerlens.results import Result
from layerlens.signatures import old_names, public

from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# no dates and no versions: the same data gives the same bytes
METADATA: Final[dict[str, dict[str, None]]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


class Plot:
    """A finished figure.

    Attributes:
        fig: matplotlib figure, independent of windows and of pyplot.
        axes: its panels in reading order, without colorbars.
        data: arrays that were drawn, by name.

    Example:
        >>> from matplotlib.figure import Figure
        >>> fig = Figure(figsize=(3.25, 2))
        >>> Plot(fig, (fig.add_subplot(),), {})
        Plot(1 panel, 3.25 x 2.00 in). Keep it: .save('figure.pdf')
    """

    def __init__(self, fig: Figure, axes: tuple[Axes, ...], data: dict[str, Any], *, own: bool = True) -> None:
        self.fig = fig
        self.axes = axes
        self.data = data
        self._own = own
        self._settings = dict(style.RC)

    @public(renamed={"colours": "colors"})
    def save(self, path: str | os.PathLike[str], dpi: float | None = None, *, colors: int | None = None) -> Path:
        """Write the figure as PNG, PDF or SVG, depending on the suffix of the path; fonts are embedded as TrueType.

        The file appears whole or not at all, and the same figure gives the same bytes.

        Args:
            path: file to write; an existing one is replaced.
            dpi: dots per inch of a PNG (None: 200), and of the images inside a PDF or SVG (None: 300).
            colors: number of colors of a PNG, 2 to 256, for a file of less than half the size; None keeps all.

        Returns:
            The path written.

        Raises:
            OptionError: if `dpi` or `colors` is out of range.
            PlotError: if the suffix is another one, or the folder does not exist.

        Example:
            >>> import tempfile
            >>> from matplotlib.figure import Figure
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Plot(Figure(), (), {}).save(f"{folder}/empty.pdf").name
            'empty.pdf'
        """
        path = Path(path)
        suffix = path.suffix.lower().removeprefix(".")
        if suffix not in METADATA:
            given = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise PlotError(f"cannot save a figure to {path}: {given}. Use .png, .pdf or .svg.")
        if why := no_place(path):
            raise PlotError(f"cannot save a figure to {path}: {why}")
        if dpi is None:
            dpi = 200 if suffix == "png" else 300
        if not 10 <= dpi <= 2400:
            raise OptionError(f"dpi={dpi!r}; give 10 to 2400 dots per inch.")
        if colors is not None and (suffix != "png" or not 2 <= colors <= 256):
            raise OptionError(f"colors={colors!r} for a {suffix.upper()}; give 2 to 256, and for a PNG only.")
        content = self._render(suffix, dpi)
        if colors is not None:
            content = _with_palette(content, colors)
        with whole(path) as file:
            file.write(content)
        return path

    @public
    def png(self, dpi: float = 200) -> bytes:
        """Return the figure as the bytes of a PNG, on white paper even in a dark notebook.

        Args:
            dpi: dots per inch.
        """
        return self._render("png", dpi)

    def _render(self, kind: str, dpi: float) -> bytes:
        import matplotlib

        buffer = io.BytesIO()
        backend = "agg" if kind == "png" else kind  # a new canvas: another may remember sizes of text
        with matplotlib.rc_context(self._settings):  # fonts are chosen while saving too
            self.fig.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind], backend=backend)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes | None:
        return self._render("png", 200) if self._own else None

    def _ipython_display_(self) -> None:
        # A figure in the user's axes is shown by the user. NotImplementedError makes IPython use _repr_png_.
        if self._own:
            raise NotImplementedError

    def __repr__(self) -> str:
        count = len(self.axes)
        wide, high = self.fig.get_size_inches()
        size = f"{count} panel{'' if count == 1 else 's'}, {wide:.2f} x {high:.2f} in"
        return f"Plot({size}). Keep it: .save('figure.pdf')"


def _with_palette(content: bytes, colors: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    few = picture.quantize(colors, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


FigureFunction = Callable[..., Plot]
Drawing = TypeVar("Drawing", bound=FigureFunction)
FIGURES: Final[dict[type[Any], dict[str, FigureFunction]]] = {}
"""Class of results -> kind -> the figure that is registered for it; `figures_of` adds those of its base classes."""
_USUAL: Final[dict[type[Any], str]] = {}
SAVE_OPTIONS: Final = ("dpi", "colors")
"""Options of `Plot.save`."""


def figure(of: type[Any], *, kind: str, usual: bool = False) -> Callable[[Drawing], Drawing]:
    """Register a function as a figure of a class of results: `result.plot(kind)` and `result.plot.<kind>()` call it.

    The function takes the result first and options by keyword, and returns a `Plot`. A parameter that several figures
    share (`width`, `title`, `cmap`, ...) needs no description: `layerlens.signatures.public` completes the docstring.

    Args:
        of: class of the result; its subclasses have the figure too.
        kind: name of the figure, a Python identifier.
        usual: whether `result.plot()` draws it; otherwise the first that was registered.

    Raises:
        OptionError: if `kind` is not an identifier.

    Example:
        >>> from layerlens.results import Entry
        >>> @figure(Entry, kind="nothing")
        ... def nothing(entry, *, width="column", title=None):
        ...     \"\"\"Draw nothing.\"\"\"
        >>> list(figures_of(Entry))
        ['nothing']
        >>> FIGURES.pop(Entry)["nothing"].__doc__.splitlines()[3].strip()
        'width: `"column"` (3.25 in), `"page"` (6.75 in), or inches.'
    """
    if not kind.isidentifier():
        raise OptionError(f"kind={kind!r} of a figure must be a Python identifier, for result.plot.{kind}().")

    def register(draw: Drawing) -> Drawing:
        drawn = draw if hasattr(draw, "__draws__") else _checked(draw if hasattr(draw, "__wrapped__") else public(draw))
        vars(drawn)["__draws__"].insert(0, of)
        FIGURES.setdefault(of, {})[kind] = drawn
        if usual:
            _USUAL[of] = kind
        return drawn

    return register


def _checked(draw: Drawing) -> Drawing:
    """A figure that refuses results of other classes than it is registered for, unless it takes several results.

    Raises:
        PlotError: if the result is of another class.
    """
    classes: list[type[Any]] = []
    name, parameter = next(iter(inspect.signature(draw).parameters.items()))
    one_result = "Sequence" not in str(parameter.annotation)

    @functools.wraps(draw)
    def checked(*given: Any, **options: Any) -> Plot:
        result = given[0] if given else options.get(name)
        if one_result and not isinstance(result, tuple(classes)):
            known = " or ".join(_with_article(one.__name__) for one in classes)
            raise PlotError(f"{draw.__name__} draws {known}, not a {type(result).__name__}.")
        return draw(*given, **options)

    vars(checked)["__draws__"] = classes
    return cast(Drawing, checked)


def _with_article(name: str) -> str:
    return name if name.endswith("s") else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def figures_of(of: type[Any]) -> dict[str, FigureFunction]:
    """Return the figures of a class of results by kind, the usual one first.

    Args:
        of: class of the results.
    """
    lines = of.__mro__
    found = {kind: draw for base in reversed(lines) for kind, draw in FIGURES.get(base, {}).items()}
    usual = next((_USUAL[base] for base in lines if base in _USUAL), None)
    return found if usual is None else {usual: found.pop(usual), **found}


def through(read: Callable[..., Any], draw: FigureFunction) -> FigureFunction:
    """Return a figure that draws what `read` makes of a result, with the options of both.

    Args:
        read: function of a result, such as one of its methods.
        draw: figure of what that returns.
    """
    first, *own = inspect.signature(read).parameters.values()
    _, *options = inspect.signature(draw).parameters.values()
    names = [one.name for one in own]

    def drawn(result: Result, **given: Any) -> Plot:
        chosen = {name: given.pop(name) for name in names if name in given}
        return draw(read(result, **chosen), **given)

    keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *options)]
    first = inspect.Parameter("result", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    drawn.__name__, drawn.__module__ = draw.__name__, draw.__module__
    drawn.__doc__ = _with_first(draw, *(f"{name}: see `{read.__qualname__}`." for name in names))
    vars(drawn)["__signature__"] = inspect.Signature([first, *keyword])
    return drawn


def plot(result: Result, kind: str | None = None, **options: Any) -> Plot:
    """Draw any result that has a figure; `result.plot(kind, ...)` is the same.

    Args:
        result: any result; `dir(result.plot)` lists its kinds of figures.
        kind: which figure; None is the usual one.
        options: options of that figure, see `help(result.plot.<kind>)`.

    Raises:
        OptionError: if the result has no figure of that kind.
        PlotError: if it has none at all, or cannot be drawn.
        UnknownOption: if the figure does not have one of the options.

    Example:
        >>> import torch
        >>> from layerlens.results import LayerProfile
        >>> profile = LayerProfile("norm", ("stem", "head"), torch.tensor([2.0, 1.0]), "1", False, "exact", {})
        >>> plot(profile, width="column")
        Plot(1 panel, 3.25 x ... in). Keep it: .save('figure.pdf')
    """
    of = type(result)
    figures = figures_of(of)
    if not figures:
        known = ", ".join(sorted(one.__name__ for one in FIGURES))
        raise PlotError(f"there is no figure of a {of.__name__}. These have one: {known}.")
    name = next(iter(figures)) if kind is None else choose(f"figure of a {of.__name__}", kind, figures)
    _check_options(of, name, figures, options)
    return figures[name](result, **options)


def _check_options(of: type[Any], kind: str, figures: dict[str, FigureFunction], options: dict[str, Any]) -> None:
    """Refuse options that the figure does not have, and say where they belong.

    Raises:
        UnknownOption: if there is such an option; the figure itself names the nearest of its own.
    """
    have = {name: inspect.signature(draw).parameters for name, draw in figures.items()}
    for option in options:
        if (
            option in have[kind]
            or option in old_names(figures[kind])
            or any(one.kind is one.VAR_KEYWORD for one in have[kind].values())
        ):
            continue
        if option in SAVE_OPTIONS:
            raise UnknownOption(
                f"plot() has no option {option!r}: it belongs to saving, "
                f"result.plot().save('figure.png', {option}={options[option]!r})."
            )
        others = [repr(name) for name, parameters in have.items() if option in parameters]
        if others:
            raise UnknownOption(f"the figure {kind!r} of a {of.__name__} has no option {option!r}; {others[0]} has it.")


def plot_method(of: type[Any], result: Result | None = None) -> FigureFunction:
    """Return `result.plot`: a function with the options of the usual figure, and an attribute for every kind.

    Args:
        of: class of the result.
        result: the result; None for the function of the class, which takes it first.
    """
    figures = figures_of(of)
    Parameter = inspect.Parameter

    def of_class(self: Result, kind: str | None = None, **options: Any) -> Plot:
        return plot(self, kind, **options)

    def of_result(kind: str | None = None, **options: Any) -> Plot:
        return plot(cast(Result, result), kind, **options)

    draw: Any = of_class if result is None else of_result
    draw.__name__, draw.__qualname__, draw.__module__ = "plot", f"{of.__name__}.plot", of.__module__
    usual = next(iter(figures), None)
    parameters = list(inspect.signature(draw).parameters.values())[:-1]
    if usual is None:
        draw.__doc__ = (
            'Draw the usual figure, or one of a kind: `plot("flow", width="page")`, `plot.flow(width="page")`.'
        )
        return draw  # type: ignore[no-any-return]
    others = ", ".join(f'`"{name}"`' for name in figures if name != usual)
    more = f", or one with other options, see `help(result.plot.<kind>)`: {others}" if others else ""
    draw.__doc__ = _with_first(figures[usual], f'kind: None or `"{usual}"`{more}.')
    options = list(inspect.signature(figures[usual]).parameters.values())[1:]
    options = [one if one.kind is one.VAR_KEYWORD else one.replace(kind=Parameter.KEYWORD_ONLY) for one in options]
    draw.__signature__ = inspect.Signature([*parameters, *options], return_annotation="Plot")
    for name, one in figures.items():
        setattr(draw, name, one if result is None else types.MethodType(one, result))
    return draw  # type: ignore[no-any-return]


def _with_first(draw: FigureFunction, *entries: str) -> str:
    """The docstring of a figure, with other entries instead of that of its first parameter."""
    first = next(iter(inspect.signature(draw).parameters))
    lines = "".join(f"    {entry}\n" for entry in entries)
    return re.sub(rf"(?m)^ {{4}}{first}: .*\n(?: {{5,}}.*\n)*", lambda _: lines, draw.__doc__ or "", count=1)
