"""A table of text that prints itself: in columns that fit the terminal, and as HTML in a notebook."""

from __future__ import annotations

import dataclasses
import html
import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

LEAST: Final = 8
"""Letters of the narrowest column whose words are broken."""
NO_TERMINAL: Final = (100, 24)
"""Columns and lines where there is no terminal, as in a file."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TextTable:
    """Rows that print themselves as a table, with notes below it; a subclass says what its columns are.

    Attributes:
        rows: what the table holds.
        notes: what else is to be said, below the table.
    """

    rows: Collection[Any]
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, its head first.

        Raises:
            NotImplementedError: where a subclass has none.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        width = shutil.get_terminal_size(NO_TERMINAL).columns
        notes = [textwrap.fill(note, width, break_long_words=False) for note in self.notes]
        return "\n".join([*in_columns(self.cells(), width), *[""] * bool(notes), *notes])

    def _repr_html_(self) -> str:
        head, *rows = self.cells()
        cells = ["".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) for row in rows]
        titles = "".join(f"<th style='text-align:left'>{title}</th>" for title in head)
        below = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>{below}"


def in_columns(table: Sequence[Sequence[str]], width: int) -> list[str]:
    r"""Return the lines of a table of at most `width` letters, the texts of its widest columns wrapped.

    Words are broken only if lines are too long without, those of the first column never; no column that was wrapped has
    fewer than 8 letters.

    Example:
        >>> print(*in_columns([("call", "cost"), ("lens.rise(x)", "one pass per mask")], 24), sep="\n")
        call          cost
        lens.rise(x)  one pass
                        per mask
    """
    columns = list(zip(*table, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    words = [
        max((len(word) + 2 * (at > 0) for cell in column for at, word in enumerate(cell.split())), default=0)
        for column in columns
    ]
    for least in (words, [words[0], *[LEAST] * len(words[1:])]):
        while sum(sizes) + 2 * (len(sizes) - 1) > width:
            spare = [size if size > fewest else 0 for size, fewest in zip(sizes, least, strict=True)]
            if not any(spare):
                break
            sizes[spare.index(max(spare))] -= 1
    lines = []
    for row in table:
        parts = [
            textwrap.wrap(cell, size, subsequent_indent="  ", break_on_hyphens=False) or [""]
            for cell, size in zip(row, sizes, strict=True)
        ]
        for at in range(max(map(len, parts))):
            line = [part[at] if at < len(part) else "" for part in parts]
            lines.append("  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip())
    return lines
