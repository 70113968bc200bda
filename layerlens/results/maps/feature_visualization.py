"""Inputs optimized to excite something inside a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from layerlens.model.trees import describe

from ..base import Result, numbers


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FeatureVisualization(Result):
    """Inputs that raise the scores of targets.

    Attributes:
        images: what was made, `(target x copy, *shape)`, within `bounds`; the copies of a target follow each other.
        axes: names of the axes of `images`.
        bounds: smallest and largest value; None where they are free.
        targets: what each of `images` excites.
        curve: the score of each at each step, under that step's transformations, `(target x copy, step)`.
        score: the score of each as it is, `(target x copy,)`.
        units: units of the score.
        settings: every option as used.
        checks: `"transformed"`: the mean score under transformations that were not used to make it; `"noise"`: the
            mean score of the random inputs that it was made from, under the same. `(target x copy,)` each.
    """

    images: torch.Tensor
    axes: tuple[str, ...]
    bounds: tuple[float, float] | None
    targets: tuple[str, ...]
    curve: torch.Tensor
    score: torch.Tensor
    units: str
    settings: dict[str, Any]
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def of(self, target: str) -> torch.Tensor:
        """The inputs made for one target, `(copy, *shape)`."""
        return self.images[[row for row, name in enumerate(self.targets) if name == target]]

    def pictures(self) -> torch.Tensor:
        """The inputs from 0 to 1 of their bounds; as they are where they have none."""
        if self.bounds is None:
            return self.images
        low, high = self.bounds
        return (self.images - low) / (high - low)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The inputs as a numpy array."""
        array: np.ndarray[Any, Any] = self.images.detach().float().cpu().numpy()
        return array

    def __len__(self) -> int:
        return len(self.images)

    def summary(self) -> list[tuple[str, str]]:
        """Targets, shape, scores and checks."""
        names = list(dict.fromkeys(self.targets))
        shown = ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
        rows = [("targets", shown), ("images", describe(self.images)), ("steps", str(self.curve.shape[1]))]
        rows.append(("score", numbers(self.score)))
        return rows + [(name, numbers(check)) for name, check in self.checks.items()]
