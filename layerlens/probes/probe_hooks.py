"""What a probe's hooks are made of: how an output is noted, kept and told from a recomputed one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

import torch
from torch import nn

from layerlens.model.layers import LayerPath
from layerlens.model.trees import map_tensors, named_tensors, version

from .call import Stored
from .record import Record

_graph_task = torch._C._current_graph_task_id  # -1 outside of backward passes


PROBING: dict[int, int] = {}
"""Thread -> how many probes are open in it."""


def leave(thread: int) -> None:
    """Note that a probe of this thread is closed."""
    PROBING[thread] -= 1
    if not PROBING[thread]:
        del PROBING[thread]


def foreign(owner: int) -> bool:
    """Whether this call belongs to another thread's probe. A thread without one may be the model's own."""
    thread = get_ident()
    return thread != owner and thread in PROBING


class Note:
    """A hook that notes an output in the least of time: the record makes a call of it when it is asked for.

    Args:
        path: of the layer.
        record: where to note.
        in_full: makes the hook that records what is no plain tensor, given the counter of calls.
    """

    __slots__ = ("_after", "_counter", "_in_full", "_noted", "_owner", "_path")

    def __init__(self, path: LayerPath, record: Record, in_full: Callable[[Iterator[int]], Any]) -> None:
        self._path, self._noted, self._in_full = path, record.noted, in_full
        self._counter = itertools.count(len(record.calls(path)))
        self._owner = get_ident()
        self._after: Any = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook."""
        if type(output) is torch.Tensor and not output.requires_grad and not output.is_inference():
            if _graph_task() == -1 and not foreign(self._owner):
                self._noted.append((self._path, next(self._counter), module, output, output._version))
            return None
        if self._after is None:  # nested, of a subclass, or with a graph
            self._after = self._in_full(self._counter)
        return self._after(module, args, output)


class Stop(BaseException):
    """Ends a forward pass from inside a hook; an `except Exception` of the model does not hold it back."""


def recomputing() -> bool:
    """Whether autograd is running a backward pass: a checkpointed block calls its layers again then."""
    return bool(_graph_task() != -1)


def stored(value: Any, keep: str, graph: bool) -> Any:
    """The value as a policy keeps it: itself with its graph, references, copies, or copies in main memory."""
    if graph:
        return value
    if keep == "reference":
        # inference tensors do not count writes, so an overwritten one could not be told: copy those
        return map_tensors(value, lambda tensor: tensor.detach().clone() if tensor.is_inference() else tensor.detach())
    if keep == "cpu":
        return map_tensors(value, lambda tensor: tensor.detach().to("cpu", copy=True))
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def versions(value: Any) -> Stored:
    """Each tensor inside, with how often it has been written."""
    return tuple((tensor, version(tensor)) for _, tensor in named_tensors(value))
