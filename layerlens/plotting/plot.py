"""One picture: shown in a notebook, kept in a file, and open to change through matplotlib."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerlens.errors import OptionError, PlotError

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
        fig: the matplotlib figure; it belongs to no window and to no pyplot state.
        axes: its panels, in reading order, colorbars left out.
        data: the arrays that were drawn, by name.

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

    def save(self, path: str | os.PathLike[str], dpi: float = 200, *, colours: int | None = None) -> Path:
        """Write the figure as PNG, PDF or SVG, by the suffix of the path; fonts are embedded as TrueType.

        The file appears whole or not at all, and the same figure gives the same bytes.

        Args:
            path: where to; an existing file is replaced.
            dpi: dots per inch of a PNG, and of the images inside a PDF or SVG.
            colours: of a PNG, 2 to 256 that fit the figure best, for a file of less than half the size; None keeps all.

        Returns:
            The path written.

        Raises:
            PlotError: for another suffix, or when the folder does not exist.

        Example:
            >>> import tempfile
            >>> from matplotlib.figure import Figure
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Plot(Figure(), (), {}).save(f"{folder}/empty.pdf").name
            'empty.pdf'
        """
        path = Path(path)
        kind = path.suffix.lower().removeprefix(".")
        if kind not in METADATA:
            given = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise PlotError(f"cannot save a figure to {path}: {given}. Use .png, .pdf or .svg.")
        if not path.parent.is_dir():
            raise PlotError(f"cannot save a figure to {path}: the folder {path.parent} does not exist. Make it first.")
        if not 10 <= dpi <= 2400:
            raise OptionError(f"dpi={dpi!r}; give 10 to 2400 dots per inch.")
        if colours is not None and (kind != "png" or not 2 <= colours <= 256):
            raise OptionError(f"colours={colours!r} for a {kind.upper()}; give 2 to 256, and for a PNG only.")
        content = self._render(kind, dpi)
        if colours is not None:
            content = _fewer(content, colours)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        return path

    def png(self, dpi: float = 200) -> bytes:
        """The figure as the bytes of a PNG, on white paper also where a notebook is dark.

        Args:
            dpi: dots per inch.
        """
        return self._render("png", dpi)

    def _render(self, kind: str, dpi: float) -> bytes:
        import matplotlib

        buffer = io.BytesIO()
        backend = "agg" if kind == "png" else kind  # a canvas of its own: another may remember sizes of text
        with matplotlib.rc_context(self._settings):  # fonts are chosen while saving too
            self.fig.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind], backend=backend)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes | None:
        return self._render("png", 200) if self._own else None

    def _ipython_display_(self) -> None:
        # drawn into axes of the user, who shows them: this must show nothing. NotImplementedError is how IPython is
        # told to go on to _repr_png_.
        if self._own:
            raise NotImplementedError

    def __repr__(self) -> str:
        count = len(self.axes)
        wide, high = self.fig.get_size_inches()
        size = f"{count} panel{'' if count == 1 else 's'}, {wide:.2f} x {high:.2f} in"
        return f"Plot({size}). Keep it: .save('figure.pdf')"


def _fewer(content: bytes, colours: int) -> bytes:
    """A PNG with a palette."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    few = picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
