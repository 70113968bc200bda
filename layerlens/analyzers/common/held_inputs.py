"""Inputs that are held fixed, by name: the option `hold` of methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Hold, Input, Inputs, as_inputs

Method = TypeVar("Method", bound=Callable[..., Any])


def held_input(model: nn.Module, x: Input, hold: Hold, forward: Forward | None) -> Inputs:
    """Return an input of a model, some of it held fixed; see `Inputs.holding`."""
    return as_inputs(x).named_for(model, forward).holding(hold)


def with_hold(function: Method, *, changes_inputs: bool = False) -> Method:
    """Give a method `(model, x, ...)` the option `hold`, which its input then carries.

    Args:
        function: the method.
        changes_inputs: whether it changes the inputs also where it attributes to a layer.

    Raises:
        OptionError: when it attributes to a layer.
    """
    signature = inspect.signature(function)
    if "hold" in signature.parameters:
        return function
    option = inspect.Parameter(
        "hold", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | int | list[str | int] | None"
    )
    parameters = list(signature.parameters.values())
    last = next((place for place, one in enumerate(parameters) if one.name == "forward"), len(parameters))

    @functools.wraps(function)
    def run(model: nn.Module, x: Input, *args: Any, hold: Hold = None, **options: Any) -> Any:
        where = options.get("where")
        if hold is None:
            return function(model, x, *args, **options)
        if not (changes_inputs or where is None or (isinstance(where, str) and where == "input")):
            raise OptionError(f"hold= is for inputs, but where={where!r} attributes to a layer: leave hold= out.")
        return function(model, held_input(model, x, hold, options.get("forward")), *args, **options)

    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters[:last], option, *parameters[last:]]
    )
    return cast(Method, run)
