"""Tensor parallel models, whose layers compute with the part of their weights that a process holds."""

from __future__ import annotations

from torch import nn

from layerlens.errors import InputError

from .layers import LayerPath
from .placement import is_dtensor, is_fsdp, listed, local, shards

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


def _columns(module: nn.Module) -> tuple[int, int] | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or not isinstance(module, nn.Linear):
        return None
    whole, own = int(weight.shape[0]), int(local(weight).shape[0])
    return None if own == whole else (whole, own)
