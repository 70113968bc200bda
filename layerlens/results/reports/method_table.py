"""The methods of attribution, to look up and to compare."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

from layerlens.errors import OptionError, suggestion


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MethodTable:
    """Methods of attribution with what each costs and needs.

    Attributes:
        rows: name -> (family, cost in passes per sample, what it needs, source).
    """

    rows: dict[str, tuple[str, str, str, str]]

    def __getitem__(self, name: str) -> tuple[str, str, str, str]:
        if name not in self.rows:
            raise OptionError(f"there is no method {name!r}.{suggestion(name, self.rows)}")
        return self.rows[name]

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        cells = ["".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) for row in rows]
        titles = "".join(f"<th style='text-align:left'>{title}</th>" for title in head)
        return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"

    def _table(self) -> list[tuple[str, ...]]:
        head = ("method", "family", "cost per sample", "needs", "source")
        return [head, *((name, *row) for name, row in self.rows.items())]
