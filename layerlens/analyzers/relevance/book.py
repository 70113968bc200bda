"""The fourth act of a relevance propagation: where relevance ended, sample by sample, under the name of the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from layerlens.analyzers.common.features.basis_site import BasisSite
from layerlens.analyzers.graph.linear_operations import LinearOperation
from layerlens.analyzers.graph.operation import Node, relevance_of
from layerlens.errors import warn
from layerlens.results import Entry, Ledger, Relevance

from .feature_relevance import feature_relevance
from .layer_relevance import Arrived, Folded, LayerOutput, by_layer, profile
from .plan import Plan
from .record import Recording, Span, innermost

COST = "about 3 gradients"
"""Cost per sample: 1 to 3 gradients, depending on the rules (benchmarks/relevance.md)."""

LOST = 1e-5
"""A relative residual above this is said; rounding in float32 stays below it on most models."""

_FOLDED_BATCH = 1e-5
"""Relative residuals above this in half of the samples, and ten times that of the totals in the worst, show a batch
axis out of place; in a few samples it is the rounding of float32 where a rule divides by almost nothing."""

_RUN = 256
"""How many numbers are added up in their own type."""


@dataclasses.dataclass
class Sweep:
    """The outcome of one backward pass.

    Attributes:
        booked: (number, kind, source) of each amount.
        amounts: the amounts, `(batch,)` each.
        mixed: whether an amount could not be split by sample.
        first_layer: relevance of the inputs of first-layer rules, with their operations.
        ends: multipliers of the leaves, then of the layers' outputs.
        carried: relevance that first-layer rules brought to each of them.
        parameters: multipliers of the parameters.
    """

    booked: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)
    amounts: list[torch.Tensor] = dataclasses.field(default_factory=list)
    mixed: bool = False
    first_layer: list[tuple[LinearOperation, torch.Tensor]] = dataclasses.field(default_factory=list)
    ends: Sequence[torch.Tensor | None] = ()
    carried: Sequence[torch.Tensor | None] = ()
    parameters: Sequence[torch.Tensor | None] = ()


@dataclasses.dataclass
class Bookkeeper:
    """Collects amounts during a backward pass and makes the ledger of them.

    Attributes:
        batch: number of samples.
        spans: which autograd nodes were made during which call of which layer.
        time_major: spans inside of which axis 0 is time and axis 1 the batch.
        folded: nodes at which relevance is read; set to the output with batch norm, and the factor of the norm, where
            a rule treats both as one.
        sweep: the backward pass under way.
    """

    batch: int
    spans: Sequence[Span]
    time_major: Sequence[range]
    folded: dict[Node, Folded | None] = dataclasses.field(default_factory=dict)
    sweep: Sweep = dataclasses.field(default_factory=Sweep)

    @classmethod
    def of(cls, recording: Recording) -> Bookkeeper:
        """Make the bookkeeper of a forward pass."""
        return cls(len(recording.scores.values[0]), recording.spans, recording.notes.time_major)

    def add(self, kind: str, number: int, source: str, *terms: torch.Tensor, linear: bool = False) -> None:
        """Book the sum of `terms`, tensors of relevance with a batch axis, at the node of this number.

        Args:
            kind: as in `Entry`.
            number: sequence number of the node.
            source: what adds or absorbs it.
            terms: amounts, elementwise.
            linear: whether a linear layer absorbs it; inside recurrent layers its rows are of all time steps.
        """
        for term in terms:
            time_major = (linear or kind == "additive") and any(number in span for span in self.time_major)
            self.sweep.booked.append((number, kind, source))
            self.sweep.amounts.append(self.by_sample(term, time_major=time_major))

    def by_sample(self, term: torch.Tensor, *, time_major: bool = False) -> torch.Tensor:
        """Return the sum of a term for each sample, `(batch,)`, in float64.

        The batch is axis 0, alone or with places folded into it (batch first). What linear layers add inside recurrent
        layers and multi-head attention has time first. Where neither fits, the sum is spread evenly and the ledger
        says so.
        """
        term = term.detach()
        if self.batch == 1:
            return _row_sums(term.reshape(1, -1))
        if time_major and term.ndim >= 3 and term.shape[1] == self.batch:
            term = term.transpose(0, 1)
        elif time_major and term.ndim and term.shape[0] % self.batch == 0 and term.shape[0] != self.batch:
            term = term.reshape(-1, self.batch, term[0].numel()).transpose(0, 1)
        if not term.ndim or term.shape[0] % self.batch:
            self.sweep.mixed = True
            return term.sum(dtype=torch.float64).expand(self.batch) / self.batch
        return _row_sums(term.reshape(self.batch, -1))

    def ledger(self, score: torch.Tensor, parts: Sequence[Entry] = ()) -> Ledger:
        """Make the ledger of the sweep; amounts of one source in one layer are added up.

        Args:
            score: what was propagated.
            parts: what parts of the model held back; listed first.
        """
        booked = self.sweep.booked
        layers = innermost(self.spans, sorted({number for number, _, _ in booked}))
        order = sorted(range(len(booked)), key=lambda entry: booked[entry][0])
        sources: dict[tuple[str, str, str], list[int]] = {}
        for entry in order:
            number, kind, source = booked[entry]
            sources.setdefault((kind, layers[number], source), []).append(entry)
        amounts = torch.stack([self.sweep.amounts[entry] for entries in sources.values() for entry in entries]).cpu()
        if len(sources) < len(order):
            rows = torch.tensor([row for row, entries in enumerate(sources.values()) for _ in entries])
            amounts = amounts.new_zeros(len(sources), self.batch).index_add_(0, rows, amounts)
        pairs = zip(sources, amounts.unbind(), amounts.any(dim=1).tolist(), strict=True)
        entries = (*parts, *(Entry(*key, amount) for key, amount, nonzero in pairs if nonzero))
        ledger = Ledger(score.detach().double().cpu(), entries, by_sample=not self.sweep.mixed)
        worst = float(ledger.relative.max())
        if worst <= _FOLDED_BATCH or not float(ledger.relative.median()) > _FOLDED_BATCH:
            return ledger
        # exact in total and not by sample: the model folds the batch in an order of its own
        whole = dataclasses.replace(ledger, by_sample=False)
        return whole if worst > 10 * float(whole.relative.max()) else ledger


def _row_sums(rows: torch.Tensor) -> torch.Tensor:
    """The sum of each row in float64: short runs in the numbers' own type, because converting all is slower."""
    length = rows.shape[1]
    whole = length - length % _RUN
    if rows.dtype is not torch.float32 or whole < 8 * _RUN:
        return rows.sum(dim=1, dtype=torch.float64)
    runs = rows[:, :whole].reshape(len(rows), -1, _RUN).sum(dim=2).sum(dim=1, dtype=torch.float64)
    rest: torch.Tensor = rows[:, whole:].sum(dim=1, dtype=torch.float64)
    return runs + rest


