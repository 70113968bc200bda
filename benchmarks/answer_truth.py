"""What the values of a method are held against: held-out ablations, and the answer without its strongest sentences."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from .answer_data import Masks, drawn

TOP = (1, 3, 5)


@dataclasses.dataclass
class Case:
    """A context and what was measured on it.

    Attributes:
        number: its place in `contexts()`.
        kind: kind of the context.
        forced: whether the answer was given, else it is the model's own.
        text: the answer.
        wrong: whether the model's own answer is wrong; NaN where no one can say.
        length: tokens of the answer.
        masks: ablations, `(ablation, sentence)`.
        scores: logit of the answer's probability, `(ablation,)`.
        maps: by method, one number per sentence.
    """

    HEAD: ClassVar = ("number", "kind", "forced", "text", "wrong", "length")

    number: int
    kind: str
    forced: bool
    text: str
    wrong: float
    length: int
    masks: Masks
    scores: np.ndarray
    maps: dict[str, np.ndarray]

    @property
    def sources(self) -> int:
        """Number of sentences."""
        return self.masks.shape[1]

    @property
    def whole(self) -> Masks:
        """The ablation that removes nothing, `(1, sentence)`."""
        return np.ones((1, self.sources), dtype=bool)

    @property
    def random(self) -> Masks:
        """The random ablations that methods may use."""
        return drawn(self.number, self.sources)[0]

    @property
    def held_out(self) -> Masks:
        """The random ablations that no method sees."""
        return drawn(self.number, self.sources)[1]

    def at(self, masks: Masks) -> np.ndarray:
        """The scores at some ablations; KeyError where one was not measured."""
        rows = {mask.tobytes(): row for row, mask in enumerate(self.masks)}
        return self.scores[[rows[mask.tobytes()] for mask in masks]]

    def agreement(self, values: np.ndarray) -> float:
        """The linear datamodelling score: rank correlation of predicted and measured scores; 0 if constant."""
        predicted, measured = rankdata(self.held_out @ values), rankdata(self.at(self.held_out))
        if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
            return 0.0
        return float(np.corrcoef(predicted, measured)[0, 1])

    def drops(self, values: np.ndarray) -> list[float]:
        """How far log p falls, in nats, without the `TOP` strongest sentences; NaN where that was not measured."""
        masks = np.concatenate([self.whole, without_best(values)])
        try:
            log_p = -np.logaddexp(0, -self.at(masks))
        except KeyError:
            return [np.nan] * len(TOP)
        return [float(log_p[0] - below) for below in log_p[1:]]


def without_best(values: np.ndarray) -> Masks:
    """The ablations that remove the strongest sentences, `(len(TOP), sentence)`."""
    order = np.argsort(-values, kind="stable")
    masks = np.ones((len(TOP), len(values)), dtype=bool)
    for row, count in enumerate(TOP):
        masks[row, order[:count]] = False
    return masks
