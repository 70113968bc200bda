import pathlib
import subprocess
import sys

import pytest

BUILD = pathlib.Path(__file__).parents[2] / "docs" / "site" / "build.py"


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The site as the build makes it, its notebooks not run; a warning of Sphinx is an error."""
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run([sys.executable, BUILD, "--out", out], capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
