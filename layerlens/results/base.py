"""What every result can do: say what it is, be drawn, saved and loaded."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

import numpy as np
import torch

from layerlens.errors import ResultFileError

from . import files

if TYPE_CHECKING:
    from layerlens.plotting import Plot

Self = TypeVar("Self", bound="Result")


def figures() -> Any:
    """Return the room that draws results, through the face of the package: neither room imports the other."""
    return sys.modules["layerlens"].plotting


class Drawing(Protocol):
    """Draw the result: `plot()`, `plot("flow", width="page")`, or `plot.flow(width="page")` with the same options."""

    def __call__(self, kind: str | None = None, **options: Any) -> Plot:
        """Draw the figure of a kind, or the usual one."""

    def __getattr__(self, kind: str) -> Callable[..., Plot]: ...


class _PlotMethod:
    """`result.plot` with the options and the docstring of the result's usual figure, and every kind as an attribute."""

    def __get__(self, result: Result | None, of: type[Result]) -> Drawing:
        return cast(Drawing, figures().plot_method(of, result))


class Result:
    """Base of all results; subclasses are frozen dataclasses.

    A result can always be printed, drawn with `.plot()` and kept with `.save(path)`.
    """

    classes: ClassVar[dict[str, type[Any]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Result.classes[cls.__name__] = cls

    plot = _PlotMethod()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one npz file (arrays and a JSON description); `.npz` is added when missing.

        Returns:
            The path written.

        Raises:
            ResultFileError: when the folder does not exist, or the name has the ending of another format.
        """
        return files.write(path, self)

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str]) -> Self:
        """Read a result that `.save` wrote.

        Raises:
            ResultFileError: when the file is missing, damaged, or holds another kind of result.
        """
        result = files.read(path, Result.classes)
        if not isinstance(result, cls):
            raise ResultFileError(f"{path} holds a {type(result).__name__}, not a {cls.__name__}.")
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        values = self.numpy() if hasattr(self, "numpy") else None
        if not isinstance(values, np.ndarray):
            raise TypeError(f"this {type(self).__name__} holds several arrays, or none; take one of its attributes.")
        return values if dtype is None else values.astype(dtype)

    def summary(self) -> list[tuple[str, str]]:
        """Name and text of what matters, in reading order; shown by `repr` and in notebooks."""
        raise NotImplementedError

    def details(self) -> list[tuple[str, str]]:
        """More rows for notebooks, where there is room: the cost."""
        cost = getattr(self, "cost", "")
        return [("cost", cost)] if cost else []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {text}' for name, text in self.summary())})"

    def _repr_html_(self) -> str:
        name = type(self).__name__
        settings = getattr(self, "settings", None)
        parts = [f"<table><caption>{name}</caption>{_rows(self.summary() + self.details())}</table>"]
        said = " ".join(sentence for sentence in getattr(self, "explanation", ()) if sentence)
        parts += [f"<p>{html.escape(said)}</p>"] if said else []
        if settings:
            shown = _rows([(key, _brief(repr(value))) for key, value in settings.items()])
            parts.append(f"<details><summary>settings</summary><table>{shown}</table></details>")
        return f"<div>{self._picture()}{''.join(parts)}</div>"

    def _picture(self) -> str:
        """A small figure as HTML, or why it cannot be drawn: the numbers next to it are shown in any case."""
        try:
            return str(figures().thumbnail(self))
        except Exception as error:
            return f"<p>no picture: {html.escape(_brief(str(error), 400))}</p>"


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result of any kind that `.save` wrote.

    Args:
        path: file to read.

    Raises:
        ResultFileError: when the file is missing, damaged, or does not hold a result.

    Example:
        >>> import tempfile
        >>> from layerlens.results import LayerProfile
        >>> profile = LayerProfile("norm", ("stem", "head"), torch.tensor([2.0, 1.0]), "1", False, "exact", {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load(profile.save(f"{folder}/norm")).layers
        ('stem', 'head')
    """
    return Result.load(path)


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    left = "style='text-align:left'"
    return "".join(f"<tr><th {left}>{html.escape(a)}</th><td {left}>{html.escape(b)}</td></tr>" for a, b in pairs)


def _brief(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def numbers(values: torch.Tensor, count: int = 3) -> str:
    """The first numbers of a one-dimensional tensor as text: `9.12, 3.4, ... (16)`."""
    shown = ", ".join(f"{value:.4g}" for value in values[:count].tolist())
    return shown if len(values) <= count else f"{shown}, ... ({len(values)})"
