"""The values that went into an operation and came out of it, by the autograd node that it made.

Autograd saves what its derivatives need; a difference quotient needs input and output both. A dispatch mode sees them,
whatever Python or C++ called the operation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens.model.call_tracking import nodes_made
from layerlens.model.writes import tensors_written


@dataclasses.dataclass(eq=False)
class OperationCall:
    """One call of an operation.

    Attributes:
        function: the aten operator.
        args: positional arguments, tensors detached.
        kwargs: keyword arguments.
        varied: positions in `args` of the tensors that need a gradient.
        results: what it returned, detached.
    """

    function: Any
    args: list[Any]
    kwargs: dict[str, Any]
    varied: tuple[int, ...]
    results: list[torch.Tensor]

    @property
    def x(self) -> torch.Tensor:
        """The (first) argument that needs a gradient."""
        value: torch.Tensor = self.args[self.varied[0]]
        return value

    @property
    def y(self) -> torch.Tensor:
        """The (first) result."""
        return self.results[0]

    def constants(self) -> list[Any]:
        """Every argument that needs no gradient."""
        return [value for place, value in enumerate(self.args) if place not in self.varied] + list(self.kwargs.values())

    def option(self, name: str) -> Any:
        """Return the argument of that name, given or by default.

        Raises:
            KeyError: when the operation has no such argument.
        """
        for place, argument in enumerate(self.function._schema.arguments):
            if argument.name == name:
                return self.args[place] if place < len(self.args) else self.kwargs.get(name, argument.default_value)
        raise KeyError(name)

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """The (first) result of the operation on another x."""
        args = [x if place == self.varied[0] else value for place, value in enumerate(self.args)]
        result = self.function(*args, **self.kwargs)
        first: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return first


@functools.cache
def key(name: str) -> str:
    """A name that an operator and its node share: `native_layer_norm` and `NativeLayerNorm`."""
    return name.replace("_", "").lower()


class OperationCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keep the calls of some operations during a forward pass; values that are overwritten later are copied first.

    Args:
        wanted: keys of the operations.
    """

    def __init__(self, wanted: Container[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wanted = wanted
        self._found: dict[int, OperationCall] = {}
        self._passing: dict[Any, bool] = {}
        self._cloned = -1  # number of the last node that copied a tensor
        self._held: dict[int, list[tuple[list[Any], int]]] = {}  # storage -> where its tensors are kept

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # borrowed models are never traced, and the guard would import the whole compiler, for seconds

    def of(self, node: Any, op: str) -> OperationCall | None:
        """The call that made `node`, whose operation is `op`; None when it was not kept."""
        call = self._found.get(int(node._sequence_nr()))
        return call if call is not None and key(call.function.overloadpacket.__name__) == key(op) else None

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """OperationCall `function` and keep what it was given and gave."""
        kwargs = kwargs or {}
        if self._passed(function):
            return function(*args, **kwargs)
        varied = tuple(place for place, value in enumerate(args) if _varies(value))
        number = nodes_made() - 1  # autograd made the node just before it called this operation
        if function is torch.ops.aten.clone.default and varied:
            self._cloned = number
        elif function._schema.is_mutable and number == self._cloned:
            number -= 1  # and then kept a copy of what the operation is about to overwrite
        new = bool(varied) and torch.is_grad_enabled() and number not in self._found
        wanted = new and key(function.overloadpacket.__name__) in self.wanted
        kept = [_detached(value) for value in args] if wanted else []
        if wanted:
            self._hold(kept)
        if function._schema.is_mutable:
            self._rescue(function, args, kwargs)
        result = function(*args, **kwargs)
        if wanted:
            parts = result if isinstance(result, (tuple, list)) else (result,)
            results = [part.detach() for part in parts if isinstance(part, torch.Tensor)]
            self._hold(results)
            options = {name: _detached(value) for name, value in kwargs.items()}
            self._found[number] = OperationCall(function, kept, options, varied, results)
        return result

    def _passed(self, function: Any) -> bool:
        """Whether nothing is kept of an operation, and it overwrites nothing that was."""
        known = self._passing.get(function)
        if known is None:
            copies = function is torch.ops.aten.clone.default
            wanted = key(function.overloadpacket.__name__) in self.wanted
            known = self._passing[function] = not (wanted or copies or function._schema.is_mutable)
        return known

    def _hold(self, values: list[Any]) -> None:
        for place, value in enumerate(values):
            if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                self._held.setdefault(value.untyped_storage().data_ptr(), []).append((values, place))

    def _rescue(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what is kept of the tensors that `function` is about to write into."""
        for value in tensors_written(function, args, kwargs):
            if value.layout is torch.strided:
                copies: dict[Any, torch.Tensor] = {}  # a result is kept as the input of the next operation as well
                for values, index in self._held.pop(value.untyped_storage().data_ptr(), []):
                    kept = values[index]
                    view = kept.data_ptr(), kept.shape, kept.stride(), kept.dtype
                    values[index] = copies[view] if view in copies else copies.setdefault(view, kept.clone())


def _varies(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _detached(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_detached(part) for part in value]
    return value.detach() if isinstance(value, torch.Tensor) else value
