"""Drawing in rounds until intervals are narrow enough, for every method that draws: `until=`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from layerlens.errors import OptionError, warn
from layerlens.results.intervals import interval_of

from .scorer import Leaves

SLOW, FAST = 1.25, 2.0
"""Least and most by which the number of draws grows from round to round."""


class Rounds:
    """The numbers of draws after which a method looks at its intervals; all at once where there is no `until`.

    The next number is what the widest interval calls for, as widths fall with the root of the number.

    Args:
        method: name of the method, for messages.
        option: name of the option with the number of draws.
        most: its value, the most draws.
        until: half width of 90 % intervals that ends drawing, as a share of the largest absolute value of the sample;
            None for never.
        first: draws of the first round, at least as many as a trustworthy error takes.
        step: numbers of draws are multiples of it, but for `most`; None to double the number from round to round.

    Attributes:
        count: draws so far.
        widest: half width of the widest interval of each sample over its largest absolute value, `(batch,)`.

    Raises:
        OptionError: when `until` is not a number above 0.

    Example:
        >>> rounds = Rounds("mean", "samples", 1000, until=0.1, first=10)
        >>> for count in rounds:
        ...     rounds.look({"x": torch.ones(1, 3)}, {"x": torch.full((1, 3), count**-0.5)}, count - 1)
        >>> count, rounds.widest  # 1.65 / sqrt(272) = 0.1
        (274, tensor([0.0997], dtype=torch.float64))
    """

    def __init__(
        self, method: str, option: str, most: int, until: float | None, *, first: int, step: int | None = 1
    ) -> None:
        if until is not None and (isinstance(until, bool) or not isinstance(until, (int, float)) or not until > 0):
            raise OptionError(
                f"until must be a share of the largest value, above 0, such as 0.1, or None; got {until!r}."
            )
        self.method, self.option, self.most, self.until = method, option, most, until
        self.count = 0
        self.widest: torch.Tensor | None = None
        self._first, self._step = first, step

    def __iter__(self) -> Iterator[int]:
        """Yield the number of draws to have in all, round by round.

        Warns:
            UserWarning: when the most draws were made and an interval is still too wide.
        """
        wanted: float = self.most if self.until is None else self._first
        while True:
            step = self._step or self.count or 1
            self.count = min(self.most, math.ceil(wanted / step) * step)
            yield self.count
            if self.until is None or (self.widest is not None and self._ratio() <= 1):
                return
            if self.count == self.most:
                break
            wanted = self.count * min(FAST, max(SLOW, self._ratio() ** 2))
        widest = float("nan") if self.widest is None else float(self.widest.max())
        enough = f"; about {self._enough()} are needed" if math.isfinite(widest) else ""
        warn(
            f"{self.method}: after {self.option}={self.most} an interval still reaches {widest:.2g} of the largest "
            f"value to either side, and until={self.until}{enough}."
        )

    def look(
        self,
        values: Leaves,
        errors: Leaves | None,
        degrees: float | None,
        skewness: Leaves | None = None,
    ) -> None:
        """Look at the intervals of what has been drawn; nothing is done without `until`.

        Args:
            values: by input, `(batch, ...)`.
            errors: their standard errors, in the same form; None where they are not known yet.
            degrees: degrees of freedom of the errors.
            skewness: skewness of the values, as in `interval_of`.
        """
        if self.until is None or errors is None:
            return
        largest, widest = [], []
        for name, value in values.items():
            low, high = interval_of(value, errors[name], degrees, None if skewness is None else skewness[name])
            largest.append(value.double().abs().reshape(len(value), -1).amax(dim=1))
            widest.append((high - low).double().reshape(len(value), -1).amax(dim=1) / 2)
        size, half = torch.stack(largest).amax(dim=0), torch.stack(widest).amax(dim=0)
        self.widest = torch.where(half == 0, 0.0, half / size).cpu()

    @property
    def settings(self) -> dict[str, Any]:
        """The number of draws as used, and `until` where it was given."""
        return {self.option: self.count, **({} if self.until is None else {"until": self.until})}

    def checks(self, others: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Return checks of a result with the widest interval of each sample, where it was looked at."""
        return {**(others or {}), **({} if self.widest is None else {"widest interval": self.widest})}

    def _ratio(self) -> float:
        """How many times too wide the widest interval is; infinite where it is unknown."""
        widest = float("inf") if self.widest is None else float(self.widest.nan_to_num(nan=math.inf).max())
        return widest / float(self.until or 1)

    def _enough(self) -> int:
        """The number of draws that the widest interval calls for, to two digits."""
        number = self.count * self._ratio() ** 2
        digits: int = 10 ** max(0, int(math.log10(number)) - 1)
        return math.ceil(number / digits) * digits
