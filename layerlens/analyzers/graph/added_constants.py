"""Constants that operations add to a signal: what each torch function and aten operator adds, and its relevance."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from .cuts import Cuts
from .graph import Graph

Value: TypeAlias = torch.Tensor | float | None
Part: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant that was added to a signal, as it appears in the result.

    Attributes:
        value: number or tensor; `value` times the multiplier of the result is its relevance.
        source: its name in the ledger.
        kind: `"additive"`, or `"absorbed"` for a value that comes from the input by way of a stop.
        part: selects the part of the result's multiplier that belongs to it; None for all of it.
        masking: whether the value may be infinite, as in attention masks.
    """

    value: float | torch.Tensor
    source: str
    kind: str = "additive"
    part: Part | None = None
    masking: bool = True

    def relevance(self, gradient: torch.Tensor, sums: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
        """Return value times multiplier, `(batch, ...)`, summed already over axes along which the value is constant.

        It is 0 where the multiplier is 0, even if the value is infinite, as in masks.

        Args:
            gradient: multiplier of the result.
            sums: sums of `gradient` over axes, shared by the constants of one operation.
        """
        multiplier = gradient if self.part is None else self.part(gradient)
        if not isinstance(self.value, torch.Tensor):
            product = multiplier * self.value
            return product if math.isfinite(self.value) else product.nan_to_num_(nan=0.0)
        if self.part is None and self.value.ndim < multiplier.ndim:
            shape = (1,) * (multiplier.ndim - self.value.ndim) + tuple(self.value.shape)
            axes = tuple(axis for axis in range(2, multiplier.ndim) if shape[axis] == 1 and multiplier.shape[axis] > 1)
            if axes:
                if axes not in sums:
                    sums[axes] = multiplier.sum(dim=axes, keepdim=True)
                multiplier = sums[axes]
        product = multiplier * self.value
        if not self.masking:
            return product
        return torch.where(multiplier == 0, torch.zeros((), dtype=product.dtype, device=product.device), product)


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
    """

    graph: Graph
    cuts: Cuts
    copying: bool = False
    constants: dict[int, list[Constant]] = dataclasses.field(default_factory=dict)
    inputs: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    time_major: list[range] = dataclasses.field(default_factory=list)
    added_cuts: dict[int, str] = dataclasses.field(default_factory=dict)


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
            kind, source = ("absorbed", "stop") if notes.graph.depends(value) else ("additive", source)
            value = value.detach() if factor == 1 else value.detach() * factor
            if factor == 1 and notes.copying:
                value = value.clone()
        else:
            value = float(value) * factor
            if value == 0:
                return
        masking = source.startswith("constant") or kind == "absorbed"
        notes.constants.setdefault(self.number, []).append(Constant(value, source, kind, part, masking))


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


def _linear(call: TorchCall, input: Value, weight: Value, bias: Value = None) -> None:
    node = call.result.grad_fn  # of many rows it is a view of the product, made with the bias
    while node is not None and "View" in node.name():
        node = node.next_functions[0][0]
    number = call.number if node is None else int(node._sequence_nr())
    TorchCall(call.notes, number, call.result).adds(bias, "bias")


def _bilinear(call: TorchCall, input1: Value, input2: Value, weight: Value, bias: Value = None) -> None:
    call.adds(bias, "bias")


def _convolution(
    call: TorchCall, input: Value, weight: torch.Tensor, bias: torch.Tensor | None = None, *_: object, **__: object
) -> None:
    call.adds(_per_channel(bias, weight.ndim - 2), "bias")


def _addmm(call: TorchCall, input: Value, *_: object, beta: float = 1, **__: object) -> None:
    call.adds(input, "bias", beta)


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
        ndim = call.result.ndim
        raised = [tensor if tensor.ndim == ndim else tensor.unsqueeze(-1) for tensor in tensors]
        if all(tensor.ndim == ndim for tensor in raised):
            _cat(call, raised, 0 if ndim == 1 else dim)

    return note


def _where(call: TorchCall, condition: torch.Tensor, input: Value = None, other: Value = None) -> None:
    call.adds(input, "constant chosen", part=lambda gradient: gradient * condition)
    call.adds(other, "constant chosen", part=lambda gradient: gradient * ~condition)


def _where_method(call: TorchCall, input: Value, condition: torch.Tensor, other: Value = None) -> None:
    _where(call, condition, input, other)


def _masked_fill(call: TorchCall, input: Value, mask: torch.Tensor, value: Value) -> None:
    call.adds(value, "constant chosen", part=lambda gradient: gradient * mask)


def _threshold(call: TorchCall, input: torch.Tensor, threshold: float, value: float, *_: object, **__: object) -> None:
    below = input.detach() <= threshold
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
            if isinstance(value, torch.Tensor) and call.notes.graph.carries(value):
                return torch.zeros_like(value)
            return value

        with torch.no_grad():
            zeroed = [at_zero(value) if place < linear else value for place, value in enumerate(arguments)]
            constant = function(*zeroed, **{name: at_zero(value) for name, value in options.items()})
            if bool(constant.any()):
                call.adds(constant, "constant written")

    return note


def note_input(call: TorchCall, input: torch.Tensor, **_: object) -> None:
    """Note the input of a function that saves only its result."""
    call.notes.inputs[call.number] = input.detach()


_T = torch.Tensor

_WRITING = """
scatter scatter_add index_put index_copy index_fill index_add masked_scatter select_scatter slice_scatter
diagonal_scatter lerp addcmul addcdiv
""".split()
"""Functions, with in-place forms, linear in the numbers that they write into, or add to, others."""

FUNCTIONS: dict[Callable[..., Any], Note] = {
    **dict.fromkeys([torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__], _add),
    **dict.fromkeys([torch.sub, torch.subtract, _T.sub, _T.sub_, _T.__sub__, _T.__isub__], _sub),
    **dict.fromkeys([torch.rsub, _T.__rsub__], _rsub),
    **dict.fromkeys([F.linear, torch._C._nn.linear], _linear),
    F.bilinear: _bilinear,
    **dict.fromkeys([torch.conv1d, torch.conv2d, torch.conv3d], _convolution),
    **dict.fromkeys([torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d], _convolution),
    **dict.fromkeys([torch.addmm, _T.addmm, torch.baddbmm, _T.baddbmm, torch.addbmm, torch.addmv, _T.addmv], _addmm),
    **dict.fromkeys([F.layer_norm, torch.layer_norm], _layer_norm),
    **dict.fromkeys([F.group_norm, torch.group_norm], _group_norm),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm: _torch_batch_norm,
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], _cat),
    torch.stack: _stack,
    torch.where: _where,
    _T.where: _where_method,
    **dict.fromkeys([_T.masked_fill, _T.masked_fill_, torch.masked_fill], _masked_fill),
    F.pad: _pad,
    **dict.fromkeys([F.threshold, torch.threshold], _threshold),
    **{
        function: _value_at_zero(getattr(module, name), 2 if name in ("lerp", "addcdiv") else 9)
        for name in _WRITING
        for module in (torch, torch.Tensor)
        for function in (getattr(module, name), getattr(torch.Tensor, f"{name}_", None))
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
    **dict.fromkeys([torch.tanh, _T.tanh, torch.sigmoid, _T.sigmoid, torch.exp, _T.exp, F.sigmoid, F.tanh], note_input),
    **dict.fromkeys([torch.tanh_, _T.tanh_, torch.sigmoid_, _T.sigmoid_, torch.exp_, _T.exp_], note_input),
}

_A = torch.ops.aten
ATEN: dict[Any, Note] = {
    **dict.fromkeys([_A.add, _A.add_], _add),
    **dict.fromkeys([_A.sub, _A.sub_], _sub),
    _A.rsub: _rsub,
    **dict.fromkeys([_A.addmm, _A.addmm_, _A.baddbmm, _A.addmv], _addmm),
    _A.linear: _linear,
    _A.convolution: _convolution,
    _A.native_layer_norm: _layer_norm,
    _A.cat: _cat,
    _A.stack: _stack,
    _A.where: _where,
    **dict.fromkeys([_A.masked_fill, _A.masked_fill_], _masked_fill),
    **dict.fromkeys([_A.maximum, _A.minimum], _maximum),
    **dict.fromkeys([_A.tanh, _A.sigmoid, _A.exp, _A.tanh_, _A.sigmoid_, _A.exp_], note_input),
}
