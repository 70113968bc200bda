"""Values as short JSON: the same in every process."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layerlens.model.hashing import digest
from layerlens.model.packing import PLAIN
from layerlens.model.trees import describe

MOST = 64
"""Numbers of a tensor that are written out; larger tensors get a digest."""
LONG = 400
"""Characters that are written out; longer texts get a digest."""


def text_digest(text: str) -> str:
    """Return the first digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Return a number or a text; long texts are cut, with a digest."""
    if isinstance(value, (bytes, complex)):
        value = repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{value[:40]} {text_digest(value)}" if isinstance(value, str) and len(value) > LONG else value


def shortened(described: Any) -> Any:
    """Return a description, or its digest if it is long."""
    text = str(described)
    return described if len(text) <= LONG else text_digest(text)


def described_tensor(tensor: torch.Tensor) -> Any:
    """Return the numbers of a small tensor, or a digest."""
    plain = tensor.dtype in PLAIN and tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested
    if plain and tensor.numel() <= MOST and bool(tensor.isfinite().all()):
        return tensor.tolist()
    return f"{describe(tensor)}, SHA-256 {digest([('', tensor)])[:16]}"


def structure(model: nn.Module) -> str:
    """Return the modules of a model and their options, as text without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))


def added(code: Mapping[str, str], name: str, text: str) -> dict[str, str]:
    """Return an entry under its name, or with a number after it when another has the name."""
    number, key = 1, name
    while key in code and code[key] != text:
        number += 1
        key = f"{name} #{number}"
    return {key: text}
