"""The methods of attribution, to look up and to compare."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

from layerlens.errors import OptionError, suggestion


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MethodTable:
    """Methods of attribution with what each costs and needs.

    Attributes:
        rows: name -> (family, cost in passes per sample, what it needs, source).
        seconds: name -> about how long it takes for the input that the table was made for; empty for no input.
        notes: what else is to be said, below the table.
    """

    rows: dict[str, tuple[str, str, str, str]]
    seconds: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> tuple[str, str, str, str]:
        if name not in self.rows:
            raise OptionError(f"there is no method {name!r}.{suggestion(name, self.rows)}")
        return self.rows[name]

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return in_columns(self._table(), self.notes)

    def _repr_html_(self) -> str:
        return in_html(self._table(), self.notes)

    def _table(self) -> list[tuple[str, ...]]:
        head = ("method", "family", "cost per sample", "needs", "source")
        if not self.seconds:
            return [head, *((name, *row) for name, row in self.rows.items())]
        timed = ((name, *row[:2], duration(self.seconds[name]), row[2]) for name, row in self.rows.items())
        return [(*head[:3], "time", "needs"), *timed]


def duration(seconds: float | None) -> str:
    """Return a time with two digits and its unit; empty if unknown.

    Example:
        >>> duration(0.00123), duration(0.456), duration(75)
        ('1.2 ms', '0.46 s', '1.2 min')
    """
    if seconds is None:
        return ""
    for unit, size, least in (("h", 3600, 3600), ("min", 60, 60), ("s", 1, 0.1), ("ms", 1e-3, 0)):
        if seconds >= least:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return ""


def in_columns(table: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return a table as text, its columns aligned, and notes below it."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, *[""] * bool(notes), *notes])


def in_html(table: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return a table as HTML, and notes below it."""
    head, *rows = table
    cells = ["".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th style='text-align:left'>{title}</th>" for title in head)
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>{below}"
