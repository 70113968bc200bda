"""All measures of sensitivity by question or by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from layerlens.analyzers.common.measure_registry import MEASURES, QUESTIONS, Measure, Question
from layerlens.errors import OptionError, UnknownOption, choose, suggestion
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Explained, MethodTable
from layerlens.signatures import old_names, public

_COMMON = ("model", "x", "layers", "forward")
FIRST: dict[Question, str] = {
    "responds_to_input": "jacobian",
    "matters_to_output": "ablate",
    "weights": "weight_sensitivity",
}
"""Question -> the measure that answers it by default."""


@public
def sensitivity(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    question: Question | None = None,
    method: str | None = None,
    forward: Forward | None = None,
    **options: Any,
) -> Explained:
    """Measure how sensitive the model is, by the question asked.

    - `"responds_to_input"`: which layer responds to the input (first measure: `jacobian`, all layers at once).
    - `"matters_to_output"`: which layer the output depends on (`ablate`: a run for each layer).
    - `"weights"`: which layer's parameters the output depends on (`weight_sensitivity`).

    The three rank the layers of one model differently, and none can replace another. `sensitivity.methods()` lists
    every measure with its question, cost and source.

    Args:
        layers: which layers, see `Selection`; None for every distinct activation, see `jacobian`.
        question: the question to answer; None takes that of the method, or `"responds_to_input"` if none is named.
        method: name of a measure, documented at the function of that name; None takes the question's first.
        **options: options of the measure's function.

    Returns:
        What the measure's function returns: a `LayerProfile` in order of execution for the first of each question.

    Raises:
        OptionError: when question or method is unknown, or the method answers another question.
        UnknownOption: when the method has no such option.
        LayerNotFound: when the selection matches no layer that ran.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> sensitivity(net, torch.ones(1, 2), question="responds_to_input").layers
        ('0', '1')
    """
    function = _measure(question, method).function
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in _COMMON]
    name = function.__name__
    for option in options:
        if option not in known and option not in old_names(function):
            raise UnknownOption(
                f"method {name!r} has no option {option!r}.{suggestion(option, known)} Known: {', '.join(known)}."
            )
    if "layers" in parameters:
        return function(model, x, layers=layers, forward=forward, **options)
    if layers is not None:
        raise OptionError(f"method {name!r} does not measure layers; leave layers={layers!r} out.")
    return function(model, x, forward=forward, **options)


def methods() -> MethodTable:
    """List every measure: the question that it answers, its cost in passes, what it needs, where it was published.

    Example:
        >>> methods()["jacobian"][0]
        'responds_to_input'
    """
    return MethodTable({row.name: (row.question, row.cost, row.needs, row.source) for row in MEASURES.values()})


def _measure(question: Question | None, method: str | None) -> Measure:
    if question is not None:
        choose("question", question, QUESTIONS)
    if method is None:
        return MEASURES[FIRST[question or "responds_to_input"]]
    measure = MEASURES[choose("sensitivity method", method, MEASURES)]
    if question not in (None, measure.question):
        fitting = ", ".join(row.name for row in MEASURES.values() if row.question == question)
        raise OptionError(f"method {method!r} answers {measure.question!r}, not {question!r}. For that: {fitting}.")
    return measure


sensitivity.methods = methods  # type: ignore[attr-defined]
