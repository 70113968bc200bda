"""One door to all saliency methods, by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch import nn

from layerlens.analyzers.common.registry import METHODS, Method
from layerlens.errors import OptionError, choose, suggestion
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution, MethodTable
from layerlens.signatures import old_names
from layerlens.targets.target import Spec

_COMMON = ("model", "x", "target", "forward")


def saliency(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    method: str = "integrated_gradients",
    where: Selection = None,
    forward: Forward | None = None,
    **options: Any,
) -> Attribution:
    """How much each input value contributed to the score, by a method of choice.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        method: its name; the function of that name says what it computes. `saliency.methods()` lists all with their
            cost, what they need and where they were published.
        where: None or `"input"` for the input; or a layer, or a call of one (`"rnn#1"`), whose output the score is
            attributed to. Methods of the CAM family read their layer from it.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        **options: those of the method's function.

    Returns:
        An `Attribution` shaped like the input, `(batch, token)` for token ids; shaped like the layer's output where a
        layer was asked for.

    Raises:
        OptionError: when the method is unknown or has no such option.
        InputError: when the input holds nothing to differentiate.
        TargetError: when the target does not fit the output, or no gradient reaches the input.

    Example:
        >>> import torch
        >>> saliency(nn.Linear(3, 2), torch.ones(1, 3), target=0, method="gradient").tensor.shape
        torch.Size([1, 3])
    """
    row = METHODS[choose("saliency method", method, METHODS)]
    function = row.function
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in _COMMON]
    for name in options:
        if name not in known and name not in old_names(function):
            raise OptionError(
                f"method {method!r} has no option {name!r}.{suggestion(name, known)} "
                f"Known: {', '.join(known) or 'none'}."
            )
    if where is not None and not (isinstance(where, str) and where == "input"):
        place = "where" if "where" in parameters else "layer"
        if place not in parameters:
            raise OptionError(f"method {method!r} attributes to the input only; where={where!r} needs another method.")
        options[place] = where
    found = function(model, x, target=target, forward=forward, **options)
    return dataclasses.replace(found, cost=found.cost or row.cost(found.settings))


def known_methods() -> dict[str, Method]:
    """Return every method by name; importing this package registers them."""
    return METHODS


def methods() -> MethodTable:
    """Every method of attribution: its family, its cost in passes, what it needs, where it was published.

    Example:
        >>> print(methods()["gradient"])
        ('gradient', '1 gradient', '', 'Simonyan, Vedaldi & Zisserman 2014')
    """
    return MethodTable({row.name: (row.family, row.passes, row.needs, row.source) for row in METHODS.values()})


saliency.methods = methods  # type: ignore[attr-defined]
