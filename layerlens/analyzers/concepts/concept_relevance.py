"""Concept relevance: which units of a layer carry a prediction, and where in the input each of them looks."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.analyzers.common.samples import or_none
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.analyzers.relevance.conditions import Units
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.analyzers.relevance.rules.rulebook import Rulebook
from layerlens.axes.followed import followed
from layerlens.errors import InputError, SelectionError, check_count
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.model.tensors import refuse_several
from layerlens.results import Relevance
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from .unit_regions import unit_maps


@dataclasses.dataclass(frozen=True)
class Concept:
    """A unit of a layer as a part of a prediction.

    Attributes:
        unit: index of the channel or feature.
        relevance: relevance that passes it, in units of the score.
        share: share of the sum of magnitudes over all units.
    """

    unit: int
    relevance: float
    share: float


ONE_BY_ONE = (
    "concept_relevance runs a row for each unit, and samples influence each other in this model (batch statistics, "
    "attention between samples, a fixed number of samples): give the units one by one, units=[3]."
)


@public
def rank_concepts(
    model: nn.Module,
    x: Input,
    layer: Selection,
    *,
    target: Spec = None,
    sample: int = 0,
    rules: str | Rulebook = "auto",
    through: Mapping[str, Units] | None = None,
    strict: bool = False,
    forward: Forward | None = None,
) -> list[Concept]:
    """Rank the units of a layer by the relevance that passes them, largest magnitude first.

    The relevance of a unit is summed over its places and over the tensors that the layer returned, such as the output
    and the states of an LSTM. `"rnn/h_n"` names one of them, `"cell#2"` a call.

    Args:
        sample: index of the sample in the batch.
        through: layer -> units that relevance may pass, as in `relevance`.
        strict: whether to refuse an operation without a rule.

    Source: Achtibat et al. 2023, Nature Machine Intelligence 5, eq. 4: the sum of the relevance of a channel.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> len(rank_concepts(net, torch.ones(1, 2), "1", target=0))
        3
    """
    matches = one_match(model, layer)
    (path,) = matches
    site = followed(model, as_inputs(x), forward).site(path, min(matches.calls[path] or {0}))
    found = relevance(
        model, x, target=target, layers=matches, rules=rules, through=through, strict=strict, forward=forward
    )
    by_tensor: dict[str, torch.Tensor] = {}
    for name, calls in found.layers.items():
        if len(calls) > 1:
            raise SelectionError(
                f"layer {path!r} ran {len(calls)} times; name one call, '{path}#0' to '#{len(calls) - 1}'."
            )
        tensor = name[len(path) + 1 :]
        maps = unit_maps(site, calls[0], as_inputs(x).batch, tensor)
        by_tensor[tensor] = maps[sample].double().reshape(maps.shape[1], -1).sum(dim=1)
    if len({len(sums) for sums in by_tensor.values()}) > 1:
        refuse_several(path, by_tensor, "with other numbers of units")
    sums = torch.stack(list(by_tensor.values())).sum(dim=0)
    total = float(sums.abs().sum()) or 1.0
    order = sums.abs().argsort(descending=True).tolist()
    return [Concept(unit, float(sums[unit]), float(sums[unit].abs()) / total) for unit in order]


@public
def concept_relevance(
    model: nn.Module,
    x: Input,
    layer: Selection,
    *,
    units: int | Sequence[int] = 5,
    target: Spec = None,
    rules: str | Rulebook = "auto",
    forward: Forward | None = None,
) -> Relevance:
    """Attribute to the input the relevance that passes each of some units of a layer, all units in one pass.

    Args:
        x: ... It holds one sample.
        layer: layer whose units are the concepts; one that nothing goes around, such as a whole residual block.
        units: indices of units; or a number, to take that many with the largest relevance.

    Returns:
        A `Relevance` with one sample per unit; `targets` names the units, and `overlay_grid` draws them.

    Raises:
        InputError: if x holds more than one sample.
        OptionError: if a unit does not exist.

    Source: Achtibat et al. 2023, conditional relevance attributions.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> concept_relevance(net, torch.ones(1, 2), "1", units=[0, 2], target=0).values.shape
        torch.Size([2, 2])
    """
    inputs = as_inputs(x)
    if inputs.batch != 1:
        raise InputError(f"concept_relevance explains one sample at a time; the input holds {inputs.batch}.")
    matches = one_match(model, layer)
    if isinstance(units, int):
        check_count("units", units)
        ranked = rank_concepts(model, inputs, matches, target=target, rules=rules, forward=forward)
        chosen = [concept.unit for concept in ranked[:units]]
    else:
        chosen = list(units)
    with borrowed(model, grad=False):
        single = as_target(target).on(inputs).resolve(inputs.run(model, forward))
    repeated = inputs.rows(torch.zeros(len(chosen), dtype=torch.int64))
    labels = tuple(f"{single.label}, unit {unit}" for unit in chosen)
    rows = Target(lambda output, rows: single(output, torch.zeros_like(rows)), single.label, each=labels)
    through: dict[Any, Units] = {matches.selections()[0]: [[unit] for unit in chosen]}
    if len(chosen) > 1:
        with borrowed(model, grad=False):
            if or_none(lambda: (repeated.run(model, forward),)) is None:
                raise InputError(ONE_BY_ONE)
    found = relevance(model, repeated, target=rows, rules=rules, forward=forward, through=through)
    if len(chosen) > 1:
        first: dict[Any, Units] = {matches.selections()[0]: [[chosen[0]]]}
        _check_rows(found, model, inputs, rows, rules, forward, first)
    return found


def _check_rows(
    found: Relevance, model: nn.Module, x: Inputs, target: Target, rules: Any, forward: Any, through: dict[Any, Units]
) -> None:
    """Check that the first unit gets what it gets alone, and not a share of what the rows of others send to it.

    Raises:
        InputError: when it does not.
    """
    own = dataclasses.replace(target, each=None if target.each is None else target.each[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = relevance(model, x, target=own, rules=rules, forward=forward, through=through)
    pairs = zip(_tensors(found), _tensors(alone), strict=True)
    if not all(nearly_equal(many[:1], one) for many, one in pairs):
        raise InputError(ONE_BY_ONE)


def _tensors(found: Relevance) -> list[torch.Tensor]:
    return list(found.values.values()) if isinstance(found.values, dict) else [found.values]
