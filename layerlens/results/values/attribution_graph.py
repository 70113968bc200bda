"""Which part of a model sends how much relevance to which."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import OptionError, need, suggestion

from ..base import figures, numbers
from ..files import write_page
from .explained import Explained
from .ledger import Ledger

SCORE = "score"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph(Explained):
    """A graph of parts of a model, from its inputs to a score, whose ledger closes at every opened node.

    For every opened node: relevance = what it sends to earlier nodes and inputs + constants + absorbed.

    Attributes:
        nodes: names of the inputs, then of the parts in order of execution.
        layers: layer of each node; the name of the input for inputs.
        relevance: relevance of each node, `(nodes, batch)`, float64.
        receivers: the score, then the opened nodes, in the order in which they were opened.
        sent: relevance from each receiver to each node, `(receivers, nodes, batch)`: the edge from the node to the
            receiver in the direction of the forward pass.
        constants: what additive constants get of each receiver, `(receivers, batch)`.
        absorbed: what rules absorb of each receiver, `(receivers, batch)`.
        ledger: where the whole score went; nodes that were not opened are entries of the kind `"not opened"`.
        inputs: the nodes that are inputs.
        parts: what the nodes are: `"layer"`, `"head"`, `"channel"` or `"position"`.
        target: what is explained.
        targets: the target of each sample; None when all have the same.
        method: how it was computed.
        settings: every option as used.
        cost: passes that were run.
        explanation: what the edges mean and what they do not, a sentence each.
    """

    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    relevance: torch.Tensor
    receivers: tuple[str, ...]
    sent: torch.Tensor
    constants: torch.Tensor
    absorbed: torch.Tensor
    ledger: Ledger
    inputs: tuple[str, ...]
    parts: str
    target: str
    targets: tuple[str, ...] | None
    method: str
    settings: dict[str, Any]
    cost: str = ""
    explanation: tuple[str, str] = ("", "")

    @property
    def score(self) -> torch.Tensor:
        """The score of each sample, `(batch,)`."""
        return self.ledger.score

    @property
    def residual(self) -> torch.Tensor:
        """What the ledger of each receiver fails to explain, `(receivers, batch)`."""
        held = torch.stack(
            [
                self.score.double() if name == SCORE else self.relevance[self.nodes.index(name)]
                for name in self.receivers
            ]
        )
        return held - self.sent.sum(dim=1) - self.constants - self.absorbed

    def edges(self, sample: int | None = None) -> list[tuple[str, str, float]]:
        """(from, to, relevance) of every edge that is not 0, largest by size first.

        Args:
            sample: which sample; None for the mean over the batch.

        Raises:
            OptionError: when there is no such sample.
        """
        table = self._of(self.sent, sample)
        found = [
            (self.nodes[sender], self.receivers[receiver], float(table[receiver, sender]))
            for receiver, sender in table.nonzero().tolist()
        ]
        return sorted(found, key=lambda edge: -abs(edge[2]))

    def edge(self, sender: str, receiver: str) -> float:
        """The relevance of one edge, the mean over the batch.

        Raises:
            OptionError: when there is no such node, or the receiver was not opened.
        """
        if sender not in self.nodes:
            raise OptionError(f"there is no node {sender!r}.{suggestion(sender, self.nodes)}")
        if receiver not in self.receivers:
            raise OptionError(
                f"node {receiver!r} was not opened: give a smaller keep=."
                if receiver in self.nodes
                else f"there is no node {receiver!r}.{suggestion(receiver, self.receivers)}"
            )
        return float(self.sent[self.receivers.index(receiver), self.nodes.index(sender)].mean())

    def ranked(self, sample: int | None = None) -> list[tuple[str, float]]:
        """(node, relevance), largest by size first, without the inputs.

        Args:
            sample: which sample; None for the mean over the batch.

        Raises:
            OptionError: when there is no such sample.
        """
        pairs = zip(self.nodes, self._of(self.relevance, sample).tolist(), strict=True)
        return sorted((pair for pair in pairs if pair[0] not in self.inputs), key=lambda pair: -abs(pair[1]))

    def _of(self, table: torch.Tensor, sample: int | None) -> torch.Tensor:
        table = table.detach()
        if sample is None:
            return table.mean(dim=-1)
        if not -table.shape[-1] <= sample < table.shape[-1]:
            raise OptionError(f"there are {table.shape[-1]} samples, and no sample {sample}.")
        return table[..., sample]

    def prune(self, share: float) -> AttributionGraph:
        """Return the graph without edges that carry less than a share of the score, and without the nodes left alone.

        What the removed edges carried is booked with `absorbed` of their receivers, so that every ledger still closes.

        Args:
            share: share of the size of the score, for the mean over the batch.

        Raises:
            OptionError: when it is below 0, or 1 or more.
        """
        if not 0 <= share < 1:
            raise OptionError(
                f"share must be at least 0 and below 1, not {share!r}: 0.05 keeps edges from 5 % of the score on."
            )
        keep = self.sent.mean(dim=-1).abs() >= share * self.score.double().mean().abs()
        reached = {SCORE}
        for receiver, name in enumerate(self.receivers):  # in reverse order of execution
            if name in reached:
                reached |= {self.nodes[sender] for sender in keep[receiver].nonzero().flatten().tolist()}
        rows = [row for row, name in enumerate(self.receivers) if name in reached]
        columns = [column for column, name in enumerate(self.nodes) if name in reached]
        kept = self.sent * keep.unsqueeze(-1)
        removed = self.sent.sum(dim=1) - kept[:, columns].sum(dim=1)
        return dataclasses.replace(
            self,
            nodes=tuple(self.nodes[column] for column in columns),
            layers=tuple(self.layers[column] for column in columns),
            relevance=self.relevance[columns],
            receivers=tuple(self.receivers[row] for row in rows),
            sent=kept[rows][:, columns],
            constants=self.constants[rows],
            absorbed=(self.absorbed + removed)[rows],
            inputs=tuple(name for name in self.inputs if name in reached),
            settings={**self.settings, "pruned": share},
        )

    def to_networkx(self) -> Any:
        """A networkx `DiGraph`: nodes with `relevance` and `layer`, edges, in the direction of a run, with `weight`.

        Raises:
            MissingPackage: when networkx is not installed.
        """
        networkx = need("networkx", "to_networkx")
        graph = networkx.DiGraph(target=self.target, score=float(self.score.mean()))
        for name, layer, value in zip(self.nodes, self.layers, self.relevance.mean(dim=-1).tolist(), strict=True):
            graph.add_node(name, layer=layer, relevance=value)
        graph.add_node(SCORE, layer=SCORE, relevance=float(self.score.mean()))
        graph.add_weighted_edges_from(self.edges())
        return graph

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each edge: from, to, relevance (the mean over the batch).

        Raises:
            MissingPackage: when pandas is not installed.
        """
        return need("pandas", "to_pandas").DataFrame(self.edges(), columns=["from", "to", "relevance"])

    def to_html(self, path: str | os.PathLike[str], *, count: int = 120) -> Path:
        """Write a page with the graph, whose nodes and edges say what they are under the pointer.

        It has no script, loads nothing, and is light or dark as the reader's browser is.

        Args:
            path: file to write.
            count: number of edges, those of the largest size.

        Returns:
            The path written.

        Raises:
            OptionError: if `count` is below 1.
            PlotError: if the graph has no edge, or values are not finite.
            ResultFileError: if the folder does not exist.
        """
        return write_page(path, "An attribution graph", figures().graph_html(self, count=count))

    def numpy(self) -> Any:
        """The edges, `(receivers, nodes, batch)`, as a numpy array."""
        return self.sent.numpy()

    def summary(self) -> list[tuple[str, str]]:
        """The target, the size of the graph, its largest edges, and how well its ledgers close."""
        first = "; ".join(f"{sender} -> {receiver} {value:+.3g}" for sender, receiver, value in self.edges()[:4])
        parts, opened = len(self.nodes) - len(self.inputs), len(self.receivers) - 1
        size = f"{parts} parts, {opened} opened; {len(self.edges())} edges"
        if parts and not opened and "keep" in self.settings:
            size += f" (no part has {100 * self.settings['keep']:g} % of the score: give a smaller keep=)"
        return [
            ("target", self.target),
            ("method", self.method),
            ("score", numbers(self.score)),
            ("graph", size),
            ("largest edges", first or "none"),
            ("not opened", numbers(self.ledger.total("not opened"))),
            ("relative residual", numbers(self.ledger.relative)),
        ]
