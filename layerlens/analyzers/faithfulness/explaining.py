"""Functions that explain, by name or given, and their maps as rows of numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.common.statistics import sample_range
from layerlens.analyzers.saliency.saliency import saliency
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .controls import control_maps
from .metrics.place_ranks import fitted

Explain = Callable[..., Attribution]
"""`(model, x, target=..., forward=...) -> Attribution`."""


def as_explain(method: str | Explain, options: Mapping[str, Any]) -> Explain:
    """Return the function of a method with its options.

    Raises:
        OptionError: when it is neither a name nor a function.
    """
    if isinstance(method, str):
        return functools.partial(saliency, method=method, **options)
    if not callable(method):
        raise OptionError(
            f"the metric explains again, so it needs a method and not a map, got {describe(method)}: give the name of "
            'one, such as "gradient", or a function (model, x, target=..., forward=...) -> Attribution.'
        )
    return functools.partial(method, **options)


def control_explain(control: str, seed: int) -> Explain:
    """Return the function that explains every input by a control."""

    def explain(model: nn.Module, x: Input, *, target: Spec, forward: Forward | None = None) -> Attribution:
        with borrowed(model, grad=False), torch.no_grad():
            scorer = Scorer(model, x, target, forward=forward)
            score = scorer(scorer.values())
        values = {}
        for name, own in control_maps(scorer.leaves, seed)[control].items():
            leaf = scorer.leaves[name]
            share = fitted(leaf, own)
            values[name] = share.expand(leaf.value.shape) * (share.numel() / leaf.value.numel())
        return scorer.attribution(values, method=control, settings={"seed": seed}, score=score)

    return explain


def floating_inputs(scorer: Scorer, what: str) -> dict[str, torch.Tensor]:
    """Return the leaves by name, which `what` changes a little.

    Raises:
        InputError: when one holds token ids or whole numbers.
    """
    found = {name: leaf.value for name, leaf in scorer.leaves.items() if leaf.is_input}
    other = [name for name in scorer.leaves if name not in found or not found[name].is_floating_point()]
    if other:
        raise InputError(
            f"{what} changes inputs a little, and {other[0]!r} holds ids or whole numbers: it needs floating-point "
            "inputs, such as x.float() or inputs_embeds=..."
        )
    return found


def flat_map(attribution: Attribution) -> torch.Tensor:
    """Return the values of a map, those of several inputs side by side, `(batch, values)`, in float64."""
    values: Any = attribution.values
    parts = values.values() if isinstance(values, Mapping) else [values]
    return torch.cat([part.detach().double().reshape(len(part), -1) for part in parts], dim=1)


def moved(inputs: Inputs, names: Iterable[str], share: float, draw: Callable[[Sequence[int]], torch.Tensor]) -> Inputs:
    """Return inputs with a drawn change of some, the same for all samples, times a share of the range of each sample.

    Args:
        inputs: the inputs.
        names: names of those that change.
        share: size of the change, as a share of the range of each sample.
        draw: draws a tensor of a shape.
    """
    changed = {}
    for name in names:
        value = inputs.tensors()[name].detach()
        changed[name] = value + share * sample_range(value) * draw(value.shape[1:]).to(value)
    return inputs.replace(changed)
