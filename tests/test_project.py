"""What is written in several files of the project is the same in all of them, and in what is released."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import layerlens
from tests import extras, matrix

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
PYPROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
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


def test_the_matrix_has_every_python_and_the_lowest_and_the_pinned_torch():
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    (pinned,) = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert [python for python, _ in matrix.ROWS] == classifiers
    assert {"lowest", pinned} < {torch for _, torch in matrix.ROWS}
    (table,) = re.findall(r"\n\| Python \| torch \| .*\n\|[- |]+\|\n((?:\|.*\n)+)", (ROOT / "README.md").read_text())
    rows = [[cell.strip() for cell in line.strip("|").split("|")][:2] for line in table.splitlines()]
    assert rows == [[python, matrix.label(torch)] for python, torch in matrix.ROWS]
    assert f"needs torch {matrix.lowest()} or newer" in (ROOT / "README.md").read_text()


def test_the_lowest_versions_are_those_of_every_requirement():
    if not shutil.which("make"):
        pytest.skip("no make")
    command = ["make", "-n", "TORCH=lowest", "VENV=/none", "/none/constraints.txt"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith("grep"))
    made = subprocess.run(["sh", "-c", line.partition(" > ")[0]], cwd=ROOT, capture_output=True, text=True, check=True)
    required = re.findall(r'"([\w-]+)(?:\[.+?\])?>=([\d.]+)"', PYPROJECT)
    assert made.stdout.splitlines() == [f"{name}=={version}" for name, version in required] and len(required) > 30
    assert len(required) == PYPROJECT.count(">=") - len(re.findall("^requires-python", PYPROJECT, re.M))


def test_the_targets_of_make_are_declared_and_explained():
    (declared,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.M)
    targets = re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M)
    explained = re.findall(r'@echo "make ([a-z-]+)', MAKEFILE)
    assert sorted(declared.split()) == sorted(targets) and set(explained) < set(targets)
    assert {"test", "test-slow", "test-matrix", "test-extras", "lint"} <= set(explained)
    assert "test-matrix" not in (ROOT / ".ci" / "run").read_text()


def test_each_extra_is_tested_alone():
    (table,) = re.findall(r"\[project\.optional-dependencies\]\n(.*?)\n\n", PYPROJECT, re.S)
    names = re.findall(r"^(\w+) = \[", table, re.M)
    assert set(extras.ROWS) == {"alone", *names} - {"test", "dev"}


def test_a_row_of_the_matrix_that_cannot_be_run_is_named(monkeypatch, capsys):
    monkeypatch.setattr(matrix, "ROWS", (("3.1", "lowest"), ("3.2", "2.9.1")))
    monkeypatch.setattr(sys, "argv", ["matrix.py", "lowest", "3.2"])
    assert matrix.main() == 1
    told = capsys.readouterr().out
    assert f"| 3.1 | lowest ({matrix.lowest()}) | " in told and told.count("not run: no Python 3.") == 2


def test_the_sdist_holds_all_that_git_tracks():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted({path.split("/")[0] for path in tracked.splitlines()}) == sorted(RELEASED)


def test_what_only_slow_tests_need_is_not_looked_for_when_fast_ones_are_collected():
    models = (ROOT / "requirements-models.txt").read_text()
    only_slow = {name.lower() for name in re.findall(r"^([\w-]+)==", models, re.M)}
    given_by = packages_distributions()
    for path in (ROOT / "tests").rglob("*.py"):
        for module in re.findall(r'^(?:\w+ = )?pytest\.importorskip\("(\w+)', path.read_text(), re.M):
            names = {name.lower() for name in given_by.get(module, [])}
            assert not names & only_slow, f"{path}: {module} is not there when `make test` collects this file"


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
