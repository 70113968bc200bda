"""The measures of sensitivity, by the question that each answers, with what it costs and where it was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

from layerlens.results import Explained
from layerlens.signatures import public

Question = Literal["responds_to_input", "matters_to_output", "weights"]
QUESTIONS: tuple[str, ...] = get_args(Question)

AnyMeasure = TypeVar("AnyMeasure", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        name: the field's name for it, in snake case.
        function: takes `(model, x, ..., *, forward, **options)`.
        question: that it answers.
        cost: in forward passes (F) and backward passes (B).
        needs: what it asks of model and input; empty for any.
        source: where it was published.
    """

    name: str
    function: Callable[..., Explained]
    question: Question
    cost: str
    needs: str
    source: str


MEASURES: dict[str, Measure] = {}
"""Name -> measure, filled by the decorator `measure`."""


def measure(
    *, question: Question, cost: str, source: str, needs: str = "", renamed: Mapping[str, str] | None = None
) -> Callable[[AnyMeasure], AnyMeasure]:
    """Register a function as a measure of sensitivity; see `Measure`.

    Args:
        question: that it answers.
        cost: in forward passes (F) and backward passes (B).
        source: where it was published.
        needs: what it asks of model and input.
        renamed: old name of an option -> its name, see `public`.
    """

    def known(function: AnyMeasure) -> AnyMeasure:
        function = public(renamed=renamed or {})(function)
        name = function.__name__
        MEASURES[name] = Measure(name, function, question, cost, needs, source)
        return function

    return known
