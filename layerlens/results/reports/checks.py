"""What was checked, and whether it holds: the gradient of torch itself, and the ledger of relevance."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import OptionError, need
from layerlens.model.trees import as_array

from ..base import Result
from ..values.layer_profile import LayerProfile

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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ModelChecks(Result):
    """Checks of a model on an input: what was found, and what to do.

    Attributes:
        rows: (check, verdict, what was found, what to do) in the order of the checks; a verdict is True, False, or
            None where it could not be decided.
        gradient: the check of the gradient in full; None where it could not be made.
    """

    rows: tuple[tuple[str, Verdict, str, str], ...]
    gradient: GradientCheck | None = None

    @property
    def passed(self) -> Verdict:
        """True if every check passed, False if one failed, None otherwise."""
        verdicts = [verdict for _, verdict, _, _ in self.rows]
        return False if False in verdicts else None if None in verdicts else True

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each check.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        return need("pandas", "to_pandas").DataFrame(self.rows, columns=("check", "passed", "found", "advice"))

    def summary(self) -> list[tuple[str, str]]:
        """Every check with its verdict, what was found, and what to do unless that is nothing."""
        return [
            (name, f"{_WORDS[verdict]}, {found}" + (f"; {advice}" if advice and verdict is not True else ""))
            for name, verdict, found, advice in self.rows
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.summary())
