"""Constants that operations add to a signal: what each torch function and aten operator adds, and its relevance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from .constant import Constant, Part
from .cuts import Cuts
from .graph import Graph
from .held_tensors import HeldTensors

_T = torch.Tensor
Value: TypeAlias = torch.Tensor | complex | None


@dataclasses.dataclass
class Notes:
    """Notes of a forward pass, by the sequence number of the node that made the result.

    Attributes:
        graph: knows which tensors carry relevance.
        cuts: signals that left autograd's graph.
        copying: whether constants are copied, because FSDP2 frees parameters between the passes of their layer.
        constants: constants that an operation added.
        inputs: input of an operation that saves only its result.
        time_major: numbers of nodes inside calls whose axis order is (time, batch, ...).
        added_cuts: number of a node that adds one of them -> what cut it.
        recurrent: whether a recurrent layer ran.
        held: tensors of the notes that the model may write into.
    """

    graph: Graph
    cuts: Cuts
    copying: bool = False
    constants: dict[int, list[Constant]] = dataclasses.field(default_factory=dict)
    inputs: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    time_major: list[range] = dataclasses.field(default_factory=list)
    added_cuts: dict[int, str] = dataclasses.field(default_factory=dict)
    recurrent: bool = False
    held: HeldTensors = dataclasses.field(default_factory=HeldTensors)


@dataclasses.dataclass(slots=True)
class TorchCall:
    """A call of a torch function, about to be noted.

    Attributes:
        notes: where to note it.
        number: sequence number of the node that it made.
        result: the first tensor that it returned.
    """

    notes: Notes
    number: int
    result: torch.Tensor

    def adds(self, value: Value, source: str, factor: float = 1, part: Part | None = None) -> None:
        """Note `factor * value` as an added constant, unless it carries relevance itself or is nothing."""
        if value is None or isinstance(value, bool):
            return
        notes, kind = self.notes, "additive"
        if isinstance(value, torch.Tensor):
            if value.numel() == 0 or notes.graph.carries(value):
                return
            if cut := notes.cuts.of(value):
                notes.added_cuts[self.number] = cut.how
            if notes.graph.depends(value):
                kind, source = "absorbed", f"stop at {notes.graph.stops(value)}"
            own = value.detach()
            value = own * factor if factor != 1 else own.clone() if notes.copying else own
        else:
            value = (value if isinstance(value, complex) else float(value)) * factor
            if value == 0:
                return
        masking = source.startswith("constant") or kind == "absorbed"
        constants = notes.constants.setdefault(self.number, [])
        constants.append(Constant(value, source, kind, part, masking))
        if isinstance(value, torch.Tensor) and not notes.copying:
            notes.held.hold(value, functools.partial(_copy_constant, constants, len(constants) - 1))

    def adds_without(self, bias: torch.Tensor | None, *factors: Value) -> None:
        """Note the result less its bias, if the bias carries relevance and none of the factors does."""
        if bias is not None and not self.carries(*factors):
            self.adds(self.result.detach() - bias.detach(), "constant added")

    def carries(self, *values: object) -> bool:
        """Whether one of the values is a tensor that carries relevance."""
        return any(isinstance(value, torch.Tensor) and self.notes.graph.carries(value) for value in values)


Note: TypeAlias = Callable[..., None]
"""Notes what one kind of call adds: `(call, *arguments of the call)`, under torch's names."""


def _per_channel(value: torch.Tensor | None, spatial: int) -> torch.Tensor | None:
    """Shape a value per channel to fit a result whose last `spatial` axes are places."""
    return None if value is None else value.reshape(-1, *[1] * spatial)


def _add(call: TorchCall, input: Value, other: Value, alpha: float = 1, **_: object) -> None:
    call.adds(input, "constant added")
    call.adds(other, "constant added", alpha)


def _sub(call: TorchCall, input: Value, other: Value, alpha: float = 1, **_: object) -> None:
    call.adds(input, "constant added")
    call.adds(other, "constant subtracted", -alpha)


