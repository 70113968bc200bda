"""The parts of a model as a graph: what each sends on to the score."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from layerlens.errors import PlotError, check_count
from layerlens.results import AttributionGraph

from .. import style
from ..drawing.canvas import Canvas
from ..drawing.images import finite_array
from ..plot import Plot, figure
from ..words import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, LETTER, DOT = 0.2, 0.062, 0.16
"""Inches between rows, of a letter of a name, and of a dot."""

BEND = 0.15
"""Twice the height of an arc over its length, for an edge that passes a column in its own row."""


@figure(AttributionGraph, kind="graph", usual=True)
def attribution_graph(
    found: AttributionGraph,
    *,
    count: int = 40,
    width: style.Width = "page",
    title: str | None = None,
    ax: Axes | None = None,
) -> Plot:
    """Draw the largest edges of an attribution graph: the inputs at the left, the score at the right.

    A column for each layer that has a node, in order of execution. The thickness of a line is the relevance that it
    carries, red is positive, blue negative; the name of a node is next to its dot, whose area is its relevance.

    Args:
        found: result of `attribution_graph`, perhaps pruned.
        count: number of edges, those of the largest size.

    Returns:
        The plot; `data` holds `"nodes"`, their `"places"` `(nodes, 2)`, and `"edges"`, (from, to, relevance).

    Raises:
        OptionError: if `count` is below 1.
        PlotError: if the graph has no edge, or values are not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import layerlens
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> graph = layerlens.attribution_graph(net, torch.ones(1, 2), ["1"], target=0)
        >>> len(attribution_graph(graph).data["nodes"])
        3
    """
    drawn = drawn_graph(found, count)
    edges, shown, columns = drawn.edges, drawn.shown, max(drawn.columns.values()) + 1
    with Canvas(width=width, ax=ax) as canvas:
        pitch = 0.92 * canvas.width / columns
        places = place_nodes(list(drawn.columns.items()), shown, pitch)
        notes = [f"{len(edges)} of {drawn.count} edges; thickness: relevance; red positive, blue negative"]
        notes += [f"names begin with {drawn.shared}"] * bool(drawn.shared)
        canvas.title(title, f"{words(found.method)}, {found.target}", "; ".join(notes))
        axes = canvas.panel()
        rows = [row for _, row in places.values()]
        arcs = [
            places[one][1] - BEND / 2 * arc_columns(places[one], places[two]) * pitch / ROW for one, two, _ in edges
        ]
        top, bottom = min([*rows, *arcs]) - 1.5, max(rows) + 1.5
        canvas.panels[-1].height = ROW * (bottom - top)
        _draw(axes, edges, places, shown, drawn.sizes)
        axes.set_xlim(-0.5, columns - 0.5 + LETTER * len(shown.get("score", "")) / pitch)
        axes.set_ylim(bottom, top)
        return canvas.finish(
            {
                "nodes": list(drawn.columns),
                "places": np.array([places[name] for name in drawn.columns], float),
                "edges": edges,
            }
        )


@dataclasses.dataclass(frozen=True)
class DrawnGraph:
    """What is drawn of a graph: its largest edges, and the nodes at their ends.

    Attributes:
        edges: (from, to, relevance), largest by size first.
        count: number of all edges of the graph.
        columns: column of each node, in order of execution.
        shown: name of each node as written.
        shared: beginning of the names that is not written.
        sizes: relevance of every node, and the score.
    """

    edges: list[tuple[str, str, float]]
    count: int
    columns: dict[str, int]
    shown: dict[str, str]
    shared: str
    sizes: dict[str, float]


def drawn_graph(found: AttributionGraph, count: int) -> DrawnGraph:
    """Return the part of a graph that is drawn, with its `count` largest edges.

    Raises:
        OptionError: if `count` is below 1.
        PlotError: if the graph has no edge, or values are not finite.
    """
    check_count("count", count)
    edges, share = found.edges(), found.settings.get("pruned")
    if not edges and share:
        raise PlotError(
            f"no edge is left to draw: prune({share:g}) removed all of them. Prune the whole graph with a smaller "
            f"share, such as graph.prune({share / 10:g})."
        )
    if not edges:
        raise PlotError("every edge of the graph is zero, so there is nothing to draw: give another target or input.")
    finite_array(found.sent, "the edges")
    finite_array(found.relevance, "the relevance of the nodes")
    named = {name for edge in edges[:count] for name in edge[:2]}
    nodes = [name for name in (*found.nodes, "score") if name in named]
    layers = {**dict(zip(found.nodes, found.layers, strict=True)), **dict.fromkeys(found.inputs, "input")}
    columns = list(dict.fromkeys(layers.get(name, "score") for name in nodes))
    shown, shared = short_names(nodes, [*found.inputs, "score"])
    sizes = dict(zip(found.nodes, found.relevance.detach().mean(dim=-1).tolist(), strict=True))
    at = {name: columns.index(layers.get(name, "score")) for name in nodes}
    return DrawnGraph(edges[:count], len(edges), at, shown, shared, {**sizes, "score": float(found.score.mean())})


def short_names(nodes: list[str], whole: list[str]) -> tuple[dict[str, str], str]:
    """Return the names without the dotted beginning that all parts share, and that beginning."""
    parts = [name.split(".") for name in nodes if name not in whole]
    shared = 0
    while parts and all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    start = "".join(f"{part}." for part in parts[0][:shared]) if parts else ""
    return {name: name if name in whole else name.removeprefix(start) for name in nodes}, start


def place_nodes(nodes: list[tuple[str, int]], shown: dict[str, str], pitch: float) -> dict[str, tuple[int, int]]:
    """Return the column and row of each node: the row nearest to the middle in which its name has room.

    Args:
        nodes: names and columns, in order of execution.
        shown: the names as written, to the right of the dots.
        pitch: inches from column to column.
    """
    until: dict[int, float] = {}  # row -> column up to which it is taken
    places: dict[str, tuple[int, int]] = {}
    for name, column in nodes:
        row = next(row for row in _from_the_middle() if until.get(row, -1.0) < column)
        until[row] = column + (DOT + LETTER * len(shown[name])) / pitch
        places[name] = (column, row)
    return places


def _from_the_middle() -> Iterator[int]:
    yield 0
    for distance in itertools.count(1):
        yield from (-distance, distance)


def arc_columns(sender: tuple[int, int], receiver: tuple[int, int]) -> int:
    """Return the columns that an arc spans, 0 for a straight line: one to another row, or to the next column."""
    return receiver[0] - sender[0] if sender[1] == receiver[1] and receiver[0] - sender[0] > 1 else 0


def _draw(
    axes: Axes,
    edges: list[tuple[str, str, float]],
    places: dict[str, tuple[int, int]],
    shown: dict[str, str],
    sizes: dict[str, float],
) -> None:
    from matplotlib.patches import FancyArrowPatch

    largest = max(abs(value) for *_, value in edges)
    for sender, receiver, value in reversed(edges):
        bend = -BEND if arc_columns(places[sender], places[receiver]) else 0.0
        line = FancyArrowPatch(
            places[sender], places[receiver], connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-", shrinkA=0, shrinkB=0, linewidth=0.4 + 4 * abs(value) / largest,
            color=style.signed_colors([value])[0], alpha=0.7, zorder=1,
        )  # fmt: skip
        axes.add_patch(line)
    top = max(abs(sizes[name]) for name in places) or 1.0
    for name, (x, y) in places.items():
        area = 8 + 60 * abs(sizes[name]) / top
        axes.scatter(
            x, y, s=area, color=style.signed_colors([sizes[name]])[0],
            edgecolors=style.INK, linewidths=0.4, zorder=2,
        )  # fmt: skip
        axes.annotate(
            shown[name], (x, y), xytext=(2.5 + area**0.5 / 2, 0), textcoords="offset points", fontsize=style.SMALL,
            va="center_baseline", zorder=3,
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
