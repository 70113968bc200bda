"""Signals that leave autograd's graph: detached, read by `.data`, computed under `no_grad`, or taken out of torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from layerlens.model.layers import LayerPath

_LEAVING = {"numpy", "tolist", "item", "__array__", "__float__", "__dlpack__"}
"""Methods of a tensor by which its numbers leave torch; what is made of them cannot be followed."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """A tensor computed from a signal outside autograd's graph.

    Attributes:
        tensor: the tensor, kept so that its identity stays its own.
        how: what cut the signal.
        layer: the innermost layer that was running; `""` outside of any.
    """

    tensor: torch.Tensor
    how: str
    layer: LayerPath


class Cuts:
    """Follow signals out of autograd's graph, call by call of torch.

    Args:
        carries: whether a tensor is a signal that autograd knows.
        layer: returns the innermost layer that is running.

    Attributes:
        found: the tensors that were cut, and what was made of them, by identity.
        left: signals that left torch, as (how, layer).
    """

    def __init__(self, carries: Callable[[torch.Tensor], bool], layer: Callable[[], LayerPath]) -> None:
        self._carries, self._layer = carries, layer
        self.found: dict[int, Cut] = {}
        self.left: dict[tuple[str, LayerPath], None] = {}

    def of(self, value: object) -> Cut | None:
        """Return the cut that `value` comes from; None if there is none."""
        return self.found.get(id(value))

    def reason(self) -> str:
        """Say how and where the signal was cut, as far as that is known."""
        ways = dict.fromkeys((cut.how, cut.layer) for cut in self.found.values()) | self.left
        listed = [f"{how} in {f'layer {layer!r}' if layer else 'the model itself'}" for how, layer in ways]
        return f"it was detached on the way ({', '.join(listed[:3])})" if listed else "it was detached on the way"

    def ways(self) -> list[str]:
        """Return what cut signals, such as `"detach()"`, each once."""
        return list(dict.fromkeys([*(cut.how for cut in self.found.values()), *(how for how, _ in self.left)]))

    def see(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Note what a call of torch cuts; calls made by layerlens itself, such as those of a probe, do not count."""
        if isinstance(result, torch.Tensor) and result.grad_fn is not None and not self.found:
            return
        if not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled():
            return  # inside a custom function, whose result gets a node of its own
        written = args[:1] if result is None and function is torch.Tensor.__setitem__ else (result,)
        made = [part for part in _floating(written) if not self._carries(part)]
        name = getattr(function, "__name__", "")
        leaves = not made and name in _LEAVING
        if not (made or leaves) or name.endswith("_like") or name.startswith("new_"):  # those read a shape alone
            return
        given = _floating(args[:1] if name == "to" or name.endswith("_as") else (*args, *kwargs.values()))
        source = next((part for part in given if self.of(part) or self._carries(part)), None)
        if source is None or _own():
            return
        cut = self.of(source)
        how, layer = (_way(function), self._layer()) if cut is None else (cut.how, cut.layer)
        if leaves:
            self.left[f"{name}()", self._layer()] = None
        for part in made:
            for tensor in (part, part._base):  # what is written into a view is written into its base
                if tensor is not None and not self._carries(tensor):
                    self.found[id(tensor)] = Cut(tensor, how, layer)


def _own() -> bool:
    """Whether layerlens itself made the call of torch that is seen, not by way of another function mode."""
    frame = sys._getframe(3)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back
    return bool(frame.f_globals.get("__name__", "").startswith("layerlens."))


def _way(function: Callable[..., Any]) -> str:
    if function is torch.Tensor.detach:
        return "detach()"
    if getattr(function, "__self__", None) is torch.Tensor.data:
        return ".data"
    if torch.is_inference_mode_enabled():
        return "torch.inference_mode()"
    return getattr(function, "__name__", "an operation") if torch.is_grad_enabled() else "torch.no_grad()"


def _floating(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _floating(value)
        elif isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            found.append(value)
    return found
