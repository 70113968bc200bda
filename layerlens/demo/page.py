"""The gallery's page, on the template and in the style of the report."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from layerlens.report.content import Picture
from layerlens.report.page import render
from layerlens.report.provenance import settings_text

if TYPE_CHECKING:
    from .gallery import Gallery

Rows = list[tuple[str, ...]]


def page(gallery: Gallery, folder: Path) -> str:
    """The page of a gallery whose PNG files lie in `folder`; they go into the page."""
    subject = gallery.subject
    explained = "; ".join(f"{found.title}: {found.target.label}" for found in gallery.findings)
    pictures = [
        Picture(figure.title, figure.alt, figure.caption, (folder / f"{figure.name}.png").read_bytes())
        for figure in gallery.figures
    ]
    return render(
        "gallery.html",
        title=f"Inside {subject.name}",
        summary=f"{subject.source[:1].upper()}{subject.source[1:]}. Explained: {explained}.",
        numbers=_numbers(gallery),
        times=_times(gallery),
        pictures=pictures,
        layers=[tuple(gallery.table.HEADS), *gallery.table.cells()],
        layers_summary=", ".join(f"{name} {text}" for name, text in gallery.table.summary()[1:]),
        settings=_settings(gallery),
    )


def _numbers(gallery: Gallery) -> Rows:
    heads = ("picture", "top class", "probability", "score", "in the pixels", "in constants", "residual")
    rows: Rows = [(*heads, "completeness gap")]
    for found in gallery.findings:
        ledger = found.relevance.ledger
        amounts = (ledger.score, ledger.inputs, ledger.additive)
        rows.append(
            (
                found.title,
                found.top,
                f"{found.probability:.3f}",
                *(f"{float(amount[0]):.4g}" for amount in amounts),
                f"{float(ledger.relative[0]):.1e}",
                f"{found.completeness:.2%}",
            )
        )
    return rows


def _times(gallery: Gallery) -> Rows:
    names = list(gallery.findings[0].times)
    return [("picture", *names), *((f.title, *(f"{f.times[name]:.1f}" for name in names)) for f in gallery.findings)]


def _settings(gallery: Gallery) -> Rows:
    first = gallery.findings[0]
    results = [first.cam, *first.saliency, first.relevance]
    rules = "; ".join(f"{op}: {rule}" for op, rule in sorted(first.relevance.rules_used.items()))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "captum", "matplotlib"))
    return [
        *((result.method, settings_text(result.settings)) for result in results),
        ("relevance rules", rules),
        ("made with", f"{versions}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
    ]