def _rsub(call: TorchCall, input: Value, other: Value, alpha: float = 1) -> None:
    _sub(call, other, input, alpha)


def _linear(call: TorchCall, input: Value, weight: Value, bias: torch.Tensor | None = None) -> None:
    node = call.result.grad_fn  # of many rows it is a view of the product, made with the bias
    while node is not None and "View" in node.name():
        node = node.next_functions[0][0]
    number = call.number if node is None else int(node._sequence_nr())
    call = TorchCall(call.notes, number, call.result)
    call.adds(bias, "bias")
    call.adds_without(bias, input, weight)


def _bilinear(call: TorchCall, input1: Value, input2: Value, weight: Value, bias: _T | None = None) -> None:
    call.adds(bias, "bias")
    call.adds_without(bias, input1, input2, weight)


def _convolution(
    call: TorchCall, input: Value, weight: torch.Tensor, bias: torch.Tensor | None = None, *_: object, **__: object
) -> None:
    bias = _per_channel(bias, weight.ndim - 2)
    call.adds(bias, "bias")
    call.adds_without(bias, input, weight)


def _addmm(function: Callable[..., torch.Tensor]) -> Note:
    """Return a note of what `function`, such as `torch.addmm`, adds to a product, or to a signal by a product."""

    def note(call: TorchCall, input: Value, *factors: _T, beta: float = 1, alpha: float = 1, **named: _T) -> None:
        call.adds(input, "bias", beta)
        if not call.carries(*factors, *named.values()):
            with torch.no_grad():
                call.adds(function(torch.zeros_like(call.result), *factors, alpha=alpha, **named), "constant added")

    return note


def _layer_norm(
    call: TorchCall, input: Value, normalized_shape: object, weight: Value = None, bias: Value = None, *_: object,
    **__: object,
) -> None:  # fmt: skip
    call.adds(bias, "norm shift")


def _group_norm(
    call: TorchCall, input: Value, num_groups: int, weight: Value = None, bias: torch.Tensor | None = None, *_: object,
    **__: object,
) -> None:  # fmt: skip
    call.adds(_per_channel(bias, call.result.ndim - 2), "norm shift")


def _batch_norm(
    call: TorchCall, input: Value, running_mean: torch.Tensor | None = None, running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5, *_: object,
) -> None:  # fmt: skip
    spatial = call.result.ndim - 2
    call.adds(_per_channel(bias, spatial), "norm shift")
    if not training and running_mean is not None and running_var is not None:
        scale = torch.rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        call.adds(_per_channel((running_mean * scale).detach(), spatial), "running mean", -1)


