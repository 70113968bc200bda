"""The gallery's page: one HTML file without scripts and without anything from outside."""

from __future__ import annotations

import html
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..report.page import POLICY, image

if TYPE_CHECKING:
    from .gallery import Gallery

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 60rem; }
h1 { font-size: 1.7rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } figure.narrow img { max-width: 34rem; }
figcaption { color: #444; font-size: .95rem; max-width: 46rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.number, th.number { text-align: right; } details { margin: .6rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; font-size: .85rem; }
@media print { h2, figure { break-inside: avoid; } details > * { display: block; } }
"""


def page(gallery: Gallery, folder: Path) -> str:
    """The page of a gallery whose PNG files lie in `folder`; they go into the page."""
    subject, first = gallery.subject, gallery.findings[0]
    body = [
        f"<h1>Inside {html.escape(subject.name)}</h1>",
        f"<p>{html.escape(subject.source)}. Explained: {_targets(gallery)}.</p>",
        "<h2>What was found</h2>",
        _numbers(gallery),
    ]
    for figure in gallery.figures:
        shown = image((folder / f"{figure.name}.png").read_bytes())
        narrow = ' class="narrow"' if shown["width"] < 1000 else ""
        body.append(
            f"<h2>{html.escape(figure.title)}</h2><figure{narrow}><img width='{shown['width']}' "
            f"height='{shown['height']}' "
            f"alt='{html.escape(figure.title, quote=True)}' src='{shown['src']}'>"
            f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
        )
    body += [
        "<h2>Layers</h2>",
        _layers(gallery),
        "<h2>To reproduce</h2>",
        _settings(gallery, first.relevance.rules_used),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Inside {html.escape(subject.name)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _targets(gallery: Gallery) -> str:
    return html.escape("; ".join(f"{found.title}: {found.target.label}" for found in gallery.findings))


def _table(rows: list[tuple[str, ...]], numbers: set[int]) -> str:
    def cells(row: tuple[str, ...], tag: str) -> str:
        return "".join(
            f"<{tag} class='number'>{html.escape(text)}</{tag}>"
            if column in numbers
            else f"<{tag}>{html.escape(text)}</{tag}>"
            for column, text in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return (
        f"<div class='scroll'><table><thead><tr>{cells(rows[0], 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _numbers(gallery: Gallery) -> str:
    heads = ("picture", "top class", "probability", "score", "in the pixels", "in constants", "residual")
    rows: list[tuple[str, ...]] = [(*heads, "completeness gap")]
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
    times = list(gallery.findings[0].times)
    spent = [("picture", *times), *((f.title, *(f"{f.times[name]:.1f}" for name in times)) for f in gallery.findings)]
    return (
        _table(rows, set(range(2, 8)))
        + "<p>Time of each analyzer as a multiple of one forward pass:</p>"
        + _table(list(spent), set(range(1, len(times) + 1)))
    )


def _layers(gallery: Gallery) -> str:
    table = gallery.table
    head = ", ".join(f"{name} {text}" for name, text in table.summary()[1:])
    rows = [tuple(table.HEADS), *table.cells()]
    return (
        f"<p>{html.escape(head)}</p><details><summary>{len(rows) - 1} rows</summary>{_table(rows, {2, 4, 5})}</details>"
    )


def _settings(gallery: Gallery, rules: dict[str, str]) -> str:
    first = gallery.findings[0]
    results = [first.cam, *first.saliency, first.relevance]
    lines = [f"{result.method}: {result.settings}" for result in results]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "captum", "matplotlib"))
    lines += ["", "relevance rules: " + "; ".join(f"{op}: {rule}" for op, rule in sorted(rules.items()))]
    lines += ["", f"Python {platform.python_version()}, {versions}, {platform.machine()}"]
    return f"<details open><summary>Settings</summary><pre>{html.escape(chr(10).join(lines))}</pre></details>"
