"""Writes the type stubs that are generated: `python -m tests.stubs`. A test compares them with what this returns."""

from __future__ import annotations

from pathlib import Path

import layerlens

PACKAGE = Path(layerlens.__file__).parent


def package() -> str:
    """The stub of the package: its public names, loaded on first use at run time, for type checkers and editors."""
    lines = [
        '"""The names of the package with their types; at run time they are loaded when they are first used."""',
        "",
    ]
    lines += [f"from . import {name} as {name}" for name in sorted(layerlens._MODULES)]
    homes = {name: getattr(layerlens, name).__module__ for name in layerlens._HOMES}
    lines += [f"from {homes[name].replace('layerlens', '', 1)} import {name} as {name}" for name in sorted(homes)]
    return "\n".join([*lines, "", "__version__: str", "__all__: list[str]", ""])


def plotting() -> str:
    """The stub of `layerlens.plotting`: its own names, and the figure of every file in `figures/`."""
    own = [name for name in layerlens.plotting.__all__ if not (PACKAGE / f"plotting/figures/{name}.py").exists()]
    names = sorted(set(layerlens.plotting.__all__) - set(own))
    lines = ['"""The figures of results with their types; at run time every file in `figures/` is imported."""', ""]
    lines += ["from . import style as style"]
    lines += [f"from .figures.{name} import {name} as {name}" for name in names]
    lines += [f"from .plot import {name} as {name}" for name in sorted(own) if name != "style"]
    return "\n".join([*lines, "", "__all__: list[str]", ""])


STUBS = {"__init__.pyi": package, "plotting/__init__.pyi": plotting}
"""File inside of the package -> what makes its text."""

if __name__ == "__main__":
    for file, text in STUBS.items():
        (PACKAGE / file).write_text(text())
