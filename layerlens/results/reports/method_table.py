"""The methods of attribution, to look up and to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from layerlens.errors import OptionError, suggestion

from .text_table import TextTable


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MethodTable(TextTable):
    """Methods of attribution with what each costs and needs.

    Attributes:
        rows: name -> (family, cost in passes per sample, what it needs, source).
        seconds: name -> about how long it takes for the input that the table was made for; empty for no input.
        notes: what else is to be said, below the table.
    """

    rows: dict[str, tuple[str, str, str, str]]
    seconds: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> tuple[str, str, str, str]:
        if name not in self.rows:
            raise OptionError(f"there is no method {name!r}.{suggestion(name, self.rows)}")
        return self.rows[name]

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, its head first."""
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
