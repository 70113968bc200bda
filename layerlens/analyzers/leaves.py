"""Where gradients start: the floating-point inputs, or the embeddings of token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InputError, LayerNotFound
from ..inputs import Inputs
from ..layers import LayerPath
from ..nested import describe
from ..probe import Edit, Probe
from ..record import Call


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor from which a score is differentiated.

    Attributes:
        value: the tensor, detached.
        layer: the embedding layer whose output it is; None for an input itself.
        call: which of that layer's calls.
    """

    value: torch.Tensor
    layer: LayerPath | None = None
    call: int = 0


def find_leaves(model: nn.Module, inputs: Inputs, forward: Callable[..., Any] | None) -> dict[str, Leaf]:
    """The leaves of a run of `model` on `inputs`, by input name.

    Floating-point inputs are leaves, except those whose name ends in `mask`. Token ids cannot carry a gradient: their
    leaf is the output of the embedding layer that they feed, for which the model is run once. When several integer
    inputs feed embeddings of different sizes (words and token types), the largest vocabulary is the one meant.

    Raises:
        InputError: when there is neither.
    """
    leaves = {name: Leaf(x.detach()) for name, x in inputs.floating().items() if not name.endswith("mask")}
    ids = {name: x for name, x in inputs.tensors().items() if x.dtype in (torch.int64, torch.int32) and x.ndim}
    if not ids:
        if leaves:
            return leaves
        kinds = ", ".join(f"{name} {describe(x)}" for name, x in inputs.tensors().items())
        raise InputError(f"gradients need a floating-point input or token ids; got {kinds}. Try x.float().")
    embeddings = _embedding_calls(model, inputs, forward, ids)
    if not embeddings and not leaves:
        raise InputError(
            f"no nn.Embedding of {type(model).__name__} is fed by {', '.join(ids)}, so gradients have no place to "
            "start. Pass floating-point inputs, for example inputs_embeds=..., instead of token ids."
        )
    return leaves | embeddings


def _embedding_calls(
    model: nn.Module, inputs: Inputs, forward: Callable[..., Any] | None, ids: Mapping[str, torch.Tensor]
) -> dict[str, Leaf]:
    probe: Probe
    try:
        probe = Probe(model, nn.Embedding, inputs=True)
    except LayerNotFound:
        return {}
    with torch.no_grad(), probe as record:
        inputs.run(model, forward)
    fed = [(name, call) for call in record.order if (name := _which_input(call, ids)) is not None]
    if not fed:
        return {}
    sizes = {call.layer: len(model.get_submodule(call.layer).weight) for _, call in fed}  # type: ignore[arg-type]
    largest = max(sizes.values())
    leaves: dict[str, Leaf] = {}
    for name, call in fed:
        if sizes[call.layer] == largest and name not in leaves:
            leaves[name] = Leaf(call.output, call.layer, call.index)
    return leaves


def _which_input(call: Call, ids: Mapping[str, torch.Tensor]) -> str | None:
    args, kwargs = call.inputs
    given = [*args, *kwargs.values()]
    for name, tensor in ids.items():
        if given and given[0].numel() == tensor.numel() and torch.equal(given[0].flatten(), tensor.flatten()):
            return name
    return None


def substitute(leaves: Mapping[str, Leaf], values: Mapping[str, torch.Tensor]) -> dict[LayerPath, Edit]:
    """Edits for a `Probe` that put `values` in the place of embedding outputs."""
    replaced: dict[LayerPath, dict[int, torch.Tensor]] = {}
    for name, leaf in leaves.items():
        if leaf.layer is not None:
            replaced.setdefault(leaf.layer, {})[leaf.call] = values[name]

    def edit(by_call: dict[int, torch.Tensor]) -> Edit:
        calls = iter(range(1 << 62))

        def exchange(output: Any) -> Any:
            value = by_call.get(next(calls))
            return output if value is None else value.clone()  # a copy: the model may write into it

        return exchange

    return {layer: edit(by_call) for layer, by_call in replaced.items()}
