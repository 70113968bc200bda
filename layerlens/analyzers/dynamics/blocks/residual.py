"""Which layers are residual blocks: their input is part of the sum that they return."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe

PASSING = (
    "AddBackward0",
    "CloneBackward0",
    "AliasBackward0",
    "ToCopyBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
)
"""Nodes of autograd's graph that return their input, alone or as a part of a sum."""


def residual_calls(model: nn.Module, inputs: Inputs, forward: Forward | None, seed: int) -> set[str]:
    """Find the calls, by name, that returned their first floating-point input plus something else.

    The sum is looked for in autograd's graph of one sample: from the output back, through additions alone, to the
    input. A block that ends in another operation (ReLU, LayerNorm) does not count.
    """
    sample = inputs.rows(torch.arange(1)).map(
        lambda x: x.detach().clone().requires_grad_() if x.is_floating_point() else x
    )
    entered: list[Any] = []

    def before(given: object) -> None:
        entered.append(_edge(first_floating(given)))

    def after(output: object) -> bool:
        given = entered.pop()
        return any(_adds(_edge(tensor), given) for _, tensor in named_tensors(output))

    with borrowed(model), layers_called():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        seed_torch(seed)
        with Probe(model, inputs=before, reduce=after) as record:
            sample.run(model, forward)
    return {f"{call.layer} #{call.index}" if call.index else call.layer for call in record.order if call.output}


def first_floating(given: object) -> torch.Tensor | None:
    """Return the first floating-point tensor among the arguments of a call."""
    return next((tensor for _, tensor in named_tensors(given) if tensor.is_floating_point()), None)


def _edge(tensor: torch.Tensor | None) -> tuple[Any, int] | None:
    if tensor is None or not tensor.requires_grad:
        return None
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _adds(output: tuple[Any, int] | None, given: tuple[Any, int] | None) -> bool:
    """Whether a path of additions leads from an output to an input that is another tensor."""
    if output is None or given is None or output[0] is given[0]:
        return False
    seen: dict[tuple[int, bool], Any] = {}  # holds the nodes, so that no other gets their id
    left = [(output[0], False)]
    while left:
        node, added = left.pop()
        if (id(node), added) in seen or node.name() not in PASSING:
            continue
        seen[id(node), added] = node
        added |= node.name() == "AddBackward0"
        scaled = getattr(node, "_saved_alpha", 1) != 1
        for place, (source, slot) in enumerate(node.next_functions):
            if source is None or (scaled and place):
                continue
            if source is given[0] and slot == given[1]:
                if added:
                    return True
            else:
                left.append((source, added))
    return False
