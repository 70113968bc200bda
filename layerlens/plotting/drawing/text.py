"""Text that is measured before it is drawn, so that it can be broken to fit."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from .. import style

DPI: Final = 200
LAYER_NUMBER: Final = re.compile(r"[^\s\d]*[._](\d+)((?:[.#/]\S*)?)")
"""The path of a layer, with the first number in it and what follows."""

LONGEST: Final = 300
"""Letters of a word, and of three times as many a text, that are drawn; longer ones give way in their middle to `…`."""

PART: Final = re.compile(r"[^._/,-]*[._/,-]\s*|[^._/,-]+")
"""A part of a word after which a line may break."""


@functools.cache
def renderer(dpi: float) -> Any:
    """A renderer that measures text without a figure."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(8, 8, dpi)  # type: ignore[no-untyped-call]


def _family() -> tuple[str, ...]:
    """The fonts of figures at the moment: each has the letters that those before it lack."""
    return tuple(style.RC["font.family"])


@functools.cache
def _font(size: float, family: tuple[str, ...]) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=list(family), size=size)


def width(text: str, size: float) -> float:
    """The width of one line of text at `size` points, in inches."""
    return _width(text, size, _family())


@functools.lru_cache(4096)
def _width(text: str, size: float, family: tuple[str, ...]) -> float:
    import matplotlib

    with matplotlib.rc_context({"text.hinting": style.RC["text.hinting"]}):
        across: float = renderer(DPI).get_text_width_height_descent(text, _font(size, family), False)[0]
    return across / DPI


def wrap(text: str, size: float, limit: float) -> str:
    """Break a text into lines of at most `limit` inches, at spaces, else after `. _ / - ,`, else anywhere.

    Example:
        >>> print(wrap("encoder.layer.3.attention.output.LayerNorm", 6, 1.2))
        encoder.layer.3.attention.
        output.LayerNorm
    """
    text = re.sub(rf"\S{{{LONGEST + 1},}}", lambda word: _cut(word[0], LONGEST), _cut(text, 3 * LONGEST))
    return "\n".join(line for part in text.split("\n") for line in _broken_lines(part, size, limit))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"


def _broken_lines(text: str, size: float, limit: float) -> list[str]:
    lines = [""]
    for piece in re.findall(r"\S+\s*|\s+", text):
        if width((lines[-1] + piece).rstrip(), size) <= limit:
            lines[-1] += piece
            continue
        if lines[-1].strip():
            lines.append("")
        if width(piece.rstrip(), size) <= limit:
            lines[-1] = piece
            continue
        for bit in PART.findall(piece):
            if lines[-1] and width((lines[-1] + bit).rstrip(), size) > limit:
                lines.append("")
            for letter in bit:
                if lines[-1] and width((lines[-1] + letter).rstrip(), size) > limit:
                    lines.append("")
                lines[-1] += letter
    return [line.rstrip() for line in lines]


def narrowest(text: str, size: float) -> float:
    """The width, in inches, from which on `wrap` breaks a text without breaking a word.

    Example:
        >>> narrowest("Integrated gradients", 6) == max(width("Integrated", 6), width("gradients", 6))
        True
    """
    return max((width(part, size) for word in text.split() for part in PART.findall(word)), default=0.0)


@functools.lru_cache(4096)
def _glyph_or_code(letter: str, family: tuple[str, ...]) -> str:
    """A letter, or its number if it is a control character or the font lacks it."""
    if unicodedata.category(letter).startswith("C"):
        return f"\\x{ord(letter):02x}"
    from matplotlib.font_manager import findfont, get_font

    known = (get_font(findfont(_font(6, (name,)))).get_char_index(ord(letter)) for name in family)
    return letter if any(known) else f"\\u{ord(letter):04x}"


def visible(token: str) -> str:
    r"""A token with white space, control characters and letters that the font lacks made visible.

    Example:
        >>> visible("\n"), visible(" the"), visible("巴")
        ('↵', '␣the', '\\u5df4')
    """
    shown = token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
    family = _family()
    return "".join(_glyph_or_code(letter, family) for letter in shown) or "∅"


def printable(name: str) -> str:
    r"""A name with white space made visible where it would be lost: at its ends, and all but spaces inside.

    Example:
        >>> printable(" Paris"), printable("blocks.2 head 3"), printable("\n")
        ('␣Paris', 'blocks.2 head 3', '↵')
    """
    core = name.strip(" ")
    start = len(name) - len(name.lstrip(" "))
    shown = re.sub(r"[^ ]+", lambda found: visible(found[0]), core)
    return "␣" * start + shown + "␣" * (len(name) - len(core) - start) or "∅"


def widest(names: Sequence[str], size: float) -> float:
    """The width of the widest of many names, in inches.

    Example:
        >>> widest(["iiiii", "WWWW"], 6) == width("WWWW", 6)
        True
    """
    letters = {letter: width(letter, size) for letter in set("".join(names))}
    ordered = sorted(names, key=lambda name: -sum(letters[letter] for letter in name))
    return max((width(name, size) for name in ordered[:5]), default=0.0)


def unprefixed(names: Sequence[str], size: float, limit: float) -> list[str]:
    """The names; where one is longer than `limit` inches, without what all of them begin with.

    Example:
        >>> unprefixed(["encoder.layer.3.attention.output", "encoder.layer.11.attention"], 6, 0.9)
        ['…3.attention.output', '…11.attention']
    """
    first, last = min(names), max(names)  # in their order, so what these two share is shared by all
    shared = next(
        (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    start = max(first.rfind(separator, 0, shared) for separator in "./_ ") + 1
    if first == last or start < 2 or widest(names, size) <= limit:
        return list(names)
    return [f"…{name[start:]}" for name in names]


def shorten(name: str, size: float, limit: float) -> str:
    """A name of at most `limit` inches: letters in its middle give way to `…`; the number of a layer stays.

    Example:
        >>> shorten("encoder.layer.3.attention.output.LayerNorm", 6, 1.2)
        '…3.attention.…t.LayerNorm'
    """
    if width(name, size) <= limit:
        return name
    numbered = LAYER_NUMBER.fullmatch(name)
    before, middle = numbered.groups() if numbered else ("", name)
    start = f"…{before}" if numbered else ""
    if numbered and width(start + middle, size) <= limit:
        return start + middle
    thin = min((width(letter, size) for letter in set(middle)), default=0.0)
    most = min(len(middle) - 1, int(limit / max(thin, 1e-3)))  # more letters never fit
    for kept in range(most, 1 if not numbered else -1, -1):
        short = f"{start}{middle[: kept // 2]}…{middle[len(middle) - (kept - kept // 2) :]}"
        if width(short, size) <= limit:
            return short
    return shorten(middle, size, limit) if numbered and "." in middle else "…"
