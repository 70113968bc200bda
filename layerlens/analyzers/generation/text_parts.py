"""The sentences and words of a text, as ranges of its characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

Range: TypeAlias = tuple[int, int]
"""First character, and the one after the last."""

_ENDS: Final = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u0964\u061f]+[\"'\u2019\u201d\u00bb)\]\u300d\u300f]*")
_WITHOUT_SPACE: Final = "\u3002\uff01\uff1f"
"""Marks after which a sentence ends without white space, as in Chinese and Japanese."""
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Gov|Sen|Rep|Capt|Lt|Col|Rev|Hon|"
    r"vs|cf|ca|al|approx|resp|Fig|fig|Eq|eq|Sec|sec|No|no|Nr|nr|Vol|vol|pp|p|Art|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|"
    r"Oct|Nov|Dec|Inc|Ltd|Co|Corp|bzw|usw|z\.B)\.$"
)
_LIST_MARK: Final = re.compile(r"\s*(?:\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,5})[.)]|[-*+\u2022\u2013])$")
_FENCE: Final = re.compile(r"\s*(?:```|~~~)")
_WRAPPED: Final = 50
"""Characters of a line from which on the next one may continue its sentence."""
_LETTERS: Final = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\U00020000-\U0003ffff"
)
"""Scripts that put no space between words: each letter, with its marks, counts as a word."""
_WORD: Final = re.compile(
    rf"[{_LETTERS}][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u3099\u309a\ufe00-\ufe0f]*[\u3001\u3002\uff0c\uff01\uff1f]*"
    rf"|[^\s{_LETTERS}]+"
)


def sentences(text: str) -> list[Range]:
    r"""Return the sentences of a text: a line ends one, and so does a mark that the next sentence follows.

    Each line of code between fences, each item of a list and each heading is one. A long line that is continued in
    lower case is not ended by the line break. Abbreviations, initials and numbers of lists do not end a sentence.

    Example:
        >>> text = "Dr. Smith left. It was 3.14 p.m. in St. Ives!\n- 北京很大。我来了。"
        >>> [text[start:stop] for start, stop in sentences(text)]
        ['Dr. Smith left.', 'It was 3.14 p.m. in St. Ives!', '- 北京很大。', '我来了。']
    """
    found: list[Range] = []
    for start, stop, code in _lines(text):
        found += [(start, stop)] if code else _of_line(text, start, stop)
    return [trimmed for one in found if (trimmed := _trimmed(text, one))[0] < trimmed[1]]


def words(text: str) -> list[Range]:
    """Return the words of a text, with the punctuation that touches them; letters of scripts without spaces are words.

    Example:
        >>> text = "So, l'été 北京。 👍🏽"
        >>> [text[start:stop] for start, stop in words(text)]
        ['So,', "l'été", '北', '京。', '👍🏽']
    """
    return [match.span() for match in _WORD.finditer(text)]


def _lines(text: str) -> Iterator[tuple[int, int, bool]]:
    """Find the lines of a text; lines that a sentence was wrapped over are one.

    Yields:
        Where a line starts and stops, and whether it is code.
    """
    place, code, held = 0, False, 0
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        stop, fence = place + len(line), _FENCE.match(line) is not None
        code = code != fence
        following = lines[number + 1] if number + 1 < len(lines) else ""
        ended = line.rstrip()[-1:] in (".", "!", "?", ":", ";", "")
        wraps = not (code or fence or ended) and len(line) >= _WRAPPED and following[:1].islower()
        if not wraps:
            yield held, stop, code or fence
            held = stop
        place = stop


def _of_line(text: str, start: int, stop: int) -> Iterator[Range]:
    held = start
    for match in _ENDS.finditer(text, start, stop):
        end = match.end()
        rest = text[end:stop]
        after = rest.lstrip()
        spaced = rest[:1].isspace() or match.group()[0] in _WITHOUT_SPACE
        before = text[held:end]
        inside = match.group() == "." and (_ABBREVIATION.search(before) or _LIST_MARK.match(before))
        if not after or not spaced or inside or after[0].islower():
            continue
        yield held, end
        held = end
    yield held, stop


def _trimmed(text: str, given: Range) -> Range:
    """A range without the white space at its ends."""
    start, stop = given
    inner = text[start:stop]
    return start + len(inner) - len(inner.lstrip()), stop - len(inner) + len(inner.rstrip())
