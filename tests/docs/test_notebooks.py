"""Every notebook is that of its script, and runs to its end."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROUNDING = "the ledger does not close, its residual is .*e-05 of"
"""What float32 leaves of a ledger on some processors, as in `test_pages.py`."""
FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MOST_SECONDS = 600
"""Far above what a page takes (20 s on two cores): a stop for one that hangs, not a measurement."""


def test_scripts_and_notebooks_are_paired_and_equal():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"build"} == set(NAMES)
    assert NAMES
    done = subprocess.run([sys.executable, FOLDER / "build.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_stored(name):
    import nbformat

    for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs_to_its_end_and_shows_figures(name, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    root = str(FOLDER.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    page = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    start = time.perf_counter()
    NotebookClient(
        page, timeout=MOST_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    print(f"{name}: {time.perf_counter() - start:.1f} s")
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in said if not re.search(ROUNDING, text)]
    assert "assert" in page.cells[-1].source
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
