"""Constants that operations add: what each torch function and aten operator puts beside the signal."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .graph import Graph

if TYPE_CHECKING:
    from .recorder import Notes

Place = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Constant:
    """Something that was added to a signal, as it appears in the result.

    Attributes:
        value: number or tensor; `value` times the multiplier of the result is its relevance.
        source: what it is, for the ledger.
        kind: `"additive"`, or `"absorbed"` for a value that comes from the input by way of a stop.
        place: the part of the result's multiplier that belongs to it; None for all of it.
    """

    value: float | torch.Tensor
    source: str
    kind: str = "additive"
    place: Place | None = None

    def relevance(self, gradient: torch.Tensor, sums: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
        """Value times multiplier, `(batch, ...)`, with the axes along which the value is constant summed already.

        It is 0 where the multiplier is 0, also beside an infinite value, as masks are.

        Args:
            gradient: the multiplier of the result.
            sums: sums of `gradient` over axes, shared by the constants of one operation.
        """
        part = gradient if self.place is None else self.place(gradient)
        if not isinstance(self.value, torch.Tensor):
            product = part * self.value
            return product if math.isfinite(self.value) else product.nan_to_num_(nan=0.0)
        if self.place is None and self.value.ndim < part.ndim:
            shape = (1,) * (part.ndim - self.value.ndim) + tuple(self.value.shape)
            axes = tuple(axis for axis in range(2, part.ndim) if shape[axis] == 1 and part.shape[axis] > 1)
            if axes:
                if axes not in sums:
                    sums[axes] = part.sum(dim=axes, keepdim=True)
                part = sums[axes]
        product = part * self.value
        if bool(torch.isfinite(self.value).all()):
            return product
        return torch.where(part == 0, torch.zeros((), dtype=product.dtype, device=product.device), product)


def _put(
    notes: Notes, number: int, graph: Graph, value: Any, factor: float, source: str, place: Place | None = None
) -> None:
    """Note `factor * value` unless it carries relevance itself, or is nothing."""
    if value is None or isinstance(value, bool):
        return
    kind = "additive"
    if isinstance(value, torch.Tensor):
        if value.numel() == 0 or graph.carries(value):
            return
        kind, source = ("absorbed", "stop") if graph.depends(value) else ("additive", source)
        value = value.detach() if factor == 1 else value.detach() * factor
    else:
        value = float(value) * factor
        if value == 0:
            return
    notes.constants.setdefault(number, []).append(Constant(value, source, kind, place))


def _channels(value: torch.Tensor, result: torch.Tensor, places: int) -> torch.Tensor:
    """A value per channel, shaped to fit `result` whose last `places` axes are places."""
    return value.reshape(-1, *[1] * places)


# Each notes what one kind of call adds: (notes, number, graph, result, *args, **kwargs of the call).


def _add(notes: Notes, number: int, graph: Graph, result: Any, a: Any, b: Any, alpha: float = 1, **_: Any) -> None:
    _put(notes, number, graph, a, 1, "constant added")
    _put(notes, number, graph, b, alpha, "constant added")


def _sub(notes: Notes, number: int, graph: Graph, result: Any, a: Any, b: Any, alpha: float = 1, **_: Any) -> None:
    _put(notes, number, graph, a, 1, "constant added")
    _put(notes, number, graph, b, -alpha, "constant subtracted")


def _rsub(notes: Notes, number: int, graph: Graph, result: Any, a: Any, b: Any, alpha: float = 1, **_: Any) -> None:
    _sub(notes, number, graph, result, b, a, alpha)


def _linear(notes: Notes, number: int, graph: Graph, result: Any, x: Any, weight: Any, bias: Any = None) -> None:
    _put(notes, number, graph, bias, 1, "bias")


def _bilinear(notes: Notes, number: int, graph: Graph, result: Any, a: Any, b: Any, w: Any, bias: Any = None) -> None:
    _put(notes, number, graph, bias, 1, "bias")


def _convolution(
    notes: Notes,
    number: int,
    graph: Graph,
    result: torch.Tensor,
    x: Any,
    weight: Any,
    bias: Any = None,
    *_: Any,
    **__: Any,
) -> None:
    if bias is not None:
        _put(notes, number, graph, _channels(bias, result, weight.ndim - 2), 1, "bias")


def _addmm(
    notes: Notes, number: int, graph: Graph, result: Any, x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1
) -> None:
    _put(notes, number, graph, x, beta, "bias")


def _layer_norm(
    notes: Notes, number: int, graph: Graph, result: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None,
    *_: Any, **__: Any,
) -> None:  # fmt: skip
    _put(notes, number, graph, bias, 1, "norm shift")


def _group_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, x: Any, groups: Any, weight: Any = None,
    bias: Any = None, *_: Any, **__: Any,
) -> None:  # fmt: skip
    if bias is not None:
        _put(notes, number, graph, _channels(bias, result, result.ndim - 2), 1, "norm shift")


def _batch_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, x: Any, mean: Any = None, variance: Any = None,
    weight: Any = None, bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> None:  # fmt: skip
    places = result.ndim - 2
    if bias is not None:
        _put(notes, number, graph, _channels(bias, result, places), 1, "norm shift")
    if not training and mean is not None:
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else scale * weight
        _put(notes, number, graph, _channels((mean * scale).detach(), result, places), -1, "running mean")


def _instance_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, x: Any, mean: Any = None, variance: Any = None,
    weight: Any = None, bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> None:  # fmt: skip
    _batch_norm(notes, number, graph, result, x, mean, variance, weight, bias, use_input_stats, momentum, eps)


def _torch_batch_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, x: Any, weight: Any, bias: Any, mean: Any,
    variance: Any, training: bool, momentum: float, eps: float, *_: Any,
) -> None:  # fmt: skip
    _batch_norm(notes, number, graph, result, x, mean, variance, weight, bias, training, momentum, eps)


def _cat(notes: Notes, number: int, graph: Graph, result: torch.Tensor, tensors: Any, dim: int = 0, **_: Any) -> None:
    start = 0
    for tensor in tensors:
        length = tensor.shape[dim] if tensor.ndim == result.ndim else 0
        place = functools.partial(torch.narrow, dim=dim, start=start, length=length)
        _put(notes, number, graph, tensor, 1, "constant joined", place)
        start += length


def _stack(notes: Notes, number: int, graph: Graph, result: torch.Tensor, tensors: Any, dim: int = 0, **_: Any) -> None:
    for index, tensor in enumerate(tensors):
        _put(notes, number, graph, tensor, 1, "constant joined", functools.partial(torch.select, dim=dim, index=index))


def _where(notes: Notes, number: int, graph: Graph, result: Any, mask: Any, a: Any = None, b: Any = None) -> None:
    _put(notes, number, graph, a, 1, "constant chosen", lambda gradient: gradient * mask)
    _put(notes, number, graph, b, 1, "constant chosen", lambda gradient: gradient * ~mask)


def _method_where(notes: Notes, number: int, graph: Graph, result: Any, a: Any, mask: Any, b: Any = None) -> None:
    _where(notes, number, graph, result, mask, a, b)


def _masked_fill(notes: Notes, number: int, graph: Graph, result: Any, x: Any, mask: Any, value: Any) -> None:
    _put(notes, number, graph, value, 1, "constant chosen", lambda gradient: gradient * mask)


def _pad(
    notes: Notes, number: int, graph: Graph, result: Any, x: Any, pad: Any, mode: str = "constant", value: Any = None
) -> None:
    if value:
        border = F.pad(torch.zeros_like(x.detach()), pad, value=1.0)
        _put(notes, number, graph, value, 1, "constant padded", lambda gradient: gradient * border)


def _larger(notes: Notes, number: int, graph: Graph, result: torch.Tensor, a: Any, b: Any, **_: Any) -> None:
    for one, other in ((a, b), (b, a)):  # the larger, or smaller, wins; a tie is shared
        wins = (result == one).to(result.dtype) / (1 + (one == other).to(result.dtype))
        _put(notes, number, graph, one, 1, "constant chosen", functools.partial(torch.mul, wins))


def _input(notes: Notes, number: int, graph: Graph, result: Any, x: torch.Tensor, **_: Any) -> None:
    if x is not result:
        notes.inputs[number] = x.detach()


_T = torch.Tensor
Note = Callable[..., None]

FUNCTIONS: dict[Any, Note] = {
    **dict.fromkeys([torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__], _add),
    **dict.fromkeys([torch.sub, torch.subtract, _T.sub, _T.sub_, _T.__sub__, _T.__isub__], _sub),
    **dict.fromkeys([torch.rsub, _T.__rsub__], _rsub),
    **dict.fromkeys([F.linear, torch._C._nn.linear], _linear),
    F.bilinear: _bilinear,
    **dict.fromkeys(
        [
            torch.conv1d,
            torch.conv2d,
            torch.conv3d,
            torch.conv_transpose1d,
            torch.conv_transpose2d,
            torch.conv_transpose3d,
        ],
        _convolution,
    ),
    **dict.fromkeys([torch.addmm, _T.addmm, torch.baddbmm, _T.baddbmm, torch.addbmm, torch.addmv, _T.addmv], _addmm),
    **dict.fromkeys([F.layer_norm, torch.layer_norm], _layer_norm),
    **dict.fromkeys([F.group_norm, torch.group_norm], _group_norm),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm: _torch_batch_norm,
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], _cat),
    torch.stack: _stack,
    torch.where: _where,
    _T.where: _method_where,
    **dict.fromkeys([_T.masked_fill, _T.masked_fill_, torch.masked_fill], _masked_fill),
    F.pad: _pad,
    **dict.fromkeys([torch.maximum, torch.minimum, _T.maximum, _T.minimum], _larger),
    **dict.fromkeys([torch.tanh, _T.tanh, torch.sigmoid, _T.sigmoid, torch.exp, _T.exp, F.sigmoid, F.tanh], _input),
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
    **dict.fromkeys([_A.maximum, _A.minimum], _larger),
    **dict.fromkeys([_A.tanh, _A.sigmoid, _A.exp], _input),
}
