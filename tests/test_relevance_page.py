"""docs/relevance.md runs as it stands, and prints what it says."""

import pathlib
import re

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "relevance.md"
NUMBER = re.compile(r"[-+]?\d+\.\d+")
MOST_BYTES = 200_000


def same(printed, told):
    """The same words, and numbers that differ by no more than another processor may make of them."""
    assert NUMBER.sub("_", printed).split() == NUMBER.sub("_", told).split()
    found, expected = ([float(number) for number in NUMBER.findall(text)] for text in (printed, told))
    assert found == pytest.approx(expected, rel=0.02, abs=0.002)


def test_every_block_prints_what_stands_below_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n\n(?:```text\n(.*?)```)?", PAGE.read_text(), flags=re.S)
    assert len(blocks) == PAGE.read_text().count("```python") >= 8
    names = {"__name__": "page"}
    for code, told in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
        same(capsys.readouterr().out, told)
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == sorted(re.findall(r"\]\((relevance-[\w-]+\.png)\)", PAGE.read_text()))
    for picture in pictures:
        assert 0 < (PAGE.parent / picture).stat().st_size < MOST_BYTES


def test_the_comparison_finds_what_differs():
    same("a 1.000 b", "a  1.001 b")
    for other in ("a 1.100 b", "a 1.000 c", "a -1.000 b"):
        with pytest.raises(AssertionError):
            same(other, "a 1.000 b")
