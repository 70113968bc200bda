"""Keep the books of a propagation: where relevance ended, sample by sample, under the name of the layer."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.model.layers import LayerPath
from layerlens.results import Entry, Ledger

FOLDED = 1e-5
"""Relative residuals above this in half of the samples, and ten times that of the totals in the worst, show a batch
axis out of place; in a few samples it is the rounding of float32 where a rule divides by next to nothing."""

RUN = 256
"""Numbers that are added up in their own type."""

Span = tuple[int, int, LayerPath]
"""First number, number after the last, and layer of the autograd nodes made during one call."""


@dataclasses.dataclass
class Page:
    """What one backward pass booked: (number, kind, source) with an amount `(batch,)` for each.

    Attributes:
        booked: where.
        amounts: how much.
        mixed: whether an amount could not be told apart by sample.
    """

    booked: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)
    amounts: list[torch.Tensor] = dataclasses.field(default_factory=list)
    mixed: bool = False


@dataclasses.dataclass
class Bookkeeper:
    """Collects amounts during the backward pass and makes the ledger of them.

    Attributes:
        batch: number of samples.
        spans: which autograd nodes were made during which call of which layer.
        time_major: spans inside of which axis 0 is time and axis 1 the batch.
        page: what is being written; a new one for every backward pass.
    """

    batch: int
    spans: list[Span]
    time_major: list[range]
    page: Page = dataclasses.field(default_factory=Page)

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
            self.page.booked.append((number, kind, source))
            self.page.amounts.append(self.by_sample(term, time_major=time_major))

    def by_sample(self, term: torch.Tensor, *, time_major: bool = False) -> torch.Tensor:
        """The sum of a term for each sample, `(batch,)`, in float64.

        The batch is axis 0, alone or with places folded into it (batch first). What linear layers add inside recurrent
        layers and multi-head attention has time first. Where neither fits, the sum is spread evenly and the ledger
        says so.
        """
        term = term.detach()
        if self.batch == 1:
            return _row_sums(term.reshape(1, -1))
        if time_major and term.ndim >= 3 and term.shape[1] == self.batch:
            term = term.transpose(0, 1)
        elif time_major and term.shape[0] % self.batch == 0 and term.shape[0] != self.batch:
            term = term.reshape(-1, self.batch, term[0].numel()).transpose(0, 1)
        if term.shape[0] % self.batch:
            self.page.mixed = True
            return term.sum(dtype=torch.float64).expand(self.batch) / self.batch
        return _row_sums(term.reshape(self.batch, -1))

    def close(self, score: torch.Tensor) -> Ledger:
        """The ledger of the page; amounts of one source in one layer are added up."""
        layers = innermost(self.spans, sorted({number for number, _, _ in self.page.booked}))
        order = sorted(range(len(self.page.booked)), key=lambda entry: self.page.booked[entry][0])
        rows: dict[tuple[str, str, str], int] = {}
        row_of = [0] * len(order)
        for entry in order:
            number, kind, source = self.page.booked[entry]
            row_of[entry] = rows.setdefault((kind, layers[number], source), len(rows))
        sums = torch.zeros(len(rows), self.batch, dtype=torch.float64)
        sums.index_add_(0, torch.tensor(row_of), torch.stack(self.page.amounts).cpu())
        kept = sums.any(dim=1).tolist()
        entries = tuple(Entry(*place, sums[row]) for place, row in rows.items() if kept[row])
        ledger = Ledger(score.detach().double().cpu(), entries, by_sample=not self.page.mixed)
        if not float(ledger.relative.median()) > FOLDED:
            return ledger
        worst = float(ledger.relative.max())
        # exact in total and not by sample: the model folds the batch in an order of its own
        whole = dataclasses.replace(ledger, by_sample=False)
        return whole if worst > 10 * float(whole.relative.max()) else ledger


def _row_sums(rows: torch.Tensor) -> torch.Tensor:
    """The sum of each row in float64: short runs in the numbers' own type, for converting all of them takes longer."""
    length = rows.shape[1]
    whole = length - length % RUN
    if rows.dtype is not torch.float32 or whole < 8 * RUN:
        return rows.sum(dim=1, dtype=torch.float64)
    runs = rows[:, :whole].reshape(len(rows), -1, RUN).sum(dim=2).sum(dim=1, dtype=torch.float64)
    rest: torch.Tensor = rows[:, whole:].sum(dim=1, dtype=torch.float64)
    return runs + rest


def innermost(spans: list[Span], numbers: list[int]) -> dict[int, LayerPath]:
    """The path of the innermost layer during whose call the node of each (sorted) number was made; `""` for none."""
    pending = sorted(spans, key=lambda span: (span[0], -span[1]), reverse=True)
    found: dict[int, LayerPath] = {}
    running: list[Span] = []
    for number in numbers:
        while pending and pending[-1][0] <= number:
            span = pending.pop()
            while running and running[-1][1] <= span[0]:
                running.pop()
            running.append(span)
        while running and running[-1][1] <= number:
            running.pop()
        found[number] = running[-1][2] if running else ""
    return found
