"""The content of a report as plain data: numbers, pictures and texts, ready for a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from layerlens.plotting import Plot
    from layerlens.results import Attribution

Fact: TypeAlias = tuple[str, str]
"""A name and its text."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: short, for a file.
        title: a few words.
        alt: what the figure shows, in numbers, for those who cannot see it.
        caption: how it was made and how to read it.
        png: the picture.
        plot: the figure itself, where the report keeps it.
    """

    name: str
    title: str
    alt: str
    caption: str
    png: bytes
    plot: Plot | None = None

    @classmethod
    def of(cls, plot: Plot, name: str, title: str, alt: str, caption: str) -> Picture:
        """Return the picture of a plot."""
        return cls(name, title, alt, caption, plot.png(), plot)


@dataclasses.dataclass(frozen=True)
class Token:
    """A token with its value and the color of that value.

    Attributes:
        text: text of the token.
        value: the number, as text.
        color: a CSS color, red for positive and blue for negative, pale enough for dark text.
        settled: whether its interval excludes 0; True where it has none.
    """

    text: str
    value: str
    color: str
    settled: bool = True


@dataclasses.dataclass(frozen=True)
class Strip:
    """A text with a value at each of its tokens.

    Attributes:
        title: a few words.
        caption: how it was made and how to read it.
        tokens: tokens in order.
    """

    title: str
    caption: str
    tokens: tuple[Token, ...]


@dataclasses.dataclass(frozen=True)
class Note:
    """What cannot be shown, and why.

    Attributes:
        title: what is missing.
        text: the reason.
    """

    title: str
    text: str


Block: TypeAlias = "Picture | Strip | Note"


@dataclasses.dataclass(frozen=True)
class Check:
    """A number that says whether other numbers can be trusted.

    Attributes:
        name: what is checked.
        where: the sample, or the model.
        value: the number, as text.
        limit: what it is compared with, as text.
        passed: None if it could not be made; `value` says why.
        sentence: what it means that it failed; empty for the name, value and limit.
    """

    name: str
    where: str
    value: str
    limit: str
    passed: bool | None
    sentence: str = ""

    @property
    def finding(self) -> str:
        """What a failed check found, with the sample that it is about."""
        return f"{self.where}: {self.sentence or f'{self.name}: {self.value}, not {self.limit}.'}"

    @property
    def outcome(self) -> str:
        """The outcome in a word."""
        return {True: "passed", False: "failed", None: "not made"}[self.passed]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One sample.

    Attributes:
        label: name of the sample.
        facts: target, score and the like.
        outputs: the largest outputs of the model: name, value, and share by softmax (empty if it has no meaning).
        text: the sample itself, if it is a text.
        blocks: figures.
        settings: settings of every method, as used.
        times: method -> its time as a multiple of one forward pass.
        results: the results behind the figures, where the report keeps them.
    """

    label: str
    facts: tuple[Fact, ...]
    outputs: tuple[tuple[str, str, str], ...]
    text: str | None
    blocks: tuple[Block, ...]
    settings: tuple[Fact, ...]
    times: Mapping[str, float] = dataclasses.field(default_factory=dict)
    results: tuple[Attribution, ...] = ()

    def light(self) -> Panel:
        """Return the panel without results and plots, which are large."""
        blocks = (dataclasses.replace(one, plot=None) if isinstance(one, Picture) else one for one in self.blocks)
        return dataclasses.replace(self, blocks=tuple(blocks), results=())


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything on a page.

    Attributes:
        title: title of the page.
        summary: one sentence.
        facts: what was run.
        recipe: code or a command that reproduces the report.
        checks: checks in order.
        warnings: warnings of the analyzers.
        panels: one per sample.
        profiles: figures by layer.
        table: the layer table: its head, then its rows.
        table_summary: one sentence on the layers.
        overview: figures of several samples.
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
    overview: tuple[Block, ...] = ()

    def pictures(self) -> Iterator[tuple[str, Picture]]:
        """Yield the pictures in the order of the page, each with the label of its sample, or an empty one.

        Yields:
            The label and the picture.
        """
        groups = [("", self.overview), *((panel.label, panel.blocks) for panel in self.panels), ("", self.profiles)]
        for label, blocks in groups:
            yield from ((label, block) for block in blocks if isinstance(block, Picture))

    @property
    def findings(self) -> tuple[str, ...]:
        """What the failed checks found, which a reader must know before the maps."""
        return tuple(check.finding for check in self.checks if check.passed is False)

    @property
    def tally(self) -> str:
        """The number of checks that passed, failed and could not be made."""
        counts = [(word, sum(check.outcome == word for check in self.checks)) for word in ("passed", "failed")]
        missing = sum(check.passed is None for check in self.checks)
        parts = [f"{count} {word}" for word, count in counts] + [f"{missing} not made"] * bool(missing)
        return ", ".join(parts)
