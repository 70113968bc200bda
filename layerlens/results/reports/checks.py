"""What was checked, and whether it holds: the gradient of torch itself, and all that an explanation relies on."""

from __future__ import annotations

import dataclasses
import html
import os
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from layerlens.errors import OptionError, choose, need
from layerlens.model.trees import as_array

from ..base import Result
from ..files import write_page
from ..values.layer_profile import LayerProfile
from ..values.matrix import Matrix
from .text_table import NO_TERMINAL

Verdict = bool | None
"""True for passed, False for failed, None where it could not be decided."""

_WORDS = {True: "pass", False: "FAIL", None: "unclear"}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerGradient(Result):
    """The gradient of one call of a layer against finite differences of that layer alone.

    Attributes:
        layer: path of the layer; `""` is the model itself.
        call: index of the call.
        type: name of the module's class.
        gap: |gradient - difference| relative to the size of the slope, the largest over directions; NaN if unchecked.
        error: estimated error of the difference, relative to the same size.
        passed: True if they agree, False if not, None if unclear.
        cause: the operations, or the cut, that a wrong gradient comes from; why it is unclear.
    """

    layer: str
    call: int
    type: str
    gap: float
    error: float
    passed: Verdict
    cause: str = ""

    def summary(self) -> list[tuple[str, str]]:
        """Layer, verdict, gap and cause."""
        name = (self.layer or "(model)") + (f"#{self.call}" if self.call else "")
        rows = [("layer", name), ("type", self.type), ("gradient", _WORDS[self.passed]), ("gap", f"{self.gap:.1e}")]
        return [*rows, ("cause", self.cause)] if self.cause else rows


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientCheck(Result):
    """The gradient of a score along random directions, by autograd and by finite differences.

    Attributes:
        gradient: slopes by autograd, `(directions, batch)`, float64.
        difference: slopes by central differences, `(directions, batch)`, float64.
        gap: |gradient - difference| relative to the size of the slope, `(directions, batch)`.
        error: estimated error of the difference, relative to the same size, `(directions, batch)`.
        tolerance: largest gap that is accepted.
        method: how the differences were computed.
        target: what was scored.
        layers: the layers that were checked one by one, in order of execution; empty if none was.
    """

    gradient: torch.Tensor
    difference: torch.Tensor
    gap: torch.Tensor
    error: torch.Tensor
    tolerance: float
    method: str
    target: str
    layers: tuple[LayerGradient, ...] = ()

    @property
    def passed(self) -> Verdict:
        """Whether gradient and differences agree for every sample and layer; None if that is unclear."""
        verdicts = [one.passed for one in self.layers]
        if bool((self.gap > self.tolerance + self.error).any()) or False in verdicts:
            return False
        return True if bool((self.gap <= self.tolerance).all()) else None

    @property
    def wrong(self) -> tuple[LayerGradient, ...]:
        """The layers whose gradient is wrong, without those that only hold one of them."""
        failed = [one for one in self.layers if one.passed is False]
        return tuple(one for one in failed if not any(_inside(other.layer, one.layer) for other in failed))

    def advice(self) -> str:
        """Say what to do."""
        if self.passed:
            return "nothing"
        if self.passed is None:
            return (
                "the differences are too rough to decide, since the score hardly changes or is not smooth here: give "
                "another input, or model.double() and x.double()"
            )
        if not self.layers:
            return "check_gradient(model, x, layers=None) checks every layer"
        where = "fix or replace the layers in .wrong" if self.wrong else "look at what runs outside of all layers"
        return f"every method that needs this gradient is wrong here: {where}, or take a method without gradients"

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Rows (layer, type, verdict, gap, cause) of the layers, in order of execution."""
        rows = [dict(one.summary()) for one in self.layers]
        return [(row["layer"], row["type"], row["gradient"], row["gap"], row.get("cause", "")) for row in rows]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each direction and sample.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        pandas = need("pandas", "to_pandas")
        names = ("gradient", "difference", "gap", "error")
        return pandas.DataFrame(
            [
                (direction, sample, *(float(getattr(self, name)[direction, sample]) for name in names))
                for direction, sample in torch.cartesian_prod(*map(torch.arange, self.gap.shape)).tolist()
            ],
            columns=("direction", "sample", *names),
        )

    def numpy(self) -> Any:
        """The gaps, `(directions, batch)`, as a numpy array."""
        return as_array(self.gap)

    def summary(self) -> list[tuple[str, str]]:
        """Verdict, largest gap, and the layers that are wrong."""
        limit = f"{float(self.gap.max()):.1e} (at most {self.tolerance:g})"
        rows = [("gradient", _WORDS[self.passed]), ("gap", limit), ("by", self.method), ("target", self.target)]
        if self.layers:
            rows.append(("wrong layers", self._wrong_text() or f"none of {len(self.layers)} calls"))
        return rows if self.passed else [*rows, ("advice", self.advice())]

    def _wrong_text(self) -> str:
        """The wrong layers by cause, three of each by name."""
        causes: dict[str, list[str]] = {}
        for one in self.wrong:
            causes.setdefault(one.cause, []).append(one.layer or "the model itself")
        more = {cause: f" and {len(names) - 3} more" * (len(names) > 3) for cause, names in causes.items()}
        return "; ".join(f"{', '.join(names[:3])}{more[cause]} ({cause})" for cause, names in causes.items())

    def profile(self) -> LayerProfile:
        """The gap of every layer's gradient.

        Raises:
            OptionError: if no layer was checked one by one.
        """
        if not self.layers:
            raise OptionError("no layer was checked by itself; give layers=None to check_gradient.")
        names = tuple(dict(one.summary())["layer"] for one in self.layers)
        gaps = torch.tensor([one.gap for one in self.layers], dtype=torch.float64)
        return LayerProfile("gap of the gradient", names, gaps, "1", False, self.method, {"tolerance": self.tolerance})


def _inside(path: str, parent: str) -> bool:
    return path != parent and (not parent or path.startswith(f"{parent}."))


SEVERITIES: Final = ("serious", "worth knowing", "unclear", "fine", "not run")
"""What a check can come to, the worst first: a fault, a limit, no answer, nothing, or no attempt."""

NOT_ASKED = "not asked for"
"""What is said of a check that `checks=` does not name."""

_VERDICTS = {"serious": "FAIL", "worth knowing": "note", "unclear": "unclear", "fine": "pass", "not run": "not run"}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Finding(Result):
    """What one check found.

    Attributes:
        check: what was checked, as a claim: `"the gradient is right"`.
        severity: `"serious"` where an explanation would mislead, `"worth knowing"` where it has a limit, `"fine"`,
            `"unclear"` where the check gave no answer, or `"not run"`.
        measured: the numbers; of a check that was not run the reason.
        means: what they mean.
        do: what to do, with a call; empty where that is nothing.
        passes: forward passes and gradients that the check took, in runs of the batch.
        name: short name of the check, as in `check(checks=...)`.
        in_budget: False for a check that was not run because it takes more passes than were left.
    """

    check: str
    severity: str
    measured: str
    means: str = ""
    do: str = ""
    passes: float = 0.0
    name: str = ""
    in_budget: bool = True

    def summary(self) -> list[tuple[str, str]]:
        """The claim with its verdict, what was measured, what it means, what to do."""
        rows = [(self.check, _VERDICTS[self.severity]), ("measured", self.measured)]
        return rows + [(name, text) for name, text in (("means", self.means), ("do", self.do)) if text]

    def __repr__(self) -> str:
        return "\n".join(self.lines(shutil.get_terminal_size(NO_TERMINAL).columns))

    def lines(self, width: int) -> list[str]:
        """The finding as lines of at most `width` letters; what is fine, or was not run, in short."""
        (claim, verdict), (_, measured), *more = self.summary()
        if self.severity in ("fine", "not run"):
            return textwrap.wrap(f"{claim}: {verdict}, {measured}", width, subsequent_indent="  ")
        found = [f"{claim}: {verdict}"]
        for name, text in (("measured", measured), *more):
            found += textwrap.wrap(f"  {name:8}  {text}", width, subsequent_indent=" " * 12, break_long_words=False)
        return found


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ModelChecks(Result):
    """Checks of a model, an input and a method of attribution: what was found by severity, and what to do.

    Attributes:
        rows: what each check found, in the order of the checks.
        gradient: the check of the gradient in full; None where it was not made.
        agreement: rank correlation of the maps of several methods; None where it was not measured.
        target: what was scored.
        method: the method of attribution that was checked.
        passes: forward passes and gradients that it took, in runs of the batch.
        planned: how many all checks that were asked for were expected to take.
        budget: the most that were allowed.
    """

    rows: tuple[Finding, ...]
    gradient: GradientCheck | None = None
    agreement: Matrix | None = None
    target: str = ""
    method: str = ""
    passes: float = 0.0
    planned: float = 0.0
    budget: float = 0.0

    @property
    def passed(self) -> Verdict:
        """False if a finding is serious, None if a check gave no answer or was not in the budget, True otherwise."""
        found = {row.severity for row in self.rows}
        left_out = not all(row.in_budget for row in self.rows)
        return False if "serious" in found else None if "unclear" in found or left_out else True

    def of(self, severity: str) -> tuple[Finding, ...]:
        """The findings of one severity.

        Raises:
            OptionError: when there is no such severity.
        """
        choose("severity", severity, SEVERITIES)
        return tuple(row for row in self.rows if row.severity == severity)

    def __getitem__(self, name: str) -> Finding:
        """What one check found, by its short name."""
        return {row.name: row for row in self.rows}[choose("check", name, [row.name for row in self.rows])]

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Rows (claim, severity, measured, means, do), the worst first."""
        ordered = [row for severity in SEVERITIES for row in self.of(severity)]
        return [(row.check, row.severity, row.measured, row.means, row.do) for row in ordered]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each check, the worst first.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        return need("pandas", "to_pandas").DataFrame(
            self.table(), columns=("check", "severity", "measured", "means", "do")
        )

    def summary(self) -> list[tuple[str, str]]:
        """The counts by severity, the cost, and every finding with its verdict."""
        counts = ", ".join(f"{len(found)} {severity}" for severity in SEVERITIES if (found := self.of(severity)))
        cost = f"{self.passes:.0f} passes ({self.planned:.0f} planned, at most {self.budget:.0f})"
        rows = [("found", counts), ("target", self.target), ("method", self.method), ("cost", cost)]
        return [*rows, *((row[0], f"{_VERDICTS[row[1]]}, {'; '.join(filter(None, row[2:]))}") for row in self.table())]

    def __repr__(self) -> str:
        width = shutil.get_terminal_size(NO_TERMINAL).columns
        head = "; ".join(f"{name}: {text}" for name, text in self.summary()[:4] if text)
        lines = textwrap.wrap(f"checks: {head}", width, subsequent_indent="  ")
        for severity in SEVERITIES:
            if found := self.of(severity):
                asked = [row for row in found if row.measured != NOT_ASKED]
                lines += ["", severity.upper(), *(line for row in asked for line in row.lines(width))]
            if others := [row.name for row in found if row.measured == NOT_ASKED]:
                lines += textwrap.wrap(f"{NOT_ASKED}: {', '.join(others)}", width, subsequent_indent="  ")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The findings under a heading for each severity: the claim, what was measured, what it means, what to do."""
        head = "".join(_row(pair) for pair in self.summary()[:4])
        parts = [f"<table>{head}</table>"]
        for severity in SEVERITIES:
            if found := self.of(severity):
                rows = "".join(_row((row.check, row.measured, row.means, row.do)) for row in found)
                parts.append(f"<h3>{severity} ({len(found)})</h3><table>{rows}</table>")
        return f"<div>{''.join(parts)}</div>"

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a page with the findings by severity; it has no script.

        Args:
            path: file to write.

        Returns:
            The path written.

        Raises:
            ResultFileError: if the folder does not exist.
        """
        return write_page(path, "Checks of an explanation", self._repr_html_())


def _row(texts: Iterable[str]) -> str:
    """A row of a table in HTML."""
    style = "style='text-align:left;vertical-align:top;padding:2px 8px'"
    first, *others = map(html.escape, texts)
    return f"<tr><th {style}>{first}</th>{''.join(f'<td {style}>{text}</td>' for text in others)}</tr>"
