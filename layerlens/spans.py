"""Which operations were made inside which layer: the autograd nodes of each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from .layers import LayerPath, Layers


class Spans:
    """Note, while a `with` block runs a model, which autograd nodes are made during which call of which layer.

    Two hooks for all modules of the process, not two for each of the model's: modules of other models pass unnoticed.

    Args:
        model: any module.

    Attributes:
        found: (first number, number after the last, path) of each call, in the order in which the calls ended.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with Spans(net) as spans:
        ...     _ = net(torch.ones(1, 2))
        >>> [path for _, _, path in spans.found]
        ['0', '1', '']
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: list[tuple[int, int, LayerPath]] = []
        self._paths = {id(module): path for path, module in Layers(model).items()}
        self._starts: list[int] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Spans:
        self._handles.append(register_module_forward_pre_hook(self._enter))
        self._handles.append(register_module_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._paths:
            self._starts.append(nodes_made())

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._paths:
            self.found.append((self._starts.pop(), nodes_made(), self._paths[id(module)]))


def nodes_made() -> int:
    """The sequence number that the next autograd node of this thread will get."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class Running:
    """Know, while a `with` block runs a model, which of its layers is running: the innermost one.

    Args:
        model: any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in Layers(model).items()}
        self._stack: list[LayerPath] = []
        self._handles: list[RemovableHandle] = []

    @property
    def layer(self) -> LayerPath:
        """The path of the innermost layer that is running; `""` for the model itself."""
        return self._stack[-1] if self._stack else ""

    @property
    def now(self) -> bool:
        """Whether the model is running at all: what is done before and after is not its own."""
        return bool(self._stack)

    def __enter__(self) -> Running:
        self._handles.append(register_module_forward_pre_hook(self._start))
        self._handles.append(register_module_forward_hook(self._end, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()

    def _start(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._paths:
            self._stack.append(self._paths[id(module)])

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._paths and self._stack:
            self._stack.pop()
