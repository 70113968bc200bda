"""What parts of a model send each other on the way to a score: a graph whose ledger closes at every node."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites as Selected
from layerlens.analyzers.common.held_inputs import held_input
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import AttributionGraph, Entry, Ledger
from layerlens.signatures import public
from layerlens.targets.target import Spec

from ..book import Sweep, book_inputs, warn_of_residual
from ..rules.rulebook import Rulebook
from ..sweep import carry_to_ends, ends_of, warn_of_cuts
from .contributions import OpenedParts, Parts, open_parts
from .sites import relevance_at

EXPLANATION = (
    "An edge is the relevance that one part passes to another without passing a third; what enters a node, the "
    "additive constants and what rules absorb on the way add up to the relevance of the node.",
    "The graph shows how relevance is carried under the rules, with norms and attention weights as they are. It does "
    "not prove that the model needs these parts: layerlens.circuit_faithfulness measures that.",
)


@public
def attribution_graph(
    model: nn.Module,
    x: Input,
    layers: Selected = None,
    *,
    nodes: Parts = "layer",
    keep: float = 0.02,
    target: Spec = None,
    rules: str | Rulebook = "auto",
    heads: int | None = None,
    hold: Hold = None,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> AttributionGraph:
    """Trace a score back from part to part: which sends how much to which.

    All parts hold relevance back, as in `contributions`. Beginning at the score, and then in reverse order of
    execution, what has arrived at a part is sent once through the part itself, to the parts before it. What reaches u
    from v is the edge from u to v. Every operation is passed about once for each part of its layer that is opened, so a
    graph of layers costs about as much as a few gradients (docs/circuits.md has measurements).

    Args:
        layers: which layers, as in `contributions`.
        nodes: what the nodes are, as `parts` of `contributions`: `"layer"`, `"head"`, `"channel"` or `"position"`;
            layers and bases; or a list of both, `nodes=["head", basis]`. A feature of a basis sends on what its encoder
            reads, by the gradient of the encoder, the error what is left.
        keep: nodes with less than this share of the score, in size and for every sample, are not opened; what they hold
            is booked as not opened. 0 opens every node that relevance reaches.
        rules: rulebook, or its name, as in `relevance`.
        heads: number of heads of each attention; None for its own.

    Returns:
        An `AttributionGraph`: the relevance of every node, edges, and the ledger of every opened node.

    Raises:
        InputError: if the input cannot carry a gradient, a basis does not fit its layer, or `encode` has no gradient.
        LayerNotFound: when no selected layer is on the way from the input to the score.
        OptionError: when an option is unknown, layers are given twice, or `keep` is not a share.
        SelectionError, AxesUnknown: if a basis does not name one tensor of one call, or its units are unknown.
        RelevanceError: if no relevance can reach the input.
        TargetError: if the target does not fit the output.

    Warns:
        UserWarning: if the ledger does not close, or layers had to be left out.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = attribution_graph(net, torch.ones(1, 3), ["0", "1"], target=1)
        >>> sorted((sender, receiver) for sender, receiver, _ in found.edges())
        [('0', '1'), ('1', 'score'), ('input', '0')]
    """
    if not 0 <= keep < 1:
        raise OptionError(
            f"keep must be at least 0 and below 1, the share of the score from which a node is opened, not {keep!r}."
        )
    given = held_input(model, x, hold, forward)
    with borrowed(model):
        opened = open_parts(model, given, layers, nodes, "nodes", target, rules, heads, forward)
        trace = _Trace(opened, keep)
        with opened.rules() as held:
            trace.start()
            places = reversed(range(len(opened.sites)))
            for place in track(places, "attribution_graph", len(opened.sites), progress):
                held[place] = False
                trace.open(place)
                held[place] = True
        ledger = trace.whole()
    warn_of_cuts(opened.recording)
    warn_of_residual(ledger, opened.score.dtype)
    opened.warn_left_out("attribution_graph")
    aim = opened.recording.scores.targets[0]
    return trace.result(aim.label, aim.each, ledger)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What one node sent.

    Attributes:
        node: number of the node; -1 for the score.
        sent: relevance that each node got, `(nodes, batch)`.
        sweep: the backward pass, without its multipliers.
        inputs: relevance that each input got, `(batch,)`; filled at the end.
    """

    node: int
    sent: torch.Tensor
    sweep: Sweep
    inputs: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def total(self, kind: str) -> torch.Tensor:
        """The sum of what was booked of one kind, `(batch,)`."""
        amounts = [
            amount.cpu()
            for (_, what, _), amount in zip(self.sweep.booked, self.sweep.amounts, strict=True)
            if what == kind
        ]
        return torch.stack(amounts).sum(dim=0) if amounts else self.sent.new_zeros(self.sent.shape[1])


