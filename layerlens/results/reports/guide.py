"""The questions that can be asked of a model, each with its call and its cost."""

from __future__ import annotations

import dataclasses

from .method_table import duration
from .text_table import TextTable


@dataclasses.dataclass(frozen=True)
class GuideRow:
    """One question of a `Guide`.

    Attributes:
        question: what you want to know.
        call: what you type; `x` is your input.
        cost: cost in passes per sample; a gradient is a forward and a backward pass.
        needs: what it needs besides a model and an input.
        seconds: about how long it takes for the input of the guide; None if unknown, or there was no input.
    """

    question: str
    call: str
    cost: str
    needs: str = ""
    seconds: float | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Guide(TextTable):
    """The questions that can be asked of a model and an input, as a table that prints itself.

    Attributes:
        rows: the questions.
        timed: whether an input was given, so that there are times.
        notes: what the names in the calls are, and what was left out, below the table.
    """

    rows: tuple[GuideRow, ...]
    timed: bool = False

    @property
    def calls(self) -> tuple[str, ...]:
        """The calls, in the order of the questions."""
        return tuple(row.call for row in self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, its head first."""
        if self.timed:
            timed = ((row.question, row.call, duration(row.seconds), row.cost) for row in self.rows)
            return [("question", "call", "time", "cost per sample"), *timed]
        return [
            ("question", "call", "cost per sample", "needs"),
            *((row.question, row.call, row.cost, row.needs) for row in self.rows),
        ]
