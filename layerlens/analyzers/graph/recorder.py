"""A recorder of what autograd's graph does not keep: added constants, and inputs of functions that save their result.

A torch function mode sees every torch call of the forward pass at about a microsecond each. Calls that run many
operations in one step of C++ or of torch's own Python (recurrent layers, attention) are watched from inside by a
dispatch mode, which costs more, so it is on during those only. The model is not touched.

Autograd hides operations that write into a view in one node, so they run as what they mean: `view.gelu_()` becomes
`view.copy_(gelu(view))`. The function gets a node, and with it a rule, and the copy is linear.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens.model.borrowed import primitive_kernels
from layerlens.model.call_tracking import nodes_made
from layerlens.model.checkpointing import SavedInCheckpoint, outside_checkpoints, pack_hooks, saved_by_hooks
from layerlens.model.layers import LayerPath
from layerlens.model.writes import tensors_in, tensors_written

from .added_constants import FUNCTIONS, Note, Notes, TorchCall, note_input
from .cuts import Cuts
from .graph import Graph

Function: TypeAlias = Callable[..., Any]
Index: TypeAlias = "int | slice | torch.Tensor | tuple[Index, ...] | None"

_transforms = torch._C._functorch.peek_interpreter_stack

RECURRENT: set[Any] = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
CELLS: set[Any] = {torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell}
WATCHED: set[Any] = {F.scaled_dot_product_attention, torch.special.ndtr, torch.linalg.vander, *CELLS}

# Functions of torch that are written in Python and add nothing: called as they are.
_ADDING_NOTHING: set[Any] = {
    F.relu, F.relu6, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.elu, F.selu, F.celu, F.leaky_relu, F.glu, F.softmax,
    F.log_softmax, F.dropout, F.dropout2d, F.max_pool2d, F.max_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool2d, F.interpolate, F.embedding, F.sigmoid, F.tanh, F.hardtanh, F.threshold,
    torch.einsum, torch.split, torch.Tensor.split, torch.Tensor.unflatten, torch.Tensor.__len__, torch.Tensor.__iter__,
    torch.Tensor.__hash__, torch.Tensor.register_hook, torch.Tensor.detach, torch.Tensor.__repr__,
}  # fmt: skip

# What asks a tensor for something other than numbers, which neither adds nor cuts anything.
_ASKING: frozenset[Any] = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in "device dtype grad_fn layout ndim requires_grad shape".split()]
    + [getattr(torch.Tensor, name) for name in "__len__ dim is_complex is_floating_point numel size stride".split()]
)


class Recorder(TorchFunctionMode):
    """Watch the torch calls of a forward pass, see the module's docstring.

    Args:
        graph: knows which tensors carry relevance.
        noting: whether to note what is seen; False only gives writes into views, and the steps of recurrent layers,
            their own nodes.
        copying: whether to copy the constants that are noted.
        layer: returns the innermost layer that is running.
        whole: torch function -> `(notes, args) -> result`: runs it as one node, or returns None.

    Attributes:
        differentiates: whether the model called `torch.autograd.grad`, whose result then keeps its graph.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        noting: bool = True,
        copying: bool = False,
        layer: Callable[[], LayerPath] = str,
        whole: Mapping[Function, Callable[[Notes, tuple[Any, ...]], Any]] | None = None,
    ) -> None:
        super().__init__()
        self.graph, self._noting, self._whole = graph, noting, whole or {}
        self.differentiates = False
        self.notes = Notes(graph, Cuts(graph.carries, layer), copying)

    def __torch_function__(
        self, function: Function, kinds: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `function` and note what it adds."""
        kwargs = kwargs or {}
        if function in _ASKING:
            return function(*args, **kwargs)
        if function is torch.autograd.grad:
            self.differentiates = True
            return function(*args[:4], **{**kwargs, "create_graph": True})
        if args and _writes(function):
            self.notes.held.before_writing(tensors_in(args[0]))
        if (out := kwargs.get("out")) is not None:
            self.notes.held.before_writing(tensors_in(out))
        hooks = pack_hooks()
        if hooks is None and _plain(function) and not (self._noting and _transforms() is not None):
            result = function(*args, **kwargs)
        elif hooks is not None:
            # a checkpoint returns each saved tensor once, and rules read it before the backward pass
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: SavedInCheckpoint(tensor, hooks, self._recomputing), SavedInCheckpoint.read
            ):
                result = self._call(function, args, kwargs)
        else:
            result = self._call(function, args, kwargs)
        if not self._noting:
            return result
        self.notes.recurrent |= function in RECURRENT or function in CELLS
        self.notes.cuts.see(function, args, kwargs, result)
        return result

    def _recomputing(self) -> Recorder:
        """For a block that is computed again: the same operations, nothing noted."""
        return Recorder(self.graph, noting=False)

    def _call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rewritten = _out_of_place(function, args, kwargs)
        if rewritten is not None:
            return self._copy_into(args[0], self._call(*rewritten))
        if function is torch.Tensor.copy_ and args[0]._is_view() and torch.is_grad_enabled():
            return self._copy_into(args[0], args[1] if len(args) > 1 else kwargs["src"])
        if function is torch.Tensor.__setitem__:
            return self._write(*args)
        if self._noting and _transforms() is not None:
            return self._call_watched(function, args, kwargs)  # under vmap, nodes belong to the tensors inside
        whole = self._whole.get(function)
        if whole is not None and not kwargs and not saved_by_hooks():
            result = whole(self.notes, args)
            if result is not None:
                return result
        note = FUNCTIONS.get(_as_called(function)) if self._noting else None
        if note is not None:
            arguments = _before_overwriting(self.graph, note, function, args)
            result = function(*args, **kwargs)
            tensor = result[0] if isinstance(result, tuple) else result
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                with outside_checkpoints():
                    note(TorchCall(self.notes, tensor.grad_fn._sequence_nr(), tensor), *arguments, **kwargs)
            return result
        if function in RECURRENT or (self._noting and function in WATCHED):
            return self._call_watched(function, args, kwargs)
        if self._noting and isinstance(function, types.FunctionType) and function not in _ADDING_NOTHING:
            return self._call_watched(function, args, kwargs)
        return function(*args, **kwargs)

    def _write(self, tensor: torch.Tensor, index: Index, value: torch.Tensor | float) -> None:
        """`tensor[index] = value`, where one side may be a constant."""
        gradient = tensor.requires_grad or (isinstance(value, torch.Tensor) and value.requires_grad)
        if tensor._is_view() and gradient and torch.is_grad_enabled():
            whole = tensor.clone()
            self._write(whole, index, value)
            self._copy_into(tensor, whole)
            return
        before = tensor.detach().clone() if tensor.grad_fn is None and tensor.is_floating_point() else None
        tensor[index] = value
        if tensor.grad_fn is None or not self._noting:
            return
        call = TorchCall(self.notes, tensor.grad_fn._sequence_nr(), tensor)
        call.adds(value, "constant written", part=lambda gradient: gradient[index])
        if before is not None and bool(before.any()):  # what a constant tensor held elsewhere
            before[index] = 0
            call.adds(before, "constant kept")

    def _copy_into(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`tensor.copy_(value)`, where one side may be a constant; the rest of a base that is one is noted."""
        if tensor.requires_grad and not self.graph.carries(value):
            value = self._call(_filled, (tensor.clone(), value), {})
        base = tensor._base
        kept = base.detach().clone() if base is not None and not base.requires_grad and value.requires_grad else None
        tensor.copy_(value)
        if kept is not None and base is not None and base.grad_fn is not None and kept.stride() == base.stride():
            offset = tensor.storage_offset() - base.storage_offset()
            kept.as_strided(tensor.shape, tensor.stride(), offset).zero_()
            if self._noting and bool(kept.any()):
                TorchCall(self.notes, base.grad_fn._sequence_nr(), base).adds(kept, "constant kept")
        return tensor

    def _call_watched(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `function` watched operation by operation, and in primitives where a fused kernel would hide them."""
        start = nodes_made()
        primitive = primitive_kernels() if function in RECURRENT else contextlib.nullcontext()
        with primitive, _WatchInside(self.notes) if self._noting else contextlib.nullcontext():
            result = function(*args, **kwargs)
        if function in RECURRENT or function is F.multi_head_attention_forward:
            self.notes.time_major.append(range(start, nodes_made()))
        return result


@functools.lru_cache(1024)
def _plain(function: Function) -> bool:
    """Whether a function adds nothing, writes into nothing, and hides no operations."""
    treated = function in WATCHED or function in RECURRENT or _as_called(function) in FUNCTIONS
    written = function in (torch.Tensor.copy_, torch.Tensor.__setitem__) or _functional_form(function) is not None
    in_python = isinstance(function, types.FunctionType) and function not in _ADDING_NOTHING
    return not (treated or written or in_python)


@functools.lru_cache(1024)
def _as_called(function: Function) -> Function | str:
    """The torch function behind an aten operator, which modules of torch.export call; the name of a library's operator.

    Else `function`.
    """
    if isinstance(function, torch._ops.OpOverloadPacket):
        return function._qualified_op_name
    if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
        return function
    name = function.overloadpacket.__name__
    modules = (module for module in (torch, torch._C._nn, torch.Tensor) if hasattr(module, name))
    called: Function = getattr(next(modules, None), name, function)
    return called


class _WatchInside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, notes: Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = notes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # borrowed models are never traced, and the guard would import the whole compiler, for seconds

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        kinds: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        note = FUNCTIONS.get(_as_called(function))
        arguments = args if note is None else _before_overwriting(self.notes.graph, note, function.overloadpacket, args)
        self.notes.held.before_writing(tensors_written(function, args, kwargs))
        number = nodes_made() - 1  # autograd made the node just before it called this operation
        result = function(*args, **kwargs)
        if note is not None and any(isinstance(part, torch.Tensor) and part.requires_grad for part in _flat(args)):
            tensor = result[0] if isinstance(result, tuple) else result
            with outside_checkpoints():
                note(TorchCall(self.notes, number, tensor), *arguments, **kwargs)
        return result


@functools.lru_cache(1024)
def _writes(function: Function) -> bool:
    """Whether a function of torch writes into its first argument."""
    name: str = getattr(function, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or name == "__setitem__"


def _before_overwriting(graph: Graph, note: Note, function: Function, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with a copy of the first where `function` is about to write into what will be noted."""
    if not (_writes(function) and args and isinstance(args[0], torch.Tensor)):
        return args
    if note is not note_input and graph.carries(args[0]):
        return args  # a signal, not a constant
    return (args[0].detach().clone(), *args[1:])


def _flat(args: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for part in args:
        flat.extend(part if isinstance(part, (list, tuple)) else [part])
    return flat


_ALWAYS_OUT_OF_PLACE = {"fill_diagonal", "elu", "celu", "selu"}
"""One that makes a view itself, and those whose node would save a result that does not determine its input."""

_LINEAR_IN_PLACE = set(
    "copy_ zero_ detach_ requires_grad_ set_ resize_ resize_as_ t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ "
    "as_strided_ rename_".split()
)
"""In-place methods that are linear, or write no numbers."""


def _out_of_place(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Function, tuple[Any, ...], dict[str, Any]] | None:
    """Return (function, args, kwargs) that compute what `function` would write into its first argument, a view.

    None if it does not write, does not write into a view, or is linear.
    """
    form = _functional_form(function)
    if form is None or not args or not isinstance(args[0], torch.Tensor):
        return None
    name = getattr(function, "__name__", "").rstrip("_")
    if not (args[0]._is_view() or name in _ALWAYS_OUT_OF_PLACE):
        return None
    if not torch.is_grad_enabled() or not any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
        return None
    counterpart, place = form
    if place is None:
        return counterpart, (args[0].clone(), *args[1:]), kwargs
    if not (kwargs.get("inplace", False) or (place < len(args) and args[place])):
        return None
    kwargs = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
    rest = tuple(False if index == place else value for index, value in enumerate(args))
    return counterpart, (args[0].clone(), *rest[1:]), kwargs


@functools.cache
def _functional_form(function: Function) -> tuple[Function, int | None] | None:
    """The function that makes a new tensor, and the position of its argument `inplace`, if it has one."""
    name = getattr(function, "__name__", "")
    if inspect.isfunction(function):
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        if "inplace" in names:
            return function, names.index("inplace")
    not_operators = ("__init__", "__iter__", "__index__", "__int__", "__invert__")
    if name.startswith("__i") and name.endswith("__") and name not in not_operators:
        return _attribute(torch.Tensor, f"__{name[3:]}")
    if function in _FILLING:
        return _FILLING[function], None
    if name.endswith("_") and not name.endswith("__") and name not in _LINEAR_IN_PLACE:
        for module in (torch.Tensor, torch, torch._C._nn, torch.nn.functional):
            if getattr(module, name, None) is getattr(function, "__wrapped__", function):  # `**=` is pow_, wrapped
                return _attribute(module, name[:-1])
    return None


def _filled(tensor: torch.Tensor, value: torch.Tensor | float) -> torch.Tensor:
    return torch.where(torch.ones_like(tensor, dtype=torch.bool), value, tensor)


def _diagonal_filled(tensor: torch.Tensor, fill_value: float, wrap: bool = False) -> torch.Tensor:
    diagonal = torch.zeros_like(tensor, dtype=torch.bool).fill_diagonal_(True, wrap)
    return torch.where(diagonal, fill_value, tensor)


_FILLING: dict[Function, Function] = {torch.Tensor.fill_: _filled, torch.Tensor.fill_diagonal_: _diagonal_filled}


def _attribute(module: object, name: str) -> tuple[Function, None] | None:
    function = getattr(module, name, None)
    return None if function is None else (function, None)
