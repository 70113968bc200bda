"""The page says what was measured, and its commands are there."""

import importlib.util
import pathlib
import re

from layerlens import saliency

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "what-to-believe.md").read_text()
CLAIMS = PAGE[PAGE.index("## Every claim of the README") :]


def test_every_command_is_there():
    modules = re.findall(r"python -m (benchmarks\.\w+)", CLAIMS)
    files = re.findall(r"pytest (tests/[\w/.]+)", CLAIMS)
    targets = re.findall(r"`make ([\w-]+)`", CLAIMS)
    assert len(modules) >= 5 and len(files) >= 2 and targets
    assert all(importlib.util.find_spec(name) for name in modules)
    assert all((ROOT / name).exists() for name in files)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{name}:" in makefile for name in targets)
    assert str(len(saliency.methods())) + " methods" in (ROOT / "README.md").read_text()


def test_intervals_hold_as_often_as_the_page_says():
    table = (ROOT / "benchmarks" / "intervals.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    held = {line: int(re.search(r"\| (\d+) ± \d+ %", line).group(1)) for line in rows}
    rankings = [share for line, share in held.items() if "(ranking)" in line or "`morris`" in line]
    maps = [share for line, share in held.items() if "(ranking)" not in line and "`morris`" not in line]
    low, high = map(int, re.search(r"tasks with a known value, (\d+) to (\d+) % hold it", PAGE).groups())
    assert (min(maps), max(maps)) == (low, high) and len(maps) > 40
    low, high = map(int, re.search(r"(\d+) to (\d+) % for the rankings", PAGE).groups())
    assert (min(rankings), max(rankings)) == (low, high) and len(rankings) > 10


def test_the_pages_that_it_names_have_these_sections():
    for page, anchor in re.findall(r"\]\(([\w-]+)\.md#([\w-]+)\)", PAGE):
        titles = re.findall(r"^#+ (.+)$", (ROOT / "docs" / f"{page}.md").read_text(), re.M)
        slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert anchor in slugs, (page, anchor)
