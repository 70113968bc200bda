"""What autograd's graph does not keep: constants that were added, and inputs of functions that save their result only.

A torch function mode sees every torch call of the forward pass at about a microsecond each. Calls that run many
operations in one step of C++ or of torch's own Python (recurrent layers, attention) are watched from inside
by a dispatch mode, which costs more, so it is on during those only. The model is not touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens.model.borrowed import primitive_kernels
from layerlens.model.call_tracking import nodes_made
from layerlens.model.checkpointing import Once, aside, pack_hooks

from .added_constants import Constant, put
from .function_table import ATEN, FUNCTIONS, note_input
from .graph import Graph
from .joins_and_choices import Note
from .out_of_place import out_of_place

RECURRENT: set[Any] = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
WATCHED: set[Any] = {
    F.scaled_dot_product_attention,
    torch.lstm_cell,
    torch.gru_cell,
    torch.rnn_tanh_cell,
    torch.rnn_relu_cell,
}

# Functions of torch that are written in Python and add nothing: called as they are.
_PLAIN: set[Any] = {
    F.relu, F.relu6, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.elu, F.selu, F.celu, F.leaky_relu, F.glu, F.softmax,
    F.log_softmax, F.dropout, F.dropout2d, F.max_pool2d, F.max_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool2d, F.interpolate, F.embedding, F.sigmoid, F.tanh, F.hardtanh, F.threshold,
    torch.einsum, torch.split, torch.Tensor.split, torch.Tensor.unflatten, torch.Tensor.__len__, torch.Tensor.__iter__,
    torch.Tensor.__hash__, torch.Tensor.register_hook, torch.Tensor.detach, torch.Tensor.__repr__,
}  # fmt: skip


@dataclasses.dataclass
class Notes:
    """What was seen, by the sequence number of the node that made the result.

    Attributes:
        constants: constants that an operation added.
        inputs: the input of an operation that saves its result only.
        time_major: numbers of nodes inside calls whose axis order is (time, batch, ...).
        detached: signals that were detached, and what was made of them, by identity.
        cuts: numbers of the nodes that add one of them.
        copying: whether constants are copied, for FSDP2 frees parameters between the passes of their layer.
    """

    constants: dict[int, list[Constant]] = dataclasses.field(default_factory=dict)
    inputs: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    time_major: list[range] = dataclasses.field(default_factory=list)
    detached: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    cuts: list[int] = dataclasses.field(default_factory=list)
    copying: bool = False


class Recorder(TorchFunctionMode):
    """Watch the torch calls of a forward pass; see the module's text.

    Args:
        graph: knows which tensors carry relevance.
        noting: whether to note what is seen; False only gives writes into views, and the steps of recurrent layers,
            nodes of their own.
        copying: whether to copy the constants that are noted.
    """

    def __init__(self, graph: Graph, *, noting: bool = True, copying: bool = False) -> None:
        super().__init__()
        self.graph, self.notes, self._noting = graph, Notes(copying=copying), noting

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `function` and note what it adds."""
        kwargs = kwargs or {}
        hooks = pack_hooks()
        if (
            hooks is not None
        ):  # a checkpoint hands each saved tensor out once, and rules read it before the backward pass
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Once(tensor, hooks, self._again), Once.read):
                result = self._call(function, args, kwargs)
        else:
            result = self._call(function, args, kwargs)
        if not self._noting:
            return result
        known = self.notes.detached
        cut = function is torch.Tensor.detach and self.graph.carries(args[0])
        if cut or (known and any(id(part) in known for part in _flat(args))):
            own = sys._getframe(1).f_globals.get("__name__", "").startswith("layerlens.")  # probes detach as well
            if isinstance(result, torch.Tensor) and not result.requires_grad and not own:
                known[id(result)] = result
        return result

    def _again(self) -> Recorder:
        """For a block that is computed again: the same operations, nothing noted."""
        return Recorder(self.graph, noting=False)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rewritten = out_of_place(function, args, kwargs)
        if rewritten is not None:
            return args[0].copy_(self._call(*rewritten))
        if function is torch.Tensor.__setitem__:
            return self._write(*args)
        note = FUNCTIONS.get(_as_called(function)) if self._noting else None
        if note is not None:
            seen = _before_overwriting(self.graph, note, function, args)
            result = function(*args, **kwargs)
            tensor = result[0] if isinstance(result, tuple) else result
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                with aside():
                    note(self.notes, tensor.grad_fn._sequence_nr(), self.graph, tensor, *seen, **kwargs)
            return result
        if function in RECURRENT or (self._noting and function in WATCHED):
            return self._inside(function, args, kwargs)
        if self._noting and isinstance(function, types.FunctionType) and function not in _PLAIN:
            return self._inside(function, args, kwargs)
        return function(*args, **kwargs)

    def _write(self, tensor: torch.Tensor, index: Any, value: Any) -> None:
        """`tensor[index] = value`, where one side may be a constant."""
        gradient = tensor.requires_grad or (isinstance(value, torch.Tensor) and value.requires_grad)
        if tensor._is_view() and gradient and torch.is_grad_enabled():
            whole = tensor.clone()
            self._write(whole, index, value)
            tensor.copy_(whole)
            return
        before = tensor.detach().clone() if tensor.grad_fn is None and tensor.is_floating_point() else None
        tensor[index] = value
        if tensor.grad_fn is None or not self._noting:
            return
        number = tensor.grad_fn._sequence_nr()
        put(self.notes, number, self.graph, value, 1, "constant written", lambda gradient: gradient[index])
        if before is not None and bool(before.any()):  # what a constant tensor held elsewhere
            before[index] = 0
            put(self.notes, number, self.graph, before, 1, "constant kept")

    def _inside(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `function` watched operation by operation, and in primitives where a fused kernel would hide them."""
        start = nodes_made()
        primitive = primitive_kernels() if function in RECURRENT else contextlib.nullcontext()
        with primitive, _Inside(self.graph, self.notes) if self._noting else contextlib.nullcontext():
            result = function(*args, **kwargs)
        if function in RECURRENT or function is F.multi_head_attention_forward:
            self.notes.time_major.append(range(start, nodes_made()))
        return result


def _as_called(function: Any) -> Any:
    """The function of torch that an operator of aten is, as the modules of torch.export call them; else `function`."""
    if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
        return function
    name = function.overloadpacket.__name__
    homes = (home for home in (torch, torch._C._nn, torch.Tensor) if hasattr(home, name))
    return getattr(next(homes, None), name, function)


class _Inside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, graph: Graph, notes: Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.notes = graph, notes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # borrowed models are never traced, and the guard would import the whole compiler, for seconds

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        note = ATEN.get(function.overloadpacket)
        seen = args if note is None else _before_overwriting(self.graph, note, function.overloadpacket, args)
        number = nodes_made() - 1  # autograd made the node just before it called this operation
        result = function(*args, **kwargs)
        if note is not None and any(isinstance(part, torch.Tensor) and part.requires_grad for part in _flat(args)):
            tensor = result[0] if isinstance(result, tuple) else result
            with aside():
                note(self.notes, number, self.graph, tensor, *seen, **kwargs)
        return result


def _before_overwriting(graph: Graph, note: Note, function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with a copy of the first where `function` is about to write into what will be noted."""
    name = getattr(function, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    if not (in_place and args and isinstance(args[0], torch.Tensor)):
        return args
    if note is not note_input and graph.carries(args[0]):
        return args  # a signal, not a constant
    return (args[0].detach().clone(), *args[1:])


def _flat(args: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    for part in args:
        flat.extend(part if isinstance(part, (list, tuple)) else [part])
    return flat