def _instance_norm(
    call: TorchCall, input: Value, running_mean: torch.Tensor | None = None, running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> None:  # fmt: skip
    _batch_norm(call, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _torch_batch_norm(
    call: TorchCall, input: Value, weight: torch.Tensor | None, bias: torch.Tensor | None,
    running_mean: torch.Tensor | None, running_var: torch.Tensor | None, training: bool, momentum: float, eps: float,
    *_: object, **__: object,
) -> None:  # fmt: skip
    _batch_norm(call, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _diff(
    call: TorchCall, input: torch.Tensor, n: int = 1, dim: int = -1, prepend: torch.Tensor | None = None,
    append: torch.Tensor | None = None, **_: object,
) -> None:  # fmt: skip
    carries = call.notes.graph.carries
    first, last = (None if end is None or carries(end) else end for end in (prepend, append))
    if first is not None or last is not None:
        call.adds(torch.diff(torch.zeros_like(input), n, dim, first, last), "constant joined")


def _cat(call: TorchCall, tensors: Sequence[torch.Tensor], dim: int = 0, **_: object) -> None:
    start = 0
    for tensor in tensors:
        length = tensor.shape[dim] if tensor.ndim == call.result.ndim else 0
        call.adds(tensor, "constant joined", part=functools.partial(torch.narrow, dim=dim, start=start, length=length))
        start += length


def _stack(call: TorchCall, tensors: Sequence[torch.Tensor], dim: int = 0, **_: object) -> None:
    for index, tensor in enumerate(tensors):
        call.adds(tensor, "constant joined", part=functools.partial(torch.select, dim=dim, index=index))


def _stack_along(dim: int) -> Note:
    """For hstack and related functions: as `_cat` along an axis, of tensors with at least that axis."""

    def note(call: TorchCall, tensors: Sequence[torch.Tensor], **_: object) -> None:
        if dim == 1:  # vectors are joined, or made columns
            flat = call.result.ndim == 1
            _cat(call, [one.reshape(-1, *[1] * (not flat)) if one.ndim < 2 else one for one in tensors], int(not flat))
        else:
            raise_axes: Any = torch.atleast_3d if dim else torch.atleast_2d
            _cat(call, [raise_axes(one) for one in tensors], dim)

    return note


def _where(call: TorchCall, condition: torch.Tensor, input: Value = None, other: Value = None) -> None:
    call.adds(input, "constant chosen", part=lambda gradient: gradient * condition)
    call.adds(other, "constant chosen", part=lambda gradient: gradient * ~condition)


def _where_method(call: TorchCall, input: Value, condition: torch.Tensor, other: Value = None) -> None:
    _where(call, condition, input, other)


def _masked_fill(call: TorchCall, input: Value, mask: torch.Tensor, value: Value) -> None:
    call.adds(value, "constant chosen", part=lambda gradient: gradient * mask)
    call.adds(input, "constant kept", part=lambda gradient: gradient * ~mask)


def _threshold(call: TorchCall, input: torch.Tensor, threshold: float, value: float, *_: object, **__: object) -> None:
    node: Any = call.result.grad_fn  # in place, the input is overwritten by now
    below = (input.detach() if node is None else node._saved_self) <= threshold
    call.adds(value, "constant chosen", part=lambda gradient: gradient * below)


def _maximum(call: TorchCall, input: torch.Tensor, other: torch.Tensor, **_: object) -> None:
    """The constant where it is the larger, or smaller, one; a tie is shared."""
    for one, two in ((input, other), (other, input)):
        wins = (call.result == one).to(call.result.dtype) / (1 + (one == two).to(call.result.dtype))
        call.adds(one, "constant chosen", part=functools.partial(torch.mul, wins))


def _max(call: TorchCall, input: torch.Tensor, other: Value = None, *_: object, **__: object) -> None:
    """For `torch.max` and `torch.min`, which compare two tensors when the second argument is one."""
    if isinstance(other, torch.Tensor):
        _maximum(call, input, other)


def _pad(call: TorchCall, input: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: Value = None) -> None:
    if value:
        border = F.pad(torch.zeros_like(input.detach()), pad, value=1.0)
        call.adds(value, "constant padded", part=lambda gradient: gradient * border)


def _value_at_zero(function: Callable[..., torch.Tensor], linear: int = 9) -> Note:
    """Return a note of the constant that a function, linear in its first `linear` tensors, adds: its value at 0."""

    def note(call: TorchCall, *arguments: object, **options: object) -> None:
        def at_zero(value: object) -> object:
            return torch.zeros_like(value) if isinstance(value, torch.Tensor) and call.carries(value) else value

        with torch.no_grad():
            zeroed = [at_zero(value) if place < linear else value for place, value in enumerate(arguments)]
            constant = function(*zeroed, **{name: at_zero(value) for name, value in options.items()})
            if bool(constant.any()):
                call.adds(constant, "constant written")

    return note


def _copy(call: TorchCall, input: torch.Tensor, src: Value, *_: object) -> None:
    call.adds(src, "constant written")


def _copy_constant(constants: list[Constant], place: int) -> None:
    value = constants[place].value
    if isinstance(value, torch.Tensor):
        constants[place] = dataclasses.replace(constants[place], value=value.clone())


def note_input(call: TorchCall, input: torch.Tensor, **_: object) -> None:
    """Note the input of a function that saves only its result."""
    inputs, number = call.notes.inputs, call.number
    inputs[number] = input.detach()
    call.notes.held.hold(inputs[number], lambda: inputs.update({number: inputs[number].clone()}))


_WRITING = """
scatter scatter_add index_put index_copy index_fill index_add masked_scatter select_scatter slice_scatter
diagonal_scatter lerp addcmul addcdiv complex block_diag put constant_pad_nd fill
_unsafe_masked_index _unsafe_masked_index_put_accumulate
""".split()
"""Functions, with in-place forms, linear in the numbers that they write into, or add to, others."""

_SAVING_RESULT = ["expit", "tanh", "sigmoid", "exp", "exp2", "expm1", "tan"]
"""Functions whose node saves the result, from which the input cannot be had where they saturate or repeat."""


FUNCTIONS: dict[Callable[..., Any] | str, Note] = {
    "torchvision::deform_conv2d": lambda call, *arguments: call.adds(_per_channel(arguments[4], 2), "bias"),
    **dict.fromkeys([torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__], _add),
    **dict.fromkeys([torch.sub, torch.subtract, _T.sub, _T.sub_, _T.__sub__, _T.__isub__], _sub),
    **dict.fromkeys([_T.subtract, _T.subtract_], _sub),
    **dict.fromkeys([torch.rsub, _T.__rsub__], _rsub),
    **dict.fromkeys([F.linear, torch._C._nn.linear], _linear),
    **dict.fromkeys([F.bilinear, torch.bilinear], _bilinear),
    **dict.fromkeys([torch.conv1d, torch.conv2d, torch.conv3d, torch.convolution], _convolution),
    **dict.fromkeys([torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d], _convolution),
    **{
        function: _addmm(getattr(torch, name))
        for name in ("addmm", "addmv", "addr", "addbmm", "baddbmm")
        for function in (getattr(torch, name), getattr(_T, name), getattr(_T, f"{name}_"))
    },
    **dict.fromkeys([F.layer_norm, torch.layer_norm, torch.native_layer_norm], _layer_norm),
    **dict.fromkeys([F.group_norm, torch.group_norm], _group_norm),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    **dict.fromkeys([torch.batch_norm, torch.native_batch_norm], _torch_batch_norm),
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], _cat),
    torch.stack: _stack,
    torch.where: _where,
    _T.where: _where_method,
    **dict.fromkeys([_T.masked_fill, _T.masked_fill_, torch.masked_fill], _masked_fill),
    _T.copy_: _copy,
    F.pad: _pad,
    **dict.fromkeys([F.threshold, torch.threshold], _threshold),
    **{
        function: _value_at_zero(getattr(torch, name), 2 if name in ("lerp", "addcdiv") else 9)
        for name in _WRITING
        for module in (torch, torch.Tensor)
        for function in (getattr(module, name, None), getattr(torch.Tensor, f"{name}_", None))
        if function is not None
    },
    **dict.fromkeys([torch.maximum, torch.minimum, _T.maximum, _T.minimum], _maximum),
    **dict.fromkeys([torch.fmax, torch.fmin, _T.fmax, _T.fmin], _maximum),
    **dict.fromkeys([torch.max, torch.min, _T.max, _T.min], _max),
    **dict.fromkeys([torch.hstack, torch.column_stack], _stack_along(1)),
    torch.vstack: _stack_along(0),
    torch.dstack: _stack_along(2),
    torch.diff: _diff,
    _T.diff: _diff,
    **{
        getattr(module, spelling): note_input
        for name in _SAVING_RESULT
        for module in (torch, _T, F, torch.special)
        for spelling in (name, f"{name}_")
        if hasattr(module, spelling)
    },
}
