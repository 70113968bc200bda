"""The path of guided integrated gradients: values whose gradient is small move first."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass
class GuidedPath:
    """One sample on its way from a baseline to the input.

    Attributes:
        start: the baseline, `(values,)`.
        end: the input, `(values,)`.
        fraction: of the values, those with the smallest gradients, that move together.
        max_dist: how far a value may be ahead of the straight way or behind it, as a part of it.
    """

    start: torch.Tensor
    end: torch.Tensor
    fraction: float
    max_dist: float

    def __post_init__(self) -> None:
        self.at = self.start.clone()
        self.total = torch.zeros_like(self.start)
        self._move: torch.Tensor | None = None
        self._delta = self.end - self.start
        self._rises = self._delta > 0
        self._length = float(self._delta.abs().sum())

    def step(self, slope: torch.Tensor, alpha: float) -> None:
        """Go on until the part `alpha` of the length is done.

        Args:
            slope: dS/dx at `at`, `(values,)`.
            alpha: 0..1.
        """
        self.gather(slope)
        low, high = max(alpha - self.max_dist, 0.0), min(alpha + self.max_dist, 1.0)
        lowest, highest = self.start + low * self._delta, self.start + high * self._delta
        if high == 1.0:
            highest = self.end
        goal, size = self._length * (1 - alpha), slope.nan_to_num(nan=torch.inf).abs()  # what has no slope moves last
        before = self.at
        now = torch.where(self._rises, before.maximum(lowest), before.minimum(lowest))
        while True:
            left = float((now - self.end).abs().sum())
            free = now != highest
            if left - goal <= 1e-9 * self._length or not bool(free.any()):
                break
            ranked = torch.where(free, size, torch.inf)
            threshold = ranked.kthvalue(int(self.fraction * (len(ranked) - 1)) + 1).values
            chosen = (ranked <= threshold) & free
            room = float(((now - highest).abs() * chosen).sum())
            gamma = (left - goal) / room if room > 0 else 1.0
            if gamma >= 1:
                now = torch.where(chosen, highest, now)
            else:
                now = torch.where(chosen, torch.lerp(now, highest, gamma), now)
                break
        self._move = now - before
        self.total += self._move * slope / 2
        self.at = now

    def gather(self, slope: torch.Tensor) -> None:
        """Add what the last move did for the score by the gradient at its end; `step` added that at its start."""
        if self._move is not None:
            self.total += self._move * slope / 2
            self._move = None
