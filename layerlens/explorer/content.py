"""An explorer as data: what its page shows, and the page."""

from __future__ import annotations

import dataclasses
import math
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.errors import check_count
from layerlens.plotting.style import Array
from layerlens.report.page import check_file

from . import page, widget
from .packing import View

if TYPE_CHECKING:
    from anywidget import AnyWidget

VIEWS = ("Input", "Layers", "Tokens", "Heads", "Ledger", "About")
"""Tabs that every page may have; results have other titles."""

HEIGHT = 760
"""Height of the page in a notebook, in pixels."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Explorer:
    """A page in which a reader looks around in a model with mouse or keyboard, and every number on it.

    In a notebook the page is shown below the cell, in a frame of its own; `.save("explorer.html")` writes it to a file
    that needs nothing else.

    Attributes:
        title: title of the page.
        content: everything but arrays: samples, targets, methods, layers, units, tokens, names and texts. An array is
            a list of the place of its first number in `numbers` and its shape.
        numbers: all arrays, one after the other, float32.
        seconds: how long it took to make.
        warnings: warnings of the analyzers, which are on the page too.
    """

    title: str
    content: dict[str, Any]
    numbers: Array
    seconds: float
    warnings: tuple[str, ...] = ()

    def array(self, view: View) -> Array:
        """Return an array of the page.

        Args:
            view: where it is, from `content`.
        """
        start, *shape = view
        return self.numbers[start : start + math.prod(shape)].reshape(shape)

    def to_html(self) -> str:
        """Return the page: one HTML document that loads nothing."""
        return page.render(self.title, self.content, self.numbers)

    def save(self, path: str | os.PathLike[str] = "explorer.html") -> Path:
        """Write the page to a file, whole or not at all; an existing one is replaced.

        Args:
            path: file to write.

        Returns:
            The path written.

        Raises:
            ResultFileError: when the file cannot be written.
        """
        check_file(path)
        return page.write(self.to_html(), path)

    def widget(self, height: int = HEIGHT) -> AnyWidget:
        """Return the page as a widget of a notebook, whose `selected` is what was clicked on it.

        `selected` is a dict: `view` (name of the tab); `input`, `target` and `method`, numbers from 0, and the three of
        the other side in `compared`; `layer`, the name that selects it, with its `call` and `unit`; `token`; `head`, a
        dict of its `layer` and number. What is not selected is None. Set it, and the page goes there; what the page
        does not have is refused. `.observe(function, "selected")` calls a function at each click.

        Args:
            height: height in pixels.

        Raises:
            MissingPackage: without anywidget, `pip install 'layerlens-torch[widget]'`; the explorer itself as the last
                line of a cell shows the same page without it.
            OptionError: when the height is not a whole number of at least 1.
        """
        check_count("height", height)
        return widget.make(self, height)

    @property
    def views(self) -> tuple[str, ...]:
        """The tabs of the page."""
        content = self.content
        forms = {part["form"] for sample in content["samples"] for part in sample["parts"]}
        shown = {"Input": True, "Layers": bool(content["layers"]), "Tokens": "tokens" in forms}
        shown |= {"Heads": content["heads"] is not None, "Ledger": True}
        return (*(name for name, there in shown.items() if there), *(one["title"] for one in content["results"]))

    def __repr__(self) -> str:
        content = self.content
        counts = (("sample", "samples"), ("target", "targets"), ("method", "methods"), ("layer", "layers"))
        parts = [f"{len(content[many])} {one if len(content[many]) == 1 else many}" for one, many in counts]
        size = len(self.to_html().encode()) / 2**20
        return (
            f"Explorer({self.title}: {', '.join(parts)}; views: {', '.join(self.views)}; {size:.1f} MiB, made in "
            f"{self.seconds:.1f} s; .save('explorer.html') writes the page)"
        )

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="{escape(self.title)}" sandbox="allow-scripts" srcdoc="{escape(self.to_html())}" '
            f'style="width:100%;height:{HEIGHT}px;border:1px solid #8888"></iframe>'
        )
