"""Tensors that are kept by reference until the model is about to write into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from layerlens.model.trees import unmapped


class HeldTensors:
    """What to copy before the memory of a tensor is overwritten."""

    def __init__(self) -> None:
        self._held: dict[int, list[Callable[[], None]]] = {}

    def hold(self, tensor: torch.Tensor, copy: Callable[[], None]) -> None:
        """Have `copy` called before the model writes into the memory of a tensor."""
        if _in_memory(tensor):
            self._held.setdefault(unmapped(tensor).untyped_storage().data_ptr(), []).append(copy)

    def before_writing(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy what is held of the memory of tensors that the model is about to write into."""
        for tensor in tensors if self._held else ():
            if _in_memory(tensor):
                for copy in self._held.pop(unmapped(tensor).untyped_storage().data_ptr(), ()):
                    copy()


def _in_memory(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
