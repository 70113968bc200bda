"""Docstrings as reStructuredText: names in backticks become links, and bars in formulas are escaped."""

from __future__ import annotations

import re
from typing import Any

import layerlens

ALIASES = (
    "Spec",
    "Selection",
    "Edits",
    "Names",
    "Units",
    "Keep",
    "Functions",
    "Input",
    "Samples",
    "Labels",
    "Where",
    "Map",
)
"""Type aliases whose name says more than their definition."""

LITERAL = re.compile(r"(``.+?``|(?<![:`])`[^`]+`(?![`_]))", re.DOTALL)
BAR = re.compile(r"(?<!\\)\|")
PUBLIC = re.compile(r"(?:layerlens\.)?(\w+)((?:\.\w+)*)(\(\))?")
EXAMPLE = re.compile(r"^\s*(?:>>>|\.\.\.)")
FORWARD = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, paragraph by paragraph, because code in backticks may continue on the next line."""
    paragraph: list[str] = []
    made: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
            continue
        example = any(map(EXAMPLE.match, paragraph))
        made += [*(paragraph if example else escaped("\n".join(paragraph)).split("\n") if paragraph else []), ""]
        paragraph = []
    lines[:] = made


def escaped(text: str) -> str:
    """Escape formulas in a paragraph and link its names."""
    parts = LITERAL.split(text)
    parts[::2] = [BAR.sub(r"\\|", part) for part in parts[::2]]
    parts[1::2] = [linked(part) for part in parts[1::2]]
    return "".join(parts)


def linked(literal: str) -> str:
    """Return a link for a name of layerlens, and other code unchanged."""
    code = literal.strip("`")
    found = PUBLIC.fullmatch(code)
    if literal.startswith("``") or found is None or found[1] not in layerlens.__all__:
        return f"``{code}``"
    return f":py:obj:`{code} <layerlens.{found[1]}{found[2]}>`"


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write type aliases by their names in a signature."""
    return tuple(text and FORWARD.sub(r"\1", text) for text in (arguments, returns))  # type: ignore[return-value]
