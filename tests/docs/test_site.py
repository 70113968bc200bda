"""The documentation site: every public name and page is there; tables are those of the code and the benchmarks."""

import json
import pathlib
import pkgutil
import re
import sys

import pytest

import layerlens
from layerlens import plotting
from layerlens.analyzers.saliency.saliency import known_methods

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = DOCS / "site"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
FENCED = re.compile(r"```.*?```", re.S)


@pytest.fixture
def site(monkeypatch):
    """The modules that build the site."""
    monkeypatch.syspath_prepend(str(SITE))
    import api
    import mathml
    import stage  # which imports explorers

    yield {"api": api, "mathml": mathml, "stage": stage}
    for name in ("api", "explorers", "mathml", "stage"):
        sys.modules.pop(name)


def test_every_public_name_is_in_one_group(site, monkeypatch):
    api = site["api"]
    grouped = [name for _, _, names in api.GROUPS.values() for name in names.split()]
    assert sorted(grouped) == sorted(layerlens.__all__)
    title, sentence, names = api.GROUPS["groups"]
    for wrong, told in (("", "missing"), (names + " no_such_name", "no longer there"), (names + " saliency", "twice")):
        monkeypatch.setitem(api.GROUPS, "groups", (title, sentence, wrong))
        with pytest.raises(ValueError, match=told):
            api.check()


def test_the_pages_are_staged_and_every_one_is_listed(site, tmp_path, monkeypatch):
    stage = site["stage"]
    stage.stage(tmp_path / "source")
    made = {str(path.relative_to(tmp_path / "source")) for path in (tmp_path / "source").rglob("*") if path.is_file()}
    assert {path.name for path in DOCS.glob("*.md")} <= made
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= made
    assert "```{toctree}" in (tmp_path / "source" / "index.md").read_text()
    text = (tmp_path / "source" / "api" / "saliency.md").read_text()
    assert all(f"### {name}\n" in text or name in layerlens.__all__ for name in known_methods())
    monkeypatch.setitem(stage.SECTIONS, "Start", stage.SECTIONS["Start"].replace(" peers", ""))
    with pytest.raises(ValueError, match=r"in no section \['peers'\]"):
        stage.stage(tmp_path / "source")


def test_links_between_pages_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in LINK.findall(FENCED.sub("", page.read_text())):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_every_figure_is_in_the_gallery():
    text = (DOCS / "gallery.md").read_text()
    sections = re.findall(r"^### (\w+)$", text, re.M)
    figures = {module.name for module in pkgutil.iter_modules(plotting.figures.__path__)}
    assert figures - set(sections) == set(), "a section for each in docs/gallery.md"
    assert len(sections) == len(set(sections))
    sizes = [path.stat().st_size for path in DOCS.glob("gallery-*.png")]
    assert max(sizes) < 40_000 and sum(sizes) < 1_000_000


def test_the_tables_of_saliency_are_those_of_the_methods():
    told = {}
    for line in (DOCS / "saliency.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and re.fullmatch(r"`\w+`", cells[0]):
            told[cells[0].strip("`")] = tuple(cells[1:])
    known = known_methods()
    assert set(told) == set(known)
    for name, (equation, cost, source) in told.items():
        assert equation and (cost, source) == (known[name].passes, known[name].source), name
    assert f"door to {len(known)} of them" in (DOCS / "saliency.md").read_text()


MEASURED = {"## Relevance propagation": "relevance", "## Capture": "capture", "## Saliency": "saliency"}
"""Sections of docs/peers.md -> the benchmark whose numbers they show."""


def table(text, first):
    """The rows of the first table whose head begins so: cells by title, under the cells that are no numbers."""
    lines = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    found = {}
    for row in rows:
        cells = dict(zip(titles, row, strict=True))
        key = tuple(cells[title] for title in ("model", "method", "rules") if title in cells)
        found[key] = cells
    return found


@pytest.mark.parametrize("section", MEASURED)
def test_the_numbers_of_peers_are_those_of_the_benchmarks(section):
    page = (DOCS / "peers.md").read_text()
    told = page[page.index(section) :]
    first = "method" if section == "## Saliency" else "model"
    told, known = table(told, first), table((ROOT / "benchmarks" / f"{MEASURED[section]}.md").read_text(), first)
    assert len(told) >= 4
    for key, cells in told.items():
        for title, cell in cells.items():
            assert known[key][title] == cell, (key, title)


def test_the_versions_of_peers_are_those_that_were_measured():
    page = (DOCS / "peers.md").read_text()
    measured = (ROOT / "benchmarks" / "capture.md").read_text()
    for name, version in re.findall(r"(captum|nnsight|torchlens) ([\d.]*\d)", measured):
        assert f"| {name} | {version} |" in page


def test_equations_become_mathml_and_broken_ones_are_refused(site):
    made = site["mathml"].mathml(r"x' = \frac{1}{n} \sum_k g_k", display="block")
    assert made.startswith("<math") and "<mfrac>" in made and 'display="block"' in made
    assert "<mo lspace" in made and "<msup>" not in made
    with pytest.raises(ValueError, match="nosuchcommand"):
        site["mathml"].mathml(r"\nosuchcommand{x}", display="inline")


def equations():
    for page in sorted(DOCS.glob("*.md")):
        text = FENCED.sub("", page.read_text())
        for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", text, flags=re.S):
            yield page.name, block or inline


def test_every_equation_can_be_drawn(site):
    found = list(equations())
    assert len(found) > 80 and len({page for page, _ in found}) >= 12
    for page, tex in found:
        assert "<merror" not in site["mathml"].mathml(tex, display="inline"), (page, tex)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_lists_every_public_name(built):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((built / "objects.inv").read_bytes(), uri="")
    listed = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    modules = {name for name in layerlens.__all__ if name in layerlens._MODULES}
    assert {f"layerlens.{name}" for name in set(layerlens.__all__) - modules} <= listed
    for name in modules:
        assert any(one.startswith(f"layerlens.{name}.") for one in listed), name
    public = {name.split(".")[1] for name in listed if name.count(".") == 1}
    assert public <= set(layerlens.__all__)
    pages = {path.relative_to(built).as_posix() for path in built.rglob("*.html")}
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} <= pages
    assert json.loads((built / "searchindex.js").read_text()[16:-1])["docnames"]
    for page in pages:
        text = (built / page).read_text()
        assert not re.findall(r'(?:src|data)="(?:https?:)?//|<link[^>]+href="(?:https?:)?//|@import', text), page