class _Trace:
    """The graph while it is traced.

    Args:
        opened: parts of a recorded forward pass.
        keep: share of the score from which a node is opened.
    """

    def __init__(self, opened: OpenedParts, keep: float) -> None:
        self.opened, self.keep = opened, keep
        self.first = [0]
        for site in opened.sites:
            self.first.append(self.first[-1] + site.size)
        self.multipliers: list[torch.Tensor | None] = [None] * len(opened.sites)
        self.found: list[_Opened] = []
        self.relevance = torch.zeros(self.first[-1], opened.bookkeeper.batch, dtype=torch.float64)

    def start(self) -> None:
        """Send the score to the parts."""
        self._send(-1, None, self.opened.sweep(self.opened.score, torch.ones_like(self.opened.score)))

    def open(self, place: int) -> None:
        """Send on what has arrived at the parts of one tensor, each by itself."""
        site, g = self.opened.sites[place], self.multipliers[place]
        if g is None:
            return
        first, score = self.first[place], self.opened.score.detach().double().abs().cpu()
        for number in range(site.size):
            held = self.relevance[first + number].abs()
            if bool((held > self.keep * score).any()):
                start = site.start(g, number, self.opened.bookkeeper)
                sweep = self.opened.sweep(site.edge, start)
                site.book_rest(start, self.relevance[first + number], self.opened.bookkeeper)
                self._send(first + number, place, sweep)
        self.multipliers[place] = None

    def _send(self, node: int, own: int | None, sweep: Sweep) -> None:
        opened = self.opened
        arrived = opened.multipliers(sweep)
        if own is not None:
            arrived[own] = None  # where the sweep began
        sent = torch.cat(relevance_at(opened.sites, arrived, opened.bookkeeper))
        self.relevance += sent
        for place, g in enumerate(arrived):
            if g is not None:
                before = self.multipliers[place]
                self.multipliers[place] = g if before is None else before + g
        leaves = len(opened.recording.leaves)
        sweep.ends = sweep.ends[:leaves]
        self.found.append(_Opened(node, sent, sweep))

    def whole(self) -> Ledger:
        """Return where the score went: inputs, constants, what rules absorbed, and what was not opened."""
        opened, book = self.opened, self.opened.bookkeeper
        every = Sweep()
        for one in self.found:
            book.sweep, leaves = one.sweep, len(opened.recording.leaves)
            one.sweep.carried = carry_to_ends(one.sweep.first_layer, ends_of(opened.recording)[:leaves], book)
            for name, value in book_inputs(opened.recording, book, one.sweep).items():
                one.inputs[name] = book.by_sample(value).cpu()
            every.booked += one.sweep.booked
            every.amounts += one.sweep.amounts
            every.mixed |= one.sweep.mixed
        book.sweep = every
        sent = {one.node for one in self.found}
        rest = [
            Entry("not opened", site.output.layer, site.part_name(number), self.relevance[first + number])
            for site, first in zip(opened.sites, self.first, strict=False)
            for number in range(site.size)
            if first + number not in sent and bool(self.relevance[first + number].any())
        ]
        return book.ledger(opened.score, rest)

    def result(self, target: str, targets: tuple[str, ...] | None, ledger: Ledger) -> AttributionGraph:
        """Return the graph, from the inputs to the score."""
        opened = self.opened
        inputs = list(opened.recording.leaves)
        names = [site.part_name(number) for site in opened.sites for number in range(site.size)]
        layers = [site.name for site in opened.sites for _ in range(site.size)]
        rows = torch.stack(
            [torch.cat([torch.stack([one.inputs[name] for name in inputs]), one.sent]) for one in self.found]
        )
        relevance = torch.cat([rows[:, : len(inputs)].sum(dim=0), self.relevance])
        shown = [_input_name(name, len(inputs) > 1, names) for name in inputs]
        return AttributionGraph(
            nodes=(*shown, *names),
            layers=(*shown, *layers),
            relevance=relevance,
            receivers=tuple("score" if one.node < 0 else names[one.node] for one in self.found),
            sent=rows,
            constants=torch.stack([one.total("additive") for one in self.found]),
            absorbed=torch.stack([one.total("absorbed") for one in self.found]),
            ledger=ledger,
            inputs=tuple(shown),
            parts=opened.kind,
            target=target,
            targets=targets,
            method=f"attribution graph, relevance, {opened.plan.rulebook.name}",
            settings={**opened.plan.settings, "nodes": opened.kind, "keep": self.keep, **opened.settings},
            cost=f"1 forward and {len(self.found)} partial backward passes",
            explanation=EXPLANATION,
        )


def _input_name(name: str, several: bool, parts: Sequence[str]) -> str:
    """The name of an input as a node, different from those of the parts."""
    shown = f"input {name}" if several else "input"
    return f"{shown} of the model" if shown in parts else shown
