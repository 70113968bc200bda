"""Which layers each sample went through."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from layerlens.errors import OptionError, need

from ..base import Result


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Routes(Result):
    """The route of each sample: the calls of layers, in the order in which they ended.

    Attributes:
        model: name of the model's class.
        calls: one tuple of layer paths per sample; a layer that ran twice is there twice.
    """

    model: str
    calls: tuple[tuple[str, ...], ...]

    @property
    def groups(self) -> dict[tuple[str, ...], list[int]]:
        """Route -> the samples that took it, the most frequent first."""
        found: dict[tuple[str, ...], list[int]] = {}
        for sample, calls in enumerate(self.calls):
            found.setdefault(calls, []).append(sample)
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))

    def layers(self, sample: int) -> dict[str, int]:
        """Layer -> number of calls, in order of execution, of one sample.

        Raises:
            OptionError: when there is no such sample.
        """
        if not -len(self) <= sample < len(self):
            raise OptionError(f"there is no sample {sample} among {len(self)} (0 to {len(self) - 1}).")
        return dict(Counter(self.calls[sample]))

    def to_pandas(self) -> Any:
        """Number of calls by sample (rows) and layer (columns, in order of execution) as a pandas DataFrame.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        pandas = need("pandas", "to_pandas")
        names = list(dict.fromkeys(path for calls in self.calls for path in calls))
        counts = [Counter(calls) for calls in self.calls]
        return pandas.DataFrame([[count[name] for name in names] for count in counts], columns=names)

    def __len__(self) -> int:
        return len(self.calls)

    def summary(self) -> list[tuple[str, str]]:
        """Number of samples and of different routes, and how long they are."""
        rows = [("model", self.model), ("samples", str(len(self))), ("routes", str(len(self.groups)))]
        for calls, samples in list(self.groups.items())[:4]:
            shown = ", ".join(map(str, samples[:6])) + (", ..." if len(samples) > 6 else "")
            rows.append((f"{len(samples)} of {len(self)}", f"{len(calls)} calls (samples {shown})"))
        return rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RouteComparison(Result):
    """Where two routes, or two groups of routes, differ.

    Attributes:
        only_first: layers that ran in the first alone.
        only_second: layers that ran in the second alone.
        counts: layer -> (mean number of calls in the first, in the second), where these differ and neither is 0.
        parting: number of calls that all routes of both have in common before they part; None where `same`.
        after: the last of those calls; `""` when they part at once or are the same.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    counts: dict[str, tuple[float, float]]
    parting: int | None
    after: str

    @property
    def same(self) -> bool:
        """Whether the samples of both took the same routes, each the same share of them."""
        return self.parting is None

    def summary(self) -> list[tuple[str, str]]:
        """The four parts as text."""
        if self.same:
            return [("routes", "the same")]
        parting = "at the start" if not self.parting else f"after {self.parting} calls, behind {self.after!r}"
        counts = ", ".join(f"{path} ({one:g}, {two:g})" for path, (one, two) in self.counts.items())
        rows = [("part", parting), ("only in the first", ", ".join(self.only_first))]
        rows += [("only in the second", ", ".join(self.only_second)), ("calls differ", counts)]
        return [(name, text) for name, text in rows if text]
