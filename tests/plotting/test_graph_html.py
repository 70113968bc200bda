"""An attribution graph as a page: what nodes and edges say, and what is refused."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from layerlens import attribution_graph, errors, plotting
from tests.results.test_html import Page


class Two(nn.Module):
    """Two parts; y1 = x1 + 2 (x0 + 3 x1) of an input (1, 5) is 37."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[0.0, 3.0], [0.0, 0.0]]))
            self.last.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))

    def forward(self, x):
        x = x + self.first(x)
        return x + self.last(x)


@pytest.fixture
def graph():
    return attribution_graph(Two(), torch.tensor([[1.0, 5.0]]), target=1)


def test_nodes_and_edges_say_what_they_carry(graph, tmp_path):
    path = graph.to_html(tmp_path / "graph.html")
    page = Page(path.read_text().removeprefix("<!DOCTYPE html>").replace('<meta charset="utf-8">', "").replace(
        '<meta name="color-scheme" content="light dark">', ""))  # fmt: skip
    tags = [tag for tag, _ in page.tags]
    assert tags.count("circle") == 4 and tags.count("path") == len(graph.edges()) == 5
    assert not {"script", "link", "img"} & set(tags) and not re.search("https?:", path.read_text())
    assert "last → score: 32 (86.5% of the score)" in page.texts
    said = next(text for text in page.texts if text.startswith("first: 30 (81.1% of the score)"))
    assert said.splitlines()[1:] == ["first → last: 30", "input → first: 30"]
    assert path.read_bytes() == graph.to_html(tmp_path / "again.html").read_bytes()


def test_names_are_escaped_and_what_cannot_be_drawn_is_said(graph, tmp_path):
    names = ("input", "<b>", "last")
    receivers = tuple("<b>" if name == "first" else name for name in graph.receivers)
    named = dataclasses.replace(graph, nodes=names, layers=names, receivers=receivers)
    assert "<b>" not in plotting.graph_html(named) and "&lt;b&gt; → last" in plotting.graph_html(named)
    assert plotting.graph_html(graph, count=1).count("<path") == 1
    with pytest.raises(errors.PlotError, match="every edge of the graph is zero"):
        plotting.graph_html(dataclasses.replace(graph, sent=graph.sent * 0))
    pruned = graph.prune(0.95)
    assert not pruned.edges() and "largest edges: none" in repr(pruned)
    for draw in (plotting.graph_html, plotting.attribution_graph):
        with pytest.raises(errors.PlotError, match=r"no edge is left to draw: prune\(0.95\).*graph.prune\(0.095\)"):
            draw(pruned)
    with pytest.raises(errors.PlotError, match="NaN"):
        plotting.graph_html(dataclasses.replace(graph, sent=graph.sent * torch.nan))
    with pytest.raises(errors.ResultFileError, match="cannot save"):
        graph.to_html(tmp_path / "none" / "graph.html")


def test_arcs_over_other_nodes_stay_within_the_figure():
    torch.manual_seed(0)
    names = [str(place) for place in range(6)]
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in names))
    found = attribution_graph(net, torch.ones(1, 2), names, target=0)
    sent = found.sent.clone()
    sent[0, 0] = 1.0  # from the input to the score, over all others
    found = dataclasses.replace(found, sent=sent)
    drawn = plotting.attribution_graph(found)
    (axes,) = drawn.axes
    drawn.fig.canvas.draw()
    box = axes.get_window_extent()
    for line in axes.patches:
        assert line.get_path().transformed(line.get_transform()).get_extents().y1 < box.y1
    high = [float(y) for y in re.findall(r"Q\S+ (\S+) ", plotting.graph_html(found))]
    level = float(re.search(r'd="M\S+ (\S+)Q', plotting.graph_html(found))[1])
    assert (level + min(high)) / 2 > 0 and min(high) < level - 40  # the top of an arc is half as high as its control
