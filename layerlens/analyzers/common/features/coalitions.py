"""Scores of an input of which parts are removed, many at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch

from layerlens.errors import OptionError
from layerlens.progress import track

from ..batch_size import BatchSize, first_score
from ..messages import check_baseline
from ..scorer import Leaves, Scorer
from .baselines import Baseline, baselines, mixed
from .input_features import Features
from .references import Baselines, references as given_references

BOTH = "give baseline=, or baselines= for the mean over several, not both."

Masks = dict[str, torch.Tensor]
"""By leaf, `(n, ...)` broadcasting to the leaf: 1 keeps, 0 removes, in between mixes."""


class Coalitions:
    """The score as a function of what is kept of the input; what is removed becomes the baseline.

    Use it inside `borrowed(model, grad=False)`.

    Args:
        scorer: scorer of a borrowed model.
        baseline: as in `layerlens.analyzers.common.features.baselines`.
        batch_size: rows in one forward pass; `"auto"` reads the memory of the layers in a first pass.
        references: baselines over which the score is averaged, instead of one, as in
            `layerlens.analyzers.common.features.references`.

    Attributes:
        rows: the samples, `(batch,)`: all of the scorer's, see `of`.
        score: score of the input as it is, `(batch,)`.
        batch_size: rows in one forward pass, as used.
        label: name of the baseline, or of the references.
        starts: what removed values become, by leaf, `(references * batch, ...)`.
        references: number of references over which a score is averaged; 0 for a baseline.

    Raises:
        OptionError: when a baseline and references are given, or do not fit the input.
    """

    def __init__(
        self, scorer: Scorer, baseline: Baseline, batch_size: BatchSize = "auto", references: Baselines = None
    ) -> None:
        if references is not None and not (isinstance(baseline, str) and baseline == "zero"):
            raise OptionError(BOTH)
        self.scorer, self.rows = scorer, scorer.rows
        self.ends: Leaves = {name: leaf.value for name, leaf in scorer.leaves.items()}
        self.score, self.batch_size = first_score(scorer, self.ends, batch_size, gradient=False)
        self.references = 0
        self.starts, self.label = baselines(scorer, baseline)
        if references is not None:
            listed, self.label = given_references(scorer, references, 0)
            self.starts = {name: torch.cat([one[name] for one in listed]) for name in self.ends}
            self.references = len(listed)

    @property
    def batch(self) -> int:
        """The number of samples."""
        return len(self.rows)

    def reference(self) -> dict[str, str]:
        """Return the setting that names the baseline, or the references and their cost."""
        return {"baselines": f"{self.label}, all passes for each"} if self.references else {"baseline": self.label}

    def of(self, rows: torch.Tensor) -> Coalitions:
        """Return the coalitions of some samples alone."""
        some = copy.copy(self)
        some.rows, some.score = rows, self.score[rows]
        return some

    def __call__(self, masks: Masks, rows: torch.Tensor) -> torch.Tensor:
        """Return the scores `(n,)` of samples `rows` with masks `(n, ...)`, `batch_size` in a pass."""
        scores, batch, count = [], len(self.scorer.rows), max(1, self.references)
        with torch.no_grad():
            for places in torch.split(torch.arange(len(rows) * count, device=rows.device), self.batch_size):
                own, reference = places // count, places % count
                chosen = rows[own]
                values = {}
                for name, end in self.ends.items():
                    start = _of(self.starts[name], reference * batch + chosen)
                    values[name] = mixed(start, _of(end, chosen), masks[name][own])
                scores.append(self.scorer(values, chosen).detach())
        found = torch.cat(scores)
        return found.double().reshape(-1, count).mean(dim=1) if self.references else found

    def baseline_scores(self) -> torch.Tensor:
        """Return the score of the baseline, `(batch,)`."""
        shapes = {name: [len(self.rows), *[1] * (end.ndim - 1)] for name, end in self.ends.items()}
        nothing = {name: end.new_zeros(shapes[name]) for name, end in self.ends.items()}
        return check_baseline(self(nothing, self.rows), self.scorer.target.label)

    def every(
        self, count: int, masks: Callable[[torch.Tensor], Masks], label: str, *, progress: bool | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the scores of every sample with each of `count` masks, some masks at a time.

        Args:
            count: number of masks.
            masks: makes masks, shared by all samples, from their indices `(m,)`.
            label: label of the progress bar.
            progress: whether to show the bar, as in `track`.

        Yields:
            The indices `(m,)` and the scores `(m, batch)`.
        """
        step = max(1, self.batch_size // self.batch)
        rows = self.rows
        for places in track(torch.split(torch.arange(count), step), label, enabled=progress):
            chosen_masks = masks(places)
            repeated = {name: mask.repeat_interleave(self.batch, dim=0) for name, mask in chosen_masks.items()}
            yield places, self(repeated, rows.repeat(len(places))).reshape(len(places), self.batch)

    def features(
        self, features: Features, keep: torch.Tensor, label: str, *, progress: bool | None = None
    ) -> torch.Tensor:
        """Return the scores `(m, batch)` of every sample with each coalition of features.

        Args:
            features: features of the input.
            keep: `(m, features)`, 1 keeps.
            label: label of the progress bar.
            progress: whether to show the bar, as in `track`.
        """
        scores = []
        step = max(1, self.batch_size // self.batch)
        for places in track(torch.split(torch.arange(len(keep)), step), label, enabled=progress):
            rows = self.rows.repeat(len(places))
            chosen = keep[places].to(rows.device).repeat_interleave(self.batch, dim=0)
            scores.append(self(features.masks(chosen, rows), rows).reshape(len(places), self.batch))
        return torch.cat(scores)


def _of(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`values[rows]`, without a copy where all are of one sample."""
    return values[rows] if len(values) > 1 else values.expand(len(rows), *values.shape[1:])
