"""What a report holds, as plain data: numbers, pictures and texts, ready for a page."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

Fact: TypeAlias = tuple[str, str]
"""A name and its text."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        title: short.
        alt: what is to be seen, with its numbers, for those who do not see it.
        caption: how it was made and how to read it.
        png: the picture.
    """

    title: str
    alt: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Token:
    """A token with its value and the colour that stands for it.

    Attributes:
        text: of the token.
        value: as text.
        colour: red and blue for more and less, as a CSS colour that dark text can be read on.
    """

    text: str
    value: str
    colour: str


@dataclasses.dataclass(frozen=True)
class Strip:
    """A text with a value at each of its tokens.

    Attributes:
        title: short.
        caption: how it was made and how to read it.
        tokens: in order.
    """

    title: str
    caption: str
    tokens: tuple[Token, ...]


@dataclasses.dataclass(frozen=True)
class Note:
    """What cannot be shown, and why.

    Attributes:
        title: of what is missing.
        text: the reason.
    """

    title: str
    text: str


Block: TypeAlias = "Picture | Strip | Note"


@dataclasses.dataclass(frozen=True)
class Check:
    """A number that says whether other numbers can be believed.

    Attributes:
        name: of the check.
        where: the sample, or the model.
        value: the number, as text.
        limit: what it is held against, as text.
        passed: None where it could not be made; `value` says why.
    """

    name: str
    where: str
    value: str
    limit: str
    passed: bool | None

    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        return {True: "passed", False: "failed", None: "not made"}[self.passed]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One sample.

    Attributes:
        label: its name.
        facts: target, score and the like.
        outputs: the largest outputs of the model: name, value, and share by softmax (empty where that means nothing).
        text: the sample itself, where it is a text.
        blocks: figures.
        settings: of every method, as used.
    """

    label: str
    facts: tuple[Fact, ...]
    outputs: tuple[tuple[str, str, str], ...]
    text: str | None
    blocks: tuple[Block, ...]
    settings: tuple[Fact, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that stands on a page.

    Attributes:
        title: of the page.
        summary: one sentence.
        facts: what was run.
        recipe: code or a command that makes the report again.
        checks: in order.
        warnings: what the analyzers warned of.
        panels: one per sample.
        profiles: figures by layer.
        table: the layers: its head, then its rows.
        table_summary: one sentence on the layers.
    """

    title: str
    summary: str
    facts: tuple[Fact, ...]
    recipe: str
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    panels: tuple[Panel, ...]
    profiles: tuple[Block, ...]
    table: tuple[tuple[str, ...], ...]
    table_summary: str

    @property
    def tally(self) -> str:
        """How many checks passed, failed and could not be made."""
        counts = [(word, sum(check.verdict == word for check in self.checks)) for word in ("passed", "failed")]
        missing = sum(check.passed is None for check in self.checks)
        parts = [f"{count} {word}" for word, count in counts] + [f"{missing} not made"] * bool(missing)
        return ", ".join(parts)
