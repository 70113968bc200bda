"""Tracking of calls: which layer is running, and which autograd nodes each call makes."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from .layers import LayerPath


class Spans:
    """Note which autograd nodes are made during which call of which layer, while a `with` block runs a model.

    Two global hooks serve all modules; modules of other models are ignored.

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
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._starts: list[tuple[int, LayerPath]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Spans:
        self._handles.append(register_module_forward_pre_hook(self._enter))
        self._handles.append(register_module_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def layer(self) -> LayerPath:
        """Return the path of the innermost layer that is running; `""` for the model itself or none."""
        return self._starts[-1][1] if self._starts else ""

    def _enter(self, module: nn.Module, args: object) -> None:
        if id(module) in self._paths:
            self._starts.append((nodes_made(), self._paths[id(module)]))

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        if id(module) in self._paths:
            start, path = self._starts.pop()
            self.found.append((start, nodes_made(), path))


def on_enter(
    layers: Mapping[LayerPath, nn.Module],
    enter: Callable[[LayerPath, nn.Module, tuple[Any, ...], dict[str, Any]], None],
) -> list[RemovableHandle]:
    """Call `enter(path, layer, args, kwargs)` before each call of a layer, until the handles are removed."""
    return [
        module.register_forward_pre_hook(functools.partial(enter, path), with_kwargs=True, prepend=True)
        for path, module in layers.items()
    ]


def nodes_made() -> int:
    """Return the sequence number of the next autograd node of this thread."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


@dataclasses.dataclass
class RunningCall:
    """One running call of a layer.

    Attributes:
        layer: path of the layer; `""` is the model itself.
        counts: number of calls of each function in it so far.
    """

    layer: LayerPath
    counts: Counter[str] = dataclasses.field(default_factory=Counter)


class Running:
    """Track the innermost running call of a layer while a `with` block runs a model.

    Calls in other threads are not seen.

    Args:
        model: any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._stack: list[RunningCall] = []
        self._handles: list[RemovableHandle] = []
        self._owner = get_ident()
        self.ran = False
        """Whether a layer or the model was called at all."""

    @property
    def frame(self) -> RunningCall | None:
        """The innermost call; None while the model is not running."""
        return self._stack[-1] if self._stack else None

    def around(self, forward: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """Return `forward` so that its computations outside all layers count as those of the model."""
        if forward is None:
            return None

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._stack.append(RunningCall(""))
            self.ran = True
            try:
                return forward(*args, **kwargs)
            finally:
                self._stack.pop()

        return counted

    def __enter__(self) -> Running:
        self._owner = get_ident()
        self._handles.append(register_module_forward_pre_hook(self._start))
        self._handles.append(register_module_forward_hook(self._end, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()

    def _start(self, module: nn.Module, args: object) -> None:
        if id(module) in self._paths and get_ident() == self._owner:
            self._stack.append(RunningCall(self._paths[id(module)]))
            self.ran = True

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        if id(module) in self._paths and get_ident() == self._owner and self._stack:
            self._stack.pop()
