"""Docstrings as reStructuredText: names in backticks become links, and bars of formulas are no markup."""

from __future__ import annotations

import re
from typing import Any

import layerlens

ALIASES = ("Spec", "Selection", "Edits", "Names", "Units", "Keep", "Functions")
"""Types whose name says more than what it stands for."""

LITERAL = re.compile(r"(``.+?``|(?<![:`])`[^`]+`(?![`_]))")
BAR = re.compile(r"(?<!\\)\|")
PUBLIC = re.compile(r"(?:layerlens\.)?(\w+)((?:\.\w+)*)(\(\))?")


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place; examples are left alone."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = LITERAL.split(line)
            parts[::2] = [BAR.sub(r"\\|", part) for part in parts[::2]]
            parts[1::2] = [linked(part) for part in parts[1::2]]
            lines[place] = "".join(parts)


def linked(literal: str) -> str:
    """A name of layerlens as a link to its text, other code as it is."""
    code = literal.strip("`")
    found = PUBLIC.fullmatch(code)
    if literal.startswith("``") or found is None or found[1] not in layerlens.__all__:
        return f"``{code}``"
    return f":py:obj:`{code} <layerlens.{found[1]}{found[2]}>`"
