"""Make the .ipynb of every percent script here, without outputs: `python notebooks/build.py [--check]`."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent


def scripts() -> list[Path]:
    """The notebooks' sources."""
    return sorted(path for path in HERE.glob("*.py") if path != Path(__file__).resolve())


def notebook(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script; the same script always gives the same bytes."""
    made = jupytext.read(script)
    for place, cell in enumerate(made.cells):
        cell["id"] = hashlib.sha256(f"{place}\n{cell.source}".encode()).hexdigest()[:12]
        cell["metadata"] = {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made["metadata"] = {"kernelspec": kernel, "jupytext": {"formats": "py:percent,ipynb"}}
    made["nbformat"], made["nbformat_minor"] = 4, 5
    nbformat.validate(made)
    return made


def main() -> int:
    """Write the notebooks, or say which are not up to date; 1 when some are not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a notebook is out of date")
    check = parser.parse_args().check
    stale = 0
    for script in scripts():
        target = script.with_suffix(".ipynb")
        text = nbformat.writes(notebook(script)) + "\n"
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if not check:
            target.write_text(text, encoding="utf-8")
        print(f"{target.name}: {'out of date, run make notebooks' if check else 'written'}")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
