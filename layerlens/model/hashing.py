"""SHA-256 of tensors and of the weights of a model, to check that two runs used the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .placement import whole


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 of the name, type, shape and bytes of each tensor, in order.

    Tensors without bytes (on the meta device) count by name, type and shape.

    Example:
        >>> digest([("a", torch.zeros(2))]) == digest([("a", torch.zeros(2))]) != digest([("b", torch.zeros(2))])
        True
    """
    sha256 = hashlib.sha256()
    for name, tensor in tensors:
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            sha256.update(_bytes(tensor.detach()))
    return sha256.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def weights_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers.

    Weights that accelerate keeps elsewhere are read there. For sharded weights all processes must call this together.
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
