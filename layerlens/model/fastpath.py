"""Torch's fused and compiled paths, switched off so that layers and operations are called."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def layers_called() -> Iterator[None]:
    """Switch off torch's fused transformer path, which computes a block without calling its layers.

    `flex_attention`, which compiles itself, runs as written.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    flex = "torch.nn.attention.flex_attention" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if flex else contextlib.nullcontext()
    try:
        with eager:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
