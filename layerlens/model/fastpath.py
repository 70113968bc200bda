"""Torch's fused transformer path, switched off so that layers are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def layers_called() -> Iterator[None]:
    """Switch off torch's fused transformer path, which computes a block without calling its layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
