"""Methods compared: the score of each by every metric, sample by sample."""

from __future__ import annotations

import dataclasses
import html
import math
from typing import Any

import torch

from layerlens.errors import choose, need, warn
from layerlens.model.trees import as_array

from ..base import Result

RESAMPLES = 4000
"""Draws of a bootstrap interval."""

RENAMED = {"centre": "center"}
"""Old name -> name of controls."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Leaderboard(Result):
    """Numbers of every method by every metric, sample by sample, with paired comparisons.

    The rows are in the order of the first metric, best first. Intervals are of the mean over samples, 95 %, by the
    bootstrap over samples; those of differences are paired: the same samples on both sides. Samples of one group (crops
    of a picture, frames of a video) are alike, so that they are drawn together: the intervals are over groups.

    Attributes:
        methods: names, best first by the first metric.
        metrics: names.
        values: `(methods, metrics, batch)`, float64.
        higher: whether a larger value is better, for each metric.
        controls: the methods that look at the picture, or at nothing, and not at the model.
        target: what was scored.
        settings: every option as used.
        groups: which samples are alike, a name for each; None if all are independent.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    values: torch.Tensor
    higher: tuple[bool, ...]
    controls: tuple[str, ...]
    target: str
    settings: dict[str, Any]
    groups: tuple[str, ...] | None = None

    def of(self, method: str, metric: str | None = None) -> torch.Tensor:
        """The values `(batch,)` of a method by a metric, the first one when None.

        Raises:
            OptionError: when there is no such method or metric.
        """
        if method in RENAMED and method not in self.methods:
            warn(f"the control {method!r} is now {RENAMED[method]!r}.", DeprecationWarning)
            method = RENAMED[method]
        row = self.methods.index(choose("method", method, self.methods))
        column = 0 if metric is None else self.metrics.index(choose("metric", metric, self.metrics))
        return self.values[row, column]

    def mean(self, method: str, metric: str | None = None) -> float:
        """The mean over samples."""
        return float(self.of(method, metric).mean())

    def interval(self, method: str, metric: str | None = None) -> tuple[float, float]:
        """The 95 % interval of the mean; without width for one sample or one group."""
        return _bootstrap_interval(self.of(method, metric), self.groups)

    def difference(self, method: str, other: str, metric: str | None = None) -> tuple[float, float, float]:
        """The mean of `method` less `other` over the same samples, and its 95 % interval."""
        differences = self.of(method, metric) - self.of(other, metric)
        return float(differences.mean()), *_bootstrap_interval(differences, self.groups)

    @property
    def samples(self) -> str:
        """How many there are, in words: `40 samples of 11 groups`."""
        count = self.values.shape[2]
        named = f"{count} sample{'' if count == 1 else 's'}"
        return named if self.groups is None else f"{named} of {len(set(self.groups))} groups"

    def best(self, metric: str | None = None) -> str:
        """The method with the best mean, without the controls."""
        column = 0 if metric is None else self.metrics.index(choose("metric", metric, self.metrics))
        sign = 1 if self.higher[column] else -1
        rows = [name for name in self.methods if name not in self.controls] or list(self.methods)
        return max(rows, key=lambda name: sign * self.mean(name, self.metrics[column]))

    def to_pandas(self) -> Any:
        """The means as a pandas DataFrame, methods by metrics. pandas must be installed."""
        pandas = need("pandas", "to_pandas")
        return pandas.DataFrame(self.values.mean(dim=2).numpy(), list(self.methods), list(self.metrics))

    def table(self) -> list[tuple[str, ...]]:
        """The head and the rows as text: means with intervals, and the difference to the best by the first metric."""
        best = self.best()
        several = (self.values.shape[2] if self.groups is None else len(set(self.groups))) > 1
        marks = [f"{name} ({'higher' if up else 'lower'})" for name, up in zip(self.metrics, self.higher, strict=True)]
        head = ("method", *marks, f"less {best}")
        rows = []
        for method in self.methods:
            cells = []
            for metric in self.metrics:
                low, high = self.interval(method, metric)
                span = f" [{low:.3f}, {high:.3f}]" if several and metric == self.metrics[0] else ""
                cells.append(f"{self.mean(method, metric):.3f}{span}")
            change, low, high = self.difference(method, best)
            paired = "" if method == best else f"{change:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if several else "")
            rows.append((f"{method} (control)" if method in self.controls else method, *cells, paired))
        return [head, *rows]

    def numpy(self) -> Any:
        """The values, `(methods, metrics, batch)`, as a numpy array."""
        return as_array(self.values)

    def summary(self) -> list[tuple[str, str]]:
        """What was compared."""
        return [
            ("methods", str(len(self.methods))),
            ("samples", self.samples),
            ("target", self.target),
            ("best", f"{self.best()} by {self.metrics[0]}"),
        ]

    def __repr__(self) -> str:
        table = self.table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        head = f"Leaderboard: {self.samples}, target {self.target}; brackets: 95 % intervals"
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        head, *rows = self.table()
        cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        table = f"<table><tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>{cells}</table>"
        return f"<div>{self._picture()}{table}</div>"


def _bootstrap_interval(values: torch.Tensor, groups: tuple[str, ...] | None) -> tuple[float, float]:
    """The bootstrap interval of a mean, widened to what few samples or groups need.

    A bootstrap takes the deviation of n values with the divisor n, and a normal distribution for Student's t
    (Hesterberg 2015, sec. 4.1): of 5 samples, 77 to 86 % of such 95 % intervals held the mean.
    """
    names = sorted(set(groups)) if groups is not None else []
    size = len(names) if groups is not None else len(values)
    mean = float(values.mean())
    if size < 2:
        return mean, mean
    drawn = torch.randint(size, (RESAMPLES, size), generator=torch.Generator().manual_seed(0))
    if groups is None:
        means = values[drawn].mean(dim=1)
    else:
        members = torch.tensor([[group == name for group in groups] for name in names], dtype=values.dtype)
        means = (members @ values)[drawn].sum(dim=1) / members.sum(dim=1)[drawn].sum(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return mean + widening(size) * (low - mean), mean + widening(size) * (high - mean)


def widening(size: int) -> float:
    """By how much a 95 % bootstrap interval of the mean of so many values is too narrow, as a factor.

    Example:
        >>> [round(widening(size), 2) for size in (3, 5, 11, 83)]
        [2.69, 1.58, 1.19, 1.02]
    """
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(size - 1, 0.975) / ndtri(0.975)) * math.sqrt(size / (size - 1))
