"""Inputs of whole numbers that are indices: they say which rows of another input are read or written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layerlens.axes.steps import OfTensors
from layerlens.inputs.inputs import Forward, Inputs

_INDEX = ("index", "indices")
"""Names that torch gives to arguments that are indices."""


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows from which inputs each tensor is computed, and notes those that index what is computed from others."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: OfTensors[frozenset[str]] = OfTensors()
        self.indices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | (kwargs or {})
        index = self._origins([value for name, value in given.items() if name in _INDEX], whole=True)
        every = self._origins([value for name, value in given.items() if name not in _INDEX]) | index
        self.indices |= index if every - index else frozenset()
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if every and isinstance(tensor, torch.Tensor):
                self.of[tensor] = every
        return output

    def _origins(self, values: list[Any], whole: bool = False) -> frozenset[str]:
        tensors = [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]
        if whole:  # a mask or a truth value is not an index
            tensors = [one for one in tensors if one.dtype in (torch.int64, torch.int32)]
        return frozenset().union(*(self.of.get(one) or () for one in tensors))


def indices(model: nn.Module, inputs: Inputs, forward: Forward | None) -> set[str]:
    """Return the inputs by which the model reads rows of what it computes from other inputs, or adds to them.

    Such as the edges of a graph and the lengths of sequences; an id that is looked up in the model's own table is none.
    The model is run once.
    """
    mode = _Origins()

    def run(borrowed: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for name, tensor in Inputs(args, kwargs).tensors().items():
            mode.of[tensor] = frozenset([name])
        return borrowed(*args, **kwargs) if forward is None else forward(borrowed, *args, **kwargs)

    vars(run)["__wrapped__"] = type(model).forward if forward is None else forward  # its signature, for errors
    with torch.no_grad(), mode:
        inputs.run(model, run)
    return mode.indices
