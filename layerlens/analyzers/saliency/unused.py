"""Layers that the score does not use: zeros on request, instead of an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites
from layerlens.analyzers.common.scorer import Scorer, backward_pass, scoring
from layerlens.errors import OptionError, choose, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.results import Attribution
from layerlens.targets.target import Spec


def with_unused(
    model: nn.Module,
    x: Input,
    target: Spec,
    where: Sites,
    forward: Forward | None,
    method: str,
    run: Callable[[Sites, list[str]], Attribution],
) -> Attribution:
    """Return the result of a method at some layers, with zeros at those on which the score does not depend.

    Args:
        model: any `torch.nn.Module`.
        x: input of the model.
        target: what is scored.
        where: the layers.
        forward: called instead of the model.
        method: name of the method.
        run: the method at the layers that the score uses, given them and the names of the others.

    Warns:
        UserWarning: when there are such layers; names them.
    """
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        leaves = {name: leaf for name, leaf in scorer.leaves.items() if leaf.place is not None}
        unused = [name for name, leaf in leaves.items() if leaf.place and not _reached(scorer, leaf.place.selection)]
        with torch.no_grad():
            score = scorer(scorer.values())
        zeros = {name: torch.zeros_like(leaf.value) for name, leaf in leaves.items()}
        empty = scorer.attribution(zeros, method=method, settings={"unused": ", ".join(unused)}, score=score)
    if not unused:
        return run(where, [])
    warn(
        f"{method}: the score {empty.target!r} does not depend on layer {', '.join(unused)}, or not in a way that can "
        "be differentiated: its values are zero (unused='zero')."
    )
    used = [leaf.place.selection for name, leaf in leaves.items() if leaf.place and name not in unused]
    if not used:
        return empty
    found = run(used, unused)
    own = (
        found.values
        if isinstance(found.values, dict)
        else {name: found.values for name in leaves if name not in unused}
    )
    return dataclasses.replace(
        found, values={**zeros, **own}, axes=empty.axes, settings={**found.settings, **empty.settings}
    )


def _reached(scorer: Scorer, where: Sites) -> bool:
    """Whether a gradient of the score reaches a layer; of several at once a later one would hide an earlier one."""
    with scoring(scorer.model, scorer.inputs, scorer.target, where=where, forward=scorer.forward) as alone:
        start = alone.start()
        score = alone(start)
        if not score.requires_grad:
            return False
        with backward_pass(alone.model):
            return torch.autograd.grad(score.sum(), list(start.values()), allow_unused=True)[0] is not None


def check_unused(unused: str, where: Sites, place: str) -> None:
    """Check the option `unused`.

    Args:
        unused: its value.
        where: the layers; None for the input.
        place: name of the parameter that takes them.

    Raises:
        OptionError: when it is unknown, or no layer is named by `where`.
    """
    choose("unused", unused, ("error", "zero"))
    if unused == "zero" and (where is None or (isinstance(where, str) and where == "input") or place != "where"):
        raise OptionError(
            "unused='zero' is about layers that the score does not use: name one, where='block.3', and a method that "
            "attributes to its units, such as layer_conductance."
        )
