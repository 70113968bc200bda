"""How much of the score the best parts carry: areas below the curves, pair by pair, by plain hooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .circuit_ways import RANDOM, Subject

DRAWS = 5000


def ordered(way: str, values: dict[str, float]) -> list[str]:
    """Return the parts, the best first: by size, or as they were drawn."""
    return sorted(values, key=lambda name: -values[name] if way == RANDOM else -abs(values[name]))


class Curves:
    """The curves of a model on held-out pairs.

    Args:
        subject: the model and the pairs.
        ablation: `"resample"` (values of the corrupted input of the pair), `"mean"` or `"zero"`.
        other: pairs whose corrupted inputs give the means.
    """

    def __init__(self, subject: Subject, ablation: str, other: Subject) -> None:
        self.subject = subject
        source = subject if ablation == "resample" else other
        with torch.no_grad():
            values = {name: value.detach() for name, value in source.run(source.corrupted).values.items()}
            self.whole = subject.run(subject.clean).scores.detach()
        if ablation == "mean":
            values = {name: value.mean(dim=0, keepdim=True) for name, value in values.items()}
        elif ablation == "zero":
            values = {name: torch.zeros_like(value[:1]) for name, value in values.items()}
        self.values = values
        self.empty = subject.scores_with(set(), values)

    def share(self, kept: Sequence[str]) -> torch.Tensor:
        """Return the share of the score that is left of each pair, in shares of the mean difference."""
        scores = self.subject.scores_with(set(kept), self.values)
        return (scores - self.empty) / (self.whole - self.empty).mean()

    def areas(self, order: Sequence[str], kept: Sequence[int], removed: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the area below the curve of what is left, `(pairs,)`: `"kept"`, and `"removed"` up to its last k.

        Args:
            order: parts, the best first.
            kept: numbers of parts that are kept.
            removed: numbers of parts that are taken out; none for no such curve.
        """
        whole, count = (self.whole - self.empty) / (self.whole - self.empty).mean(), len(order)
        rows = [torch.zeros_like(whole), *(self.share(order[:k]) for k in kept), whole]
        points = torch.tensor([0, *kept, count]) / count
        found = {"kept": torch.trapezoid(torch.stack(rows), points, dim=0), "shares": torch.stack(rows[1:-1])}
        if removed:
            left = [whole, *(self.share(order[k:]) for k in removed)]
            points = torch.tensor([0, *removed]) / max(removed)
            found["removed"] = torch.trapezoid(torch.stack(left), points, dim=0)
        return {name: value.double().numpy() for name, value in found.items()}


def interval(values: np.ndarray, digits: int = 2) -> str:
    """Return the mean and its 95 % interval, by the bootstrap over pairs."""
    values = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
