"""Multipliers times the changes of parts from another input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.graph.operation import Node
from layerlens.errors import InputError
from layerlens.inputs.inputs import Inputs
from layerlens.model.borrowed import freeze, restore_generators

from ..differences.compare import compare
from ..differences.pairs import Method
from ..layer_relevance import Folded
from .sites import Sites

if TYPE_CHECKING:
    from .contributions import OpenedParts

_METHOD = Method("contributions", "other", "Give multipliers='rules'.", "multipliers='rules'", "")
_SHAPES = (
    "{what} has {here} on x, and {there} on other: give an input of the same shapes, for texts of the same number of "
    "tokens."
)


def changes_by_rules(
    opened: OpenedParts, other: Inputs, multipliers: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """Return multiplier times change of each part of each site, `(parts, batch)`, from one forward pass.

    Args:
        opened: the parts of a borrowed model.
        other: the other input.
        multipliers: multiplier of each site under the rules.

    Raises:
        InputError: when a layer has no values of the same shape there.
    """
    model = opened.recording.model
    there = Sites(model, *opened.outputs.asked)
    restore_generators(opened.generators)  # the same noise as on x
    with torch.no_grad(), there:
        other.run(model, opened.forward)
    return _changes(opened, there, multipliers, opened.bookkeeper.folded)


def changes_by_differences(opened: OpenedParts, x: Inputs, other: Inputs) -> list[torch.Tensor]:
    """Return the same by multipliers of differences, from two forward passes and a backward pass.

    Raises:
        InputError: when the other input has other tensors or shapes, or the model takes another route on it.
    """
    model, target = opened.recording.model, opened.recording.scores.targets[0]
    here, there = (Sites(model, *opened.outputs.asked) for _ in range(2))
    freeze(model)
    restore_generators(opened.generators)

    def scorer(of: Inputs) -> Scorer:
        return Scorer(model, of, target, forward=opened.forward, whole="never")

    def reference() -> Scorer:
        second = scorer(other)
        if first.leaves.keys() != second.leaves.keys():
            names = " and ".join(", ".join(map(repr, one.leaves)) or "nothing" for one in (first, second))
            raise InputError(f"x and other= must have the same inputs, got {names}.")
        for name, leaf in first.leaves.items():
            own, its = tuple(leaf.value.shape), tuple(second.leaves[name].value.shape)
            if own != its:
                raise InputError(_SHAPES.format(what=f"input {name!r}", here=own, there=its))
        return second

    first = scorer(x)
    found = compare(first, reference, None, outputs=(here, there), method=_METHOD)
    arrived = {(one.layer, one.index, one.tensor): g for one, g in zip(here.with_edges(), found.at, strict=True)}
    return _changes(opened, there, [arrived.get(site.key) for site in opened.sites], {})


def _changes(
    opened: OpenedParts,
    there: Sites,
    multipliers: Sequence[torch.Tensor | None],
    folded: Mapping[Node, Folded | None],
) -> list[torch.Tensor]:
    found = []
    for site, value, g in zip(opened.sites, there.values_of(opened.sites), multipliers, strict=True):
        if value is None:
            own = tuple(site.output.value.shape)
            raise InputError(_SHAPES.format(what=f"layer {site.name!r}", here=own, there="nothing of that shape"))
        none = torch.zeros(site.size, opened.bookkeeper.batch, dtype=torch.float64)
        found.append(none if g is None else site.difference(g, value, folded, opened.bookkeeper.batch).cpu())
    return found
