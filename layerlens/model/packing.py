"""Tensors of every type in files: types that not every version of safetensors has are stored as bytes, with a name."""

from __future__ import annotations

import torch

PLAIN = frozenset(
    getattr(torch, name) for name in "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split()
)
"""Types that every version of safetensors has."""


def packed(tensor: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Return a tensor in main memory, contiguous, as it is stored, and the name of its type if that is another one.

    Example:
        >>> packed(torch.ones(2, 3, dtype=torch.complex64))[0].shape
        torch.Size([2, 3, 8])
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.dtype in PLAIN:
        return plain, ""
    return plain.unsqueeze(-1).view(torch.uint8), str(plain.dtype).removeprefix("torch.")


def unpacked(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor from its bytes and the name of its type.

    Example:
        >>> unpacked(*packed(torch.tensor([1.0, 2.0], dtype=torch.float8_e4m3fn))).tolist()
        [1.0, 2.0]
    """
    return tensor.view(type_named(name)).squeeze(-1) if name else tensor


def type_named(name: str) -> torch.dtype:
    """Return a type of torch by its name.

    Raises:
        ValueError: when there is none.
    """
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{str(name)[:40]!r} is not a type of this version of torch")
    return found
