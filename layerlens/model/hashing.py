"""SHA-256 of tensors and of the weights of a model: whether two runs saw the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .placement import whole


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The SHA-256 of tensors: of the name, type, shape and bytes of each, in order.

    Tensors without bytes of their own (on the meta device) count by name, type and shape.

    Example:
        >>> digest([("a", torch.zeros(2))]) == digest([("a", torch.zeros(2))]) != digest([("b", torch.zeros(2))])
        True
    """
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            found.update(_bytes(tensor.detach()))
    return found.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data if plain.numel() else b""


def weights_digest(model: torch.nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, wherever they lie.

    Weights that accelerate holds elsewhere are read there. Of weights spread over processes all must ask together.
    """
    return digest(_weights(model))


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            name = names.pop(id(parameter), None)
            if name is not None and parameter is not None and not torch.nn.parameter.is_lazy(parameter):
                yield name, whole(module, own)
    yield from model.named_buffers()
