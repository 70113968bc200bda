"""Tensor parallel models, whose layers compute with the part of their weights that a process holds."""

from __future__ import annotations

import warnings
from collections.abc import Container

import torch.distributed as dist
from torch import nn

from .errors import InputError
from .layers import LayerPath
from .nested import first_tensor
from .placement import is_dtensor, is_fsdp, listed, local, shards
from .record import Record

GATHERED = "Shard the model by FSDP2 (fully_shard) instead, which gathers the weights of each layer as it runs."
"""What to do where parts of layers do not suffice."""


def tensor_parallel(model: nn.Module) -> list[LayerPath]:
    """The layers that compute with a part of their weights: tensor parallel ones, not those that FSDP2 gathers."""
    found: list[LayerPath] = []
    stack: list[tuple[LayerPath, nn.Module, bool]] = [("", model, False)]
    while stack:
        path, module, gathered = stack.pop()
        gathered = gathered or is_fsdp(module)
        if any(shards(parameter) > gathered for parameter in module._parameters.values()):
            found.append(path)
        stack += [
            (f"{path}.{name}" if path else name, child, gathered)
            for name, child in reversed(module._modules.items())
            if child is not None
        ]
    return found


def refuse_parts(model: nn.Module, what: str, instead: str) -> None:
    """Refuse a tensor parallel model, of which each process computes a part.

    Args:
        model: any module.
        what: what cannot be told from a part, for the error.
        instead: what to do.

    Raises:
        InputError: when some layers compute with a part of their weights.
    """
    parts = tensor_parallel(model)
    if parts:
        raise InputError(
            f"{what} cannot be told of a tensor parallel model: {listed(parts)} compute with the part of their "
            f"weights that this process holds, so no process sees all of it. {instead}"
        )


def parts(model: nn.Module) -> dict[LayerPath, tuple[int, int] | None]:
    """The layers that may return a part of their output, this process's, as a plain tensor that does not say so.

    Linear layers split by columns, with (features of the whole, features of this process); what has no parameters and
    stands beside one, such as an activation function, with the same; layers that sequence parallelism made, with None.
    """
    found: dict[LayerPath, tuple[int, int] | None] = {}
    for path in tensor_parallel(model):
        parent, _, name = path.rpartition(".")
        sizes = _columns(model.get_submodule(path))
        if sizes is None:
            continue
        found[path] = sizes
        for other, module in model.get_submodule(parent).named_children():
            if other != name and next(module.parameters(), None) is None:
                found[f"{parent}.{other}" if parent else other] = sizes
    for path, module in model.named_modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if own and all(is_dtensor(parameter) and not shards(parameter) for parameter in own):
            found[path] = None
    return found


def mark_parts(model: nn.Module, record: Record, edited: Container[LayerPath], *, reduced: bool) -> None:
    """Say which layers of a tensor parallel model have shown, or got edited in, the part of this process only.

    Args:
        model: that was probed.
        record: of the probe; gets `parts`.
        edited: the layers that it edited.
        reduced: whether the record holds something else than outputs.
    """
    known = parts(model) if dist.is_available() and dist.is_initialized() else {}
    for path, sizes in known.items():
        calls = record.calls(path) if path in record.selected else []
        shown = [None if reduced else first_tensor(call.value) for call in calls]
        partial = any(sizes is None or value is None or value.shape[-1] == sizes[1] for value in shown)
        if path in edited or partial:
            record.parts = (*record.parts, path)
    if record.parts:
        named = ", ".join(map(repr, record.parts[:4])) + ", ..." * (len(record.parts) > 4)
        warnings.warn(
            f"the model is tensor parallel: what layers {named} return (record.parts has all) is the part of this "
            "process, such as its columns, and units are numbered within it.",
            stacklevel=4,
        )


def _columns(module: nn.Module) -> tuple[int, int] | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or not isinstance(module, nn.Linear):
        return None
    whole, own = int(weight.shape[0]), int(local(weight).shape[0])
    return None if own == whole else (whole, own)
