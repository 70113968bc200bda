"""An attribution graph as a fragment of HTML, whose nodes and edges say what they are under the pointer."""

from __future__ import annotations

import html
from typing import Final

from layerlens.results import AttributionGraph
from layerlens.signatures import public

from .. import style
from ..words import words
from .attribution_graph import BEND, LETTER, arc_columns, drawn_graph, place_nodes

PITCH, ROW, WIDE = 96, 28, 7.2
"""Pixels from column to column, from row to row, and of a letter."""

RED, BLUE = "#D6604D", "#4393C3"
"""Colors that can be seen on white and on black."""

LOOK: Final = (
    ".lg text{font:12px sans-serif;fill:CanvasText;stroke:Canvas;stroke-width:3px;paint-order:stroke}"
    ".lg path{fill:none;opacity:.6}.lg path:hover{opacity:1}.lg circle{stroke:CanvasText;stroke-width:.6}"
    ".lg g:hover text{font-weight:bold}"
)


@public
def graph_html(found: AttributionGraph, *, count: int = 120, title: str | None = None) -> str:
    """Write the largest edges of an attribution graph as HTML: the inputs at the left, the score at the right.

    It is an SVG that has no script and loads nothing. Under the pointer a node shows its name, its relevance, the share
    of the score and its largest edges, and the edges of other nodes fade; an edge shows what it carries. Colors and
    letters are drawn on the paper of the page, light or dark. In a notebook: `IPython.display.HTML(graph_html(graph))`.

    Args:
        found: result of `attribution_graph`, perhaps pruned.
        count: number of edges, those of the largest size.
        title: None for the method and the target, `""` for none.

    Returns:
        A `<div>` with its own styles.

    Raises:
        OptionError: if `count` is below 1.
        PlotError: if the graph has no edge, or values are not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import layerlens
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> page = graph_html(layerlens.attribution_graph(net, torch.ones(1, 2), ["1"], target=0))
        >>> page.count("<circle"), "<script" in page
        (3, False)
    """
    graph = drawn_graph(found, count)
    edges, shown, sizes, nodes = graph.edges, graph.shown, graph.sizes, list(graph.columns)
    places = place_nodes(list(graph.columns.items()), shown, PITCH * LETTER / WIDE)
    bends = {edge[:2]: BEND * PITCH * arc_columns(*(places[name] for name in edge[:2])) for edge in edges}
    top = min(
        [
            *(ROW * row for _, row in places.values()),
            *(ROW * places[one][1] - bend / 2 for (one, _), bend in bends.items()),
        ]
    )
    where = {name: (20 + PITCH * column, round(24 + ROW * row - top)) for name, (column, row) in places.items()}
    numbers = {name: place for place, name in enumerate(nodes)}
    score = sizes["score"]
    largest, most = max(abs(value) for *_, value in edges), max(abs(sizes[name]) for name in nodes) or 1.0

    def of(value: float) -> str:
        return f"{style.number(value)} ({100 * value / score:.1f}% of the score)" if score else style.number(value)

    drawn = []
    for sender, receiver, value in reversed(edges):
        (x, y), (u, v) = where[sender], where[receiver]
        curve = f"M{x} {y}Q{(x + u) / 2:g} {(y + v) / 2 - bends[sender, receiver]:g} {u} {v}"
        look = f'stroke="{RED if value > 0 else BLUE}" stroke-width="{0.6 + 6 * abs(value) / largest:.1f}"'
        drawn.append(
            f'<path class="e n{numbers[sender]} n{numbers[receiver]}" d="{curve}" {look}>'
            f"<title>{html.escape(f'{sender} → {receiver}: {of(value)}')}</title></path>"
        )
    for name in nodes:
        x, y = where[name]
        own = [edge for edge in edges if name in edge[:2]][:12]
        lines = [f"{name}: {of(sizes[name])}", *(f"{one} → {two}: {style.number(value)}" for one, two, value in own)]
        radius = 3 + 6 * (abs(sizes[name]) / most) ** 0.5
        drawn.append(
            f'<g class="k{numbers[name]}"><title>{html.escape(chr(10).join(lines))}</title><circle cx="{x}" cy="{y}" '
            f'r="{radius:.1f}" fill="{RED if sizes[name] > 0 else BLUE}"/><text x="{x + radius + 3:.1f}" y="{y + 4}">'
            f"{html.escape(shown[name])}</text></g>"
        )
    fade = "".join(f".lg:has(.k{place}:hover) .e:not(.n{place}){{opacity:.06}}" for place in numbers.values())
    wide = 40 + PITCH * max(graph.columns.values()) + int(WIDE * max(len(text) for text in shown.values()))
    high = max(y for _, y in where.values()) + 24
    notes = [f"{len(edges)} of {graph.count} edges; width: relevance; red positive, blue negative"]
    notes += [f"names begin with {graph.shared}"] * bool(graph.shared)
    heading = f"{words(found.method)}, {found.target}" if title is None else title
    return (
        f'<div style="font:14px sans-serif"><style>{LOOK}{fade}</style><div>{html.escape(heading)}</div>'
        f"<div><small>{html.escape('; '.join(notes))}</small></div>"
        f'<div style="overflow:auto"><svg class="lg" role="img" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}">{"".join(drawn)}</svg></div></div>'
    )
