"""Keep the books of a propagation: where relevance ended, sample by sample, under the name of the layer."""

from __future__ import annotations

import dataclasses

import torch

from ...record import Call
from ...results import Entry, Ledger


FOLDED = 1e-4
"""A relative residual by sample above this, while that of the totals is below, shows a batch axis out of place."""


@dataclasses.dataclass
class Bookkeeper:
    """Collects amounts during the backward pass and makes the ledger of them.

    Attributes:
        batch: number of samples.
        calls: calls of the layers with their spans of autograd nodes.
        time_major: spans inside of which axis 0 is time and axis 1 the batch.
    """

    batch: int
    calls: tuple[Call, ...]
    time_major: list[range]
    mixed: bool = False
    _amounts: dict[tuple[int, str, str], torch.Tensor] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, number: int, source: str, *terms: torch.Tensor) -> None:
        """Book the sum of `terms`, tensors of relevance with a batch axis, at the node of this number."""
        constant = kind == "additive"
        for term in terms:
            time_major = constant and any(number in span for span in self.time_major)
            amount = self.by_sample(term, time_major=time_major)
            key = (number, kind, source)
            self._amounts[key] = self._amounts[key] + amount if key in self._amounts else amount

    def by_sample(self, term: torch.Tensor, *, time_major: bool = False) -> torch.Tensor:
        """The sum of a term for each sample, `(batch,)`, in float64.

        The batch is axis 0, alone or with places folded into it (batch first). What linear layers add inside recurrent
        layers and multi-head attention has time first. Where neither fits, the sum is spread evenly and the ledger
        says so.
        """
        term = term.detach()
        if self.batch == 1 or term.ndim == 0:
            return term.sum(dtype=torch.float64).expand(self.batch) / self.batch
        if time_major and term.ndim >= 3 and term.shape[1] == self.batch:
            term = term.transpose(0, 1)
        elif time_major and term.shape[0] % self.batch == 0 and term.shape[0] != self.batch:
            term = term.reshape(-1, self.batch, term[0].numel()).transpose(0, 1)
        if term.shape[0] % self.batch:
            self.mixed = True
            return term.sum(dtype=torch.float64).expand(self.batch) / self.batch
        return term.reshape(self.batch, -1).sum(dim=1, dtype=torch.float64)

    def close(self, score: torch.Tensor) -> Ledger:
        """The ledger of everything booked; amounts of one source in one layer are added up."""
        layers = innermost(self.calls, sorted({number for number, _, _ in self._amounts}))
        sums: dict[tuple[str, str, str], torch.Tensor] = {}
        for (number, kind, source), amount in sorted(self._amounts.items(), key=lambda item: item[0][0]):
            place = (kind, layers[number], source)
            sums[place] = sums[place] + amount if place in sums else amount
        entries = tuple(Entry(*place, amount.cpu()) for place, amount in sums.items() if bool(amount.any()))
        ledger = Ledger(score.detach().double().cpu(), entries, by_sample=not self.mixed)
        whole = dataclasses.replace(ledger, by_sample=False)
        # exact in total and not by sample: the model folds the batch in an order of its own
        folded = float(ledger.relative.max()) > FOLDED > float(whole.relative.max())
        return whole if folded else ledger


def innermost(calls: tuple[Call, ...], numbers: list[int]) -> dict[int, str]:
    """The path of the innermost layer during whose call the node of each (sorted) number was made; `""` for none."""
    spans = sorted(
        ((call.span.start, -call.span.stop, call.layer) for call in calls if call.span), key=lambda span: span[:2]
    )
    found: dict[int, str] = {}
    open_spans: list[tuple[int, str]] = []
    following = 0
    for number in numbers:
        while following < len(spans) and spans[following][0] <= number:
            start, minus_stop, layer = spans[following]
            while open_spans and open_spans[-1][0] <= start:
                open_spans.pop()
            open_spans.append((-minus_stop, layer))
            following += 1
        while open_spans and open_spans[-1][0] <= number:
            open_spans.pop()
        found[number] = open_spans[-1][1] if open_spans else ""
    return found
