"""What is written in several files of the project is the same in all of them, and in what is released."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerlens

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PYPROJECT = (ROOT / "pyproject.toml").read_text()
RELEASED = re.findall(r'^  "/(.+)",$', PYPROJECT, re.M)
(NAME,) = re.findall(r'^name = "(.+)"$', PYPROJECT, re.M)
OTHER_PROJECT = re.compile(
    r"""(?<![\w.-])layerlens\\?\[                       # layerlens[report]
    | pip\ install\ [^\n#`]*?(?<![\w./-])layerlens(?![\w./-])  # pip install layerlens
    | \bversion\(\s*["']layerlens["']                   # importlib.metadata.version("layerlens")
    """,
    re.X,
)
"""Ways to name the distribution that would get, or look for, the package of others."""


def texts():
    """The text of every file of a release."""
    for entry in RELEASED:
        top = ROOT / entry
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts and path != Path(__file__):
                data = path.read_bytes()
                if b"\0" not in data:
                    yield path.relative_to(ROOT), data.decode()


def test_every_way_to_name_the_wrong_distribution_is_seen():
    assert NAME == "layerlens-torch"
    wrong = ["pip install layerlens", "pip install 'layerlens[report]'", "uv pip install -U layerlens torch",
             "layerlens[demo] has it", 'metadata.version("layerlens")']  # fmt: skip
    right = [f"pip install {NAME}", f"pip install '{NAME}[report]'", f'version("{NAME}")', "from layerlens import Lens",
             "pip install . # layerlens from this folder", "`pip install lightning` and layerlens"]  # fmt: skip
    assert all(OTHER_PROJECT.search(text) for text in wrong)
    assert not [text for text in right if OTHER_PROJECT.search(text)]


def test_what_is_installed_has_our_name_and_not_that_of_another_project():
    found = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in texts()
        for match in OTHER_PROJECT.finditer(text)
    ]
    assert not found, f"write {NAME}:\n" + "\n".join(found)


def test_the_version_has_one_place():
    assert '\ndynamic = ["version"]\n' in PYPROJECT and "\nversion = " not in PYPROJECT
    assert '[tool.hatch.version]\npath = "layerlens/__init__.py"\n' in PYPROJECT
    cited = dict(re.findall(r"^(version|date-released): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    releases = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == ("Unreleased", "")
    assert releases[1] == (layerlens.__version__, cited["date-released"]) and cited["version"] == layerlens.__version__
    numbers = [tuple(map(int, version.split("."))) for version, _ in releases[1:]]
    assert numbers == sorted(numbers, reverse=True) and all(date for _, date in releases[1:])


def test_the_sdist_holds_all_that_git_tracks():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted({path.split("/")[0] for path in tracked.splitlines()}) == sorted(RELEASED)


def test_a_missing_package_fails_where_every_package_is_asked_for(tmp_path):
    missing = 'pytest.importorskip("no_such_package")'
    (tmp_path / "conftest.py").write_bytes((ROOT / "conftest.py").read_bytes())
    (tmp_path / "test_module.py").write_text(f"import pytest\n{missing}\ndef test(): pass\n")
    (tmp_path / "test_one.py").write_text(
        f'import pytest\ndef test(): {missing}\ndef test_other(): pytest.skip("needs a GPU")\n'
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    for option, counts in (("--rootdir=.", "3 skipped"), ("--every-package", "1 failed, 1 skipped, 1 error")):
        done = subprocess.run([*command, option], capture_output=True, text=True, cwd=tmp_path)
        assert f"{counts} in " in done.stdout, done.stdout
    assert done.returncode == 1
    assert done.stdout.count("skipped despite --every-package: Skipped: could not import 'no_such_package'") == 2
