"""The layer table: one row per layer of a model."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

from layerlens.errors import need

from ..base import Result

LEAST: Final = 8
"""Letters of the narrowest column that is shortened."""


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of a `LayerTable`.

    Attributes:
        path: dotted name; `""` is the model.
        type: name of the class.
        calls: how often it ran; None when the model was not run.
        output: shape of its (first) output tensor, as text; `""` when unknown.
        parameters: how many it holds, all below it included.
        own: how many it holds itself.
        share: share of the model's time spent in it and not in its children, 0..1; None when the model was not run.
        input: shapes of the tensors that it was given, the first two of them, as text.
        dtype: data type of its (first) output tensor.
        order: place of its first call's end in the run; None when it did not run.
        activation: bytes of what its calls without others inside returned, each storage counted where it is returned
            first and those of parameters not at all; None when it had no such call.
        input_dtype: data type of the first tensor that it was given.
        axes: what the axes of its output are, as text, such as `batch | 1+height*width | unit`: one class token in
            front of the places of a picture; `?` for an axis that is not known. With the names of several tensors.
    """

    path: str
    type: str
    calls: int | None
    output: str
    parameters: int
    own: int
    share: float | None
    input: str = ""
    dtype: str = ""
    order: int | None = None
    activation: int | None = None
    input_dtype: str = ""
    axes: str = ""


Result.classes["LayerRow"] = LayerRow


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerTable(Result):
    """The layers of a model, in definition order.

    Attributes:
        model: name of the model's class.
        rows: one `LayerRow` per layer, the model itself first.
        milliseconds: duration of the timed run; None when the model was not run.
        device: device of the first parameter.
        depth: how deep the table is shown; None for all. `rows` holds all.
    """

    model: str
    rows: tuple[LayerRow, ...]
    milliseconds: float | None = None
    device: str = "cpu"
    depth: int | None = None

    HEADS = ("path", "type", "calls", "output", "axes", "parameters", "time")
    MORE = ("input", "dtype", "order", "activation")

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, without its head."""
        return [
            (
                row.path or "(model)",
                row.type,
                "" if row.calls is None else str(row.calls) if row.calls else "did not run",
                row.output,
                row.axes,
                f"{row.parameters:,}" if row.parameters else "",
                "" if row.share is None or not row.calls else f"{100 * row.share:.1f}%",
            )
            for row in self.rows
        ]

    def more(self) -> list[tuple[str, ...]]:
        """Input shape, data type, order of execution and memory of the output of each row, as text."""
        return [
            (
                row.input,
                f"{row.input_dtype} -> {row.dtype}" if row.input_dtype not in ("", row.dtype) else row.dtype,
                "" if row.order is None else str(row.order),
                "" if row.activation is None else _bytes(row.activation),
            )
            for row in self.rows
        ]

    @property
    def activation(self) -> int | None:
        """Bytes of all that layers without others inside returned; None when the model was not run."""
        sizes = [row.activation for row in self.rows if row.activation is not None]
        return sum(sizes) if sizes else None

    def tree(self, *, depth: int | None = None, width: int | None = None) -> str:
        """The layers as an indented tree with all columns.

        Args:
            depth: how deep to go; None for that of the table.
            width: letters of a line, to which columns are shortened (to 8 letters each); None for as many as they need.
        """
        cells: list[tuple[str, ...]] = [(*self.HEADS, *self.MORE)]
        for row, level, text in zip(self.rows, self._levels(), self._all_cells(), strict=True):
            if level <= depth if depth is not None else self._is_shown(level):
                cells.append(("  " * level + (row.path.rpartition(".")[2] or "(model)"), *text[1:]))
        return _columns(cells if width is None else _fitted(cells, width))

    def _all_cells(self) -> list[tuple[str, ...]]:
        return [one + two for one, two in zip(self.cells(), self.more(), strict=True)]

    def summary(self) -> list[tuple[str, str]]:
        """Model, number of layers and of parameters, time."""
        rows = [("model", self.model), ("layers", str(len(self.rows) - 1))]
        rows.append(("parameters", f"{self.rows[0].parameters:,}"))
        if self.activation is not None:
            rows.append(("outputs", _bytes(self.activation)))
        return rows if self.milliseconds is None else [*rows, ("one forward", f"{self.milliseconds:.1f} ms")]

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        return pandas.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        rows = [row for row, level in zip(self.cells(), self._levels(), strict=True) if self._is_shown(level)]
        cells = [self.HEADS, *(tuple(map(_short, row, (32, 15, 11, 16, 29, 11, 6))) for row in rows)]
        head = ", ".join(f"{name} {text}" for name, text in self.summary()[1:])
        if len(cells) > 44:
            cells = [*cells[:30], ("...", f"{len(cells) - 40} more", "", "", "", "", ""), *cells[-10:]]
            head += "; depth=2 shows less"
        if sys.stdout.isatty():
            cells = _fitted(cells, shutil.get_terminal_size().columns)
        return f"{self.model}: {head}\n{_columns(cells)}"

    def _levels(self) -> list[int]:
        return [row.path.count(".") + 1 if row.path else 0 for row in self.rows]

    def _is_shown(self, level: int) -> bool:
        return self.depth is None or level <= self.depth

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str, level: int = 0) -> str:
            first, *rest = map(html.escape, cells)
            start = f"<{tag} style='text-align:left;padding-left:{level + 0.5}em'>{first}</{tag}>"
            return (
                "<tr>" + start + "".join(f"<{tag} style='white-space:nowrap'>{cell}</{tag}>" for cell in rest) + "</tr>"
            )

        body = "".join(
            line(cells, "td", level)
            for cells, level in zip(self._all_cells(), self._levels(), strict=True)
            if self._is_shown(level)
        )
        return f"<table><thead>{line((*self.HEADS, *self.MORE), 'th')}</thead><tbody>{body}</tbody></table>"


def _columns(cells: Sequence[tuple[str, ...]]) -> str:
    """Rows of text in columns: the first two to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        left = [row[column].ljust(widths[column]) for column in (0, 1)]
        right = [row[column].rjust(widths[column]) for column in range(2, len(row))]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)


def _fitted(cells: Sequence[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Cells whose lines have at most that many letters: the widest columns give way, to `LEAST` letters each."""
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes) > LEAST:
        sizes[sizes.index(max(sizes))] -= 1
    return [tuple(map(_short, row, sizes)) for row in cells]


def _short(text: str, width: int) -> str:
    """The text in at most that many letters, without its middle; the path of a layer keeps its number."""
    if len(text) <= width:
        return text
    numbered = re.match(r"[^\s\d]*\.(?=\d+(\.|$))", text)
    path = text[numbered.end() :] if numbered else ""
    if numbered and len(path) + 3 <= width:
        return f"...{path}"
    start = f"...{path}"[: max(width // 2, 3)] if numbered and width > 8 else text[: (width - 3) // 3]
    return f"{start}...{text[len(text) - (width - 3 - len(start)) :]}"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
