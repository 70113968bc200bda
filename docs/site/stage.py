"""Collect the pages of the site in one folder: docs/, the notebooks, the benchmarks and the API."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import api
import explorers

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

SECTIONS = {
    "Start": "get-started first-picture coming-from from-captum targets-and-inputs peers",
    "Analyzers": """
        capture activation-maps saliency cam relevance sensitivity robustness interventions circuits weights-and-inputs
        layer-dynamics training-and-transfer what-to-believe faithfulness checks groups-and-errors language-models
        answers generation pictures-and-words diffusion sequences graphs figures gallery explorer report
        beyond-one-machine
    """,
    "Write your own": "write-your-own-method write-your-own-rule write-your-own-figure",
    "Notebooks": """
        notebooks/look_inside_your_own_model notebooks/which_method notebooks/is_the_map_honest
        notebooks/language_model notebooks/over_time notebooks/generative notebooks/training_dynamics
        notebooks/dynamic_networks notebooks/concepts_and_data notebooks/answers notebooks/diffusion
        notebooks/where_is_it_decided
    """,
    "Reference": "questions speed reliability glossary api/index benchmarks/index changelog",
}
"""Caption in the sidebar -> pages, in their order."""

ALREADY = re.compile(r"\]\(\.\./(?=benchmarks/|notebooks/)")
"""Links that leave docs/ in the repository, but not on the site."""


def stage(folder: Path) -> None:
    """Write the sources of the site.

    Args:
        folder: the folder to fill; its contents are replaced.

    Raises:
        ValueError: if a page of docs/ is in no section, or a section names a page that does not exist.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in sorted(DOCS.glob("*.md")):
        text = ALREADY.sub("](", page.read_text(encoding="utf-8"))
        (folder / page.name).write_text(text + MORE.get(page.stem, str)(), encoding="utf-8")
    for picture in DOCS.glob("*.png"):
        shutil.copy(picture, folder)
    notebooks(folder / "notebooks")
    benchmarks(folder / "benchmarks")
    shutil.copy(ROOT / "CHANGELOG.md", folder / "changelog.md")
    api.write(folder / "api")
    listed = {name for names in SECTIONS.values() for name in names.split()}
    there = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*") if path.suffix in PAGES}
    of_others = {"index", *(name for name in there if name.startswith(("api/", "benchmarks/")))} - listed
    if there - of_others != listed:
        raise ValueError(
            f"docs/site/stage.py: in no section {sorted(there - of_others - listed)}, "
            f"not there {sorted(listed - there)}"
        )


PAGES = (".md", ".ipynb")


def tree() -> str:
    """Return the sections as tables of contents for the sidebar."""
    parts = []
    for caption, names in SECTIONS.items():
        listed = "\n".join(names.split())
        parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n")
    return "".join(parts)


MORE = {"index": tree, "explorer": explorers.links}
"""Page -> what is added to it on the site."""


def notebooks(folder: Path) -> None:
    """Copy the notebooks."""
    folder.mkdir()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder)


def benchmarks(folder: Path) -> None:
    """Copy the benchmarks' results, and write an index of them."""
    folder.mkdir()
    measured = sorted((ROOT / "benchmarks").glob("*.md"))
    rows = []
    for page in measured:
        shutil.copy(page, folder)
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(f"| [{page.stem}]({page.name}) | {title} |")
    listed = "\n".join(page.stem for page in measured)
    (folder / "index.md").write_text(BENCHMARKS.format(rows="\n".join(rows), tree=listed), encoding="utf-8")


BENCHMARKS = """# Benchmarks

Measurements as the programs in `benchmarks/` printed them; `make bench` reruns some of them.

| page | what it holds |
| --- | --- |
{rows}

```{{toctree}}
:hidden:

{tree}
```
"""
