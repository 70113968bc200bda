"""Run the fast tests in every environment of `ROWS`: `make test-matrix`, or `python tests/matrix.py 3.10 lowest`.

An environment is set up in `.venv-PYTHON-torch-TORCH` by `make test`. A row that cannot be installed is named with the
reason, also in the summary. The exit code is 0 if every row that was run passed, and at least one was.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = (("3.10", "lowest"), ("3.11", "2.14.1"), ("3.12", "2.9.1"), ("3.13", "2.13.0"))
"""Python and torch; "lowest" is the lowest version that pyproject.toml allows, of torch and of every other package."""
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)")
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def lowest() -> str:
    """Return the lowest torch that pyproject.toml allows."""
    (version,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    return str(version)


def label(torch: str) -> str:
    """Return how a torch is written in the table."""
    return f"lowest ({lowest()})" if torch == "lowest" else torch


def interpreter(version: str) -> str | None:
    """Find a Python of this version on the path, or one that pyenv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        sys.executable,
        shutil.which(f"python{version}"),
        *map(str, sorted(pyenv.glob(f"{version}.*/bin/python"))),
    ]
    for candidate in filter(None, candidates):
        found = subprocess.run([candidate, "-c", VERSION], capture_output=True, text=True, check=False)
        if found.stdout.strip() == version:
            return candidate
    return None


def shown(command: list[str]) -> tuple[int, list[str]]:
    """Run a command, show what it prints, and return its exit code and its last lines."""
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line.strip())
    return process.returncode, list(last)


def run(python: str, torch: str, folder: Path) -> tuple[str, str]:
    """Run one row.

    Args:
        python: the version of Python, such as "3.12".
        torch: the version of torch, or "lowest".
        folder: the folder of the environment.

    Returns:
        "passed", "failed" or "not run", and the counts or the reason.
    """
    found = interpreter(python)
    if found is None:
        return "not run", f"no Python {python} on the path or in pyenv"
    make = ["make", f"PYTHON={found}", f"TORCH={torch}", f"VENV={folder}"]
    code, last = shown([*make, f"{folder}/.dev"])
    if code:
        errors = [line for line in last if line.startswith("ERROR")]
        return "not run", f"cannot be installed: {(errors or last or ['make failed'])[-1]}"
    code, last = shown([*make, "test"])
    counts = [", ".join(" ".join(pair) for pair in COUNT.findall(line)) for line in last if " in " in line]
    return "failed" if code else "passed", next(filter(None, reversed(counts)), f"make test ended with code {code}")


def main() -> int:
    """Run the rows that are named, or all, and print the table that the README has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*", help="a version of Python or of torch, such as 3.12 or lowest; all without")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where the environments are made")
    given = parser.parse_args()
    rows = [row for row in ROWS if not given.row or set(row) & set(given.row)]
    unknown = set(given.row).difference(*ROWS)
    if unknown:
        parser.error(f"no row has {', '.join(sorted(unknown))}; rows: {'; '.join(map(' '.join, ROWS))}")
    table, results = ["", "| Python | torch | date | result |", "| --- | --- | --- | --- |"], []
    for python, torch in rows:
        result, told = run(python, torch, given.folder.resolve() / f".venv-{python}-torch-{torch}")
        results.append(result)
        told = told if result == "passed" else f"{result}: {told}"
        table.append(f"| {python} | {label(torch)} | {datetime.date.today()} | {told} |")
    if not given.row:
        code, last = shown(["make", "test-extras"])
        results.append("failed" if code else "passed")
        table.append(f"\n{last[-1] if last and not code else 'extras: failed'}")
    print("\n".join(table))
    return int("failed" in results or "passed" not in results)


if __name__ == "__main__":
    sys.exit(main())
