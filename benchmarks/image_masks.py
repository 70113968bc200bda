"""Scores of masked pictures, taken once and shared by all rows that sample masks."""

from __future__ import annotations

import functools
import time

import torch
from torch import nn

from layerlens.analyzers.saliency.perturbation.rise import SmoothMasks, draw, ridge_map

from .image_curves import faster, probabilities

MASKS, CELLS = 400, 7
"""Balanced smooth masks, each followed by its complement, over a grid of so many cells, as `rise` makes them."""


LOGIT, LOG_PROBABILITY = 0, 1
"""The scores that are taken."""

SMALLEST = 1e-12
"""The least probability whose logarithm is taken."""


class Masked:
    """A picture under the first masks of one sequence.

    Args:
        model: a classifier.
        x: `(1, channel, height, width)`; what is masked becomes zero.
        target: its class.

    Attributes:
        scores: scores that were taken, `(masks, 2)`.
        asked: forward passes that a method used, whoever took them, and the seconds that this took: 0 before each.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, target: int) -> None:
        self.model, self.x, self.target = faster(model), x, target
        self.probabilities = probabilities(model)
        self.masks = SmoothMasks(list(x.shape[2:]), CELLS)
        draw([self.masks], MASKS, 0.5, "balanced", 0)
        self.scores = torch.zeros(0, 2, dtype=torch.float64)
        self.asked, self.seconds = 0, 0.0

    def __call__(self, count: int) -> torch.Tensor:
        """The logit and the log of the probability under each of the first masks, `(count, 2)`."""
        asked = max(count, self.asked)
        missing = torch.arange(len(self.scores), max(count, len(self.scores)))
        for chosen in torch.split(missing, 16) if len(missing) else ():
            self.scores = torch.cat([self.scores, self.of(self.x * self.masks(chosen)[:, None])])
        self.asked = asked
        return self.scores[:count]

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The logit and the log of the probability of pictures, `(n, 2)`."""
        start = time.process_time()
        with torch.inference_mode():
            logits = self.model(x).double()
        self.asked, self.seconds = self.asked + len(x), self.seconds + time.process_time() - start
        return torch.stack([logits, self.probabilities(logits).clamp_min(SMALLEST).log()], dim=2)[
            :, self.target
        ].clone()

    def pooled(self, count: int) -> torch.Tensor:
        """The first masks at a few places in each cell, `(count, places)`."""
        return torch.cat([self.masks.pooled(self.masks(part)) for part in torch.arange(count).split(50)]).double()

    def rise(self, count: int, score: int = LOGIT) -> torch.Tensor:
        """The map of `rise`, `(1, height, width)`."""
        return self.masks.enlarged(ridge_map(self.pooled(count), self(count)[:, score, None])[0])


@functools.lru_cache(maxsize=1)
def masked(model: nn.Module, x: torch.Tensor, target: int) -> Masked:
    """The masks of a picture, the same ones for all methods."""
    return Masked(model, x, target)
