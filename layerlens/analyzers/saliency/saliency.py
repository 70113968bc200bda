"""Saliency by a method of choice, named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites
from layerlens.analyzers.common.registry import METHODS, Method, method_named
from layerlens.errors import OptionError, UnknownOption, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.progress import showing
from layerlens.results import Attribution, MethodTable
from layerlens.signatures import old_names, public, refuse_unknown
from layerlens.targets.target import Spec

from .unused import check_unused, with_unused

_COMMON = ("model", "x", "target", "forward", "progress")


@public
def saliency(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    method: str = "auto",
    where: Sites = None,
    unused: Literal["error", "zero"] = "error",
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Attribution:
    """Attribute the score to the values of the input, by a method of choice.

    Args:
        method: name of the method; the function of that name says what it computes. `"auto"` takes the one measured as
            most faithful for the kind of input, and says which in `.method` and why in `settings["chosen"]`.
            `saliency.methods()` lists all with their cost, what they need and where they were published.
        where: ... Methods of the CAM family read their layer from it. A `Basis` for its features and its error, which
            are then the values: `result.values["blocks.1 features"]`, laid out as the layer's output.
        unused: what a layer on which the score does not depend gets: an error, or zeros with a warning (`"zero"`), as
            for many layers at once.
        **options: options of the method.

    Returns:
        An `Attribution` shaped like the input, `(batch, token)` for token ids; shaped like the layer's output where a
        layer was named.

    Raises:
        OptionError: when the method is unknown, or cannot attribute to a layer.
        UnknownOption: when the method has no such option.
        InputError: when the input holds nothing to attribute to.
        TargetError: when the target does not fit the output, or no gradient reaches the input.

    Example:
        >>> import torch
        >>> saliency(nn.Linear(3, 2), torch.ones(1, 3), target=0, method="gradient").tensor.shape
        torch.Size([1, 3])
    """
    row = METHODS.get(str(method)) or method_named(method)
    parameters = row.parameters
    known = [name for name in parameters if name not in _COMMON]
    if not options.keys() <= {*known, *old_names(row.function)}:
        unknown = [one for one in options if one not in known]
        if method == "auto" and (having := _having(unknown)):
            more = f" ({', '.join(having[1:6])})" if having[1:] else ""
            raise UnknownOption(
                f"auto() chooses the method, and has no option {', '.join(map(repr, unknown))}: name a method that has,"
                f" such as method={having[0]!r}{more}."
            )
        refuse_unknown(method, unknown, known, ("method", "target", "where"))
    if where is not None and not (isinstance(where, str) and where == "input"):
        place = "where" if "where" in parameters else "layer"
        if place not in parameters:
            raise OptionError(f"method {method!r} attributes to the input only; where={where!r} needs another method.")
        options[place] = where
    check_unused(unused, where, "where" if "where" in parameters else "layer")

    def run(at: Sites, without: list[str]) -> Attribution:
        own = options if unused == "error" else {**options, "where": at}
        for name, value in own.items():  # baselines and windows by layer
            if without and isinstance(value, Mapping):
                own[name] = {key: part for key, part in value.items() if key not in without}
        return row.function(model, x, target=target, forward=forward, **own)

    with showing(progress):
        result = run(where, []) if unused == "error" else with_unused(model, x, target, where, forward, row.name, run)
    return with_cost(result, row)


def _having(options: list[str]) -> list[str]:
    """The methods that have all of some options, integrated gradients first."""
    names = [name for name, row in METHODS.items() if {*options} <= row.parameters.keys()]
    return sorted(names, key=lambda name: name != "integrated_gradients")


def one_method(before: str, now: str) -> str:
    """Return the method of several batches, the first one; `"auto"` may take another for samples of another kind.

    Args:
        before: method of the batches before; empty for none.
        now: method of a batch.

    Warns:
        UserWarning: when they differ.
    """
    if before and now != before:
        warn(
            f"auto took {now} for some samples and {before} for those before, whose values may not compare: give one "
            "method= for all."
        )
    return before or now


def with_cost(result: Attribution, row: Method) -> Attribution:
    """Add the cost of its method to a result that has none; a number that an option sets is the value of the option.

    Example:
        >>> import torch
        >>> METHODS["smooth_grad"].passes
        '25 gradients (samples)'
        >>> saliency(nn.Linear(3, 2), torch.rand(1, 3), method="smooth_grad", samples=4).cost
        '4 gradients (samples)'
    """
    return dataclasses.replace(result, cost=result.cost or cost_with(row.passes, result.settings))


def cost_with(cost: str, options: Mapping[str, Any]) -> str:
    """Return a cost with the number that an option sets, and without "or more" where `max_steps` allows no more.

    Example:
        >>> cost_with("4 forward passes (draws) per token", {"draws": 1})
        '1 forward pass (draws) per token'
        >>> cost_with("50 gradients or more (steps, until it is complete)", {"steps": 8, "max_steps": 8})
        '8 gradients (steps)'
    """
    number = re.match(r"\d+(?= [^(]*\((\w+))", cost)
    value = options.get(number.group(1)) if number else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not number or not whole:
        return cost
    rest = cost[number.end() :]
    if options.get("max_steps") == value:
        rest = rest.replace(" or more (steps, until it is complete)", " (steps)")
    if value == 1:
        rest = re.sub("^ (gradient|forward pass)(?:e?s)", r" \1", rest)
    return f"{value}{rest}"


def known_methods() -> dict[str, Method]:
    """Return every method by name; importing this package registers them."""
    return METHODS


def methods() -> MethodTable:
    """List every method of attribution: its family, its cost in passes, what it needs, where it was published.

    Example:
        >>> print(methods()["gradient"])
        ('gradient', '1 gradient', '', 'Simonyan, Vedaldi & Zisserman 2014')
    """
    return MethodTable({row.name: (row.family, row.passes, row.needs, row.source) for row in METHODS.values()})


saliency.methods = methods  # type: ignore[attr-defined]