def book(recording: Recording, plan: Plan, bookkeeper: Bookkeeper, sweep: Sweep, index: int) -> Relevance:
    """Close the ledger of one sweep, and make the result.

    Args:
        recording: the forward pass.
        plan: the rules.
        bookkeeper: as it was during the sweep.
        sweep: the backward pass.
        index: index of its target.
    """
    score, scorer, leaves = recording.scores.values[index], recording.scorer, recording.leaves
    values = book_inputs(recording, bookkeeper, sweep)
    ledger = bookkeeper.ledger(score)
    warn_of_residual(ledger, score.dtype)
    scorer.target = recording.scores.targets[index]
    fields = scorer.fields(
        values,
        method=f"relevance, {plan.rulebook.name}",
        settings=plan.settings,
        score=score,
        checks={"conservation gap": ledger.gap, "ledger residual": ledger.relative},
    )
    at_layers: list[tuple[LayerOutput, torch.Tensor]] = []
    at_bases: list[tuple[BasisSite, Arrived]] = []
    if recording.outputs is not None:
        first = len(leaves)
        arrived = recording.outputs.arrived(sweep.ends[first:], sweep.carried[first:], bookkeeper.folded)
        at_layers, at_bases = recording.outputs.relevance(arrived), recording.outputs.at_bases(arrived)
    return Relevance(
        **fields,
        ledger=ledger,
        layers=by_layer(at_layers),
        profile=profile(at_layers, bookkeeper.batch, plan.settings) if at_layers else None,
        bases={site.name: feature_relevance(site, one, scorer.target.label, plan.settings) for site, one in at_bases},
        rules_used=plan.rules_used,
        parameters=recording.parameters.relevance(sweep.parameters),
        cost=COST,
    )


def book_inputs(recording: Recording, bookkeeper: Bookkeeper, sweep: Sweep) -> dict[str, torch.Tensor]:
    """Book the relevance that one sweep brought to each leaf, and return it by name."""
    bookkeeper.sweep = sweep
    values = {
        name: _relevance_of(leaf.detach(), sweep.ends[place], sweep.carried[place])
        for place, (name, leaf) in enumerate(recording.leaves.items())
    }
    for name, value in values.items():
        bookkeeper.add("input", -1, name, value)
    return values


def _relevance_of(value: torch.Tensor, multiplier: torch.Tensor | None, carried: torch.Tensor | None) -> torch.Tensor:
    relevance = torch.zeros_like(value) if multiplier is None else relevance_of(value, multiplier)
    return relevance if carried is None else relevance + carried


def warn_of_residual(ledger: Ledger, dtype: torch.dtype) -> None:
    """Say when relevance was lost or made that no rule accounts for."""
    worst = float(ledger.relative.max())
    if dtype in (torch.float32, torch.float64) and not worst < LOST:
        rounding = "" if dtype is torch.float64 else "Rounding in float32 can do this, as can "
        decide = (
            "relevance.ledger.table() shows where the rest went. Please report the model."
            if dtype is torch.float64
            else "layerlens.check(model, x) repeats it in float64, where rounding is gone, and decides."
        )
        warn(
            f"relevance: the ledger does not close, its residual is {worst:.1e} of the largest amount and should be "
            f"below {LOST:g}. {rounding or 'The cause is '}an operation that adds something that is not accounted for, "
            f"or numbers that overflow; {decide}",
        )
