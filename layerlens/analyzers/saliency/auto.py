"""The method that fits an input, by what the benchmarks found faithful on inputs of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from layerlens.analyzers.common.leaves.leaves import Leaf, find_leaves
from layerlens.analyzers.common.registry import METHODS, method
from layerlens.analyzers.relevance.centered_relevance import centered_relevance
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .path.integrated_gradients import integrated_gradients
from .perturbation.leave_one_out import leave_one_out
from .saliency import with_cost

Choice = tuple[str, dict[str, Any], str]
"""Name of a method, its options, and why."""

PASSES = 200
"""Forward passes that leave-one-out may take for a text: what integrated gradients cost with 50 steps and more."""

MEASURED = "epsilon_plus"
"""The rulebook of relevance that was measured on images."""


@method(
    name="auto",
    family="automatic",
    passes="as the method it chooses",
    source="benchmarks/tokens.md, benchmarks/faithfulness.md",
)
def auto(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Attribute by the method that is most faithful on inputs of this kind; the result says which, and why.

    Token ids: `leave_one_out` with 4 draws up to 50 tokens, fewer up to 200; `centered_relevance` beyond
    (docs/language-models.md). Images, by a model with convolutions and no attention: `relevance` by the z+ rule
    (docs/faithfulness.md). All else, and layers: `integrated_gradients`.

    Returns:
        The `Attribution` of the chosen method; `settings["chosen"]` says why it was chosen.

    Raises:
        InputError: when the input holds nothing to attribute to.
        TargetError: when the target does not fit the output.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> auto(net, torch.tensor([[3, 1, 4]]), target=0).method
        'leave_one_out'
    """
    inputs = as_inputs(x)
    at_input = where is None or (isinstance(where, str) and where == "input")
    chosen = (
        choose_method(model, inputs, target=target, forward=forward) if at_input else (_default_choice(where), None)
    )
    (name, options, why), result = chosen
    if result is None:
        result = CHOSEN[name](model, inputs, target=target, forward=forward, **options)
    return dataclasses.replace(with_cost(result, METHODS[name]), settings={**result.settings, "chosen": why})


def choose_method(
    model: nn.Module, inputs: Inputs, *, target: Spec = None, forward: Forward | None = None
) -> tuple[Choice, Attribution | None]:
    """Return the method for an input, its options and why; and its result where it had to be run to find out."""
    choice = _choice(model, inputs, forward)
    if choice[0] != "relevance":
        return choice, None
    result = relevance(model, inputs, target=target, forward=forward)
    return (choice, result) if result.settings["rules"]["name"] == MEASURED else (_default_choice(None), None)


def _choice(model: nn.Module, inputs: Inputs, forward: Forward | None) -> Choice:
    with borrowed(model):
        leaves = find_leaves(model, inputs, forward)
    for fits, chosen in KINDS:
        if fits(leaves):
            return chosen(leaves)
    return _default_choice(None)


def _is_image(leaves: Mapping[str, Leaf]) -> bool:
    return all(leaf.is_input and leaf.value.ndim == 4 and leaf.value.shape[1] in (1, 3) for leaf in leaves.values())


def _for_image(leaves: Mapping[str, Leaf]) -> Choice:
    return "relevance", {}, "an image and a convolutional network: docs/faithfulness.md"


def _is_text(leaves: Mapping[str, Leaf]) -> bool:
    return all(leaf.layer is not None and leaf.value.ndim == 3 for leaf in leaves.values())


def _for_text(leaves: Mapping[str, Leaf]) -> Choice:
    lengths = [leaf.value.shape[1] for leaf in leaves.values()]
    count = sum(lengths)
    why = f"a text of {count} token(s): docs/language-models.md"
    if count > PASSES:
        return "centered_relevance", {}, why
    if min(lengths) < 2:  # no other token to draw
        return "leave_one_out", {"fill": "zero"}, why
    return "leave_one_out", {"draws": max(1, min(4, PASSES // count))}, why


def _default_choice(where: Selection) -> Choice:
    if where is None:
        return "integrated_gradients", {}, "an input of a kind for which no method was measured"
    return "integrated_gradients", {"where": where}, "a layer, for which no method was measured"


CHOSEN: dict[str, Callable[..., Attribution]] = {
    function.__name__: function for function in (centered_relevance, integrated_gradients, leave_one_out, relevance)
}

KINDS: tuple[tuple[Callable[[Mapping[str, Leaf]], bool], Callable[[Mapping[str, Leaf]], Choice]], ...] = (
    (_is_text, _for_text),
    (_is_image, _for_image),
)
"""Which leaves, and what is chosen for them; the first that fits counts."""
