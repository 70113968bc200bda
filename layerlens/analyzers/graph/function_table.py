"""What each torch function and aten operator adds to a signal, or needs to be told of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .added_constants import channels, put
from .graph import Graph
from .joins_and_choices import (
    Note,
    cat,
    chosen,
    larger_of_two,
    larger_or_smaller,
    masked_fill,
    method_where,
    pad,
    side_by_side,
    stack,
    threshold,
    written,
)

if TYPE_CHECKING:
    from .recorder import Notes

# Each notes what one kind of call adds: (notes, number, graph, result, *arguments of the call, under torch's names).


def _add(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, other: Any, alpha: float = 1, **_: Any
) -> None:
    put(notes, number, graph, input, 1, "constant added")
    put(notes, number, graph, other, alpha, "constant added")


def _sub(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, other: Any, alpha: float = 1, **_: Any
) -> None:
    put(notes, number, graph, input, 1, "constant added")
    put(notes, number, graph, other, -alpha, "constant subtracted")


def _rsub(notes: Notes, number: int, graph: Graph, result: Any, input: Any, other: Any, alpha: float = 1) -> None:
    _sub(notes, number, graph, result, other, input, alpha)


def _linear(notes: Notes, number: int, graph: Graph, result: Any, input: Any, weight: Any, bias: Any = None) -> None:
    node = result.grad_fn  # of many rows it is a view of the product, made with the bias
    while node is not None and "View" in node.name():
        node = node.next_functions[0][0]
    put(notes, number if node is None else int(node._sequence_nr()), graph, bias, 1, "bias")


def _bilinear(
    notes: Notes, number: int, graph: Graph, result: Any, input1: Any, input2: Any, weight: Any, bias: Any = None
) -> None:
    put(notes, number, graph, bias, 1, "bias")


def _convolution(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, weight: Any, bias: Any = None, *_: Any, **__: Any
) -> None:
    put(notes, number, graph, channels(bias, weight.ndim - 2), 1, "bias")


def _addmm(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, *_: Any, beta: float = 1, **__: Any
) -> None:
    put(notes, number, graph, input, beta, "bias")


def _layer_norm(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, normalized_shape: Any, weight: Any = None,
    bias: Any = None, *_: Any, **__: Any,
) -> None:  # fmt: skip
    put(notes, number, graph, bias, 1, "norm shift")


def _group_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, input: Any, num_groups: Any, weight: Any = None,
    bias: Any = None, *_: Any, **__: Any,
) -> None:  # fmt: skip
    put(notes, number, graph, channels(bias, result.ndim - 2), 1, "norm shift")


def _batch_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, input: Any, running_mean: Any = None,
    running_var: Any = None, weight: Any = None, bias: Any = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5, *_: Any,
) -> None:  # fmt: skip
    places = result.ndim - 2
    put(notes, number, graph, channels(bias, places), 1, "norm shift")
    if not training and running_mean is not None:
        scale = torch.rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        put(notes, number, graph, channels((running_mean * scale).detach(), places), -1, "running mean")


def _instance_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, input: Any, running_mean: Any = None,
    running_var: Any = None, weight: Any = None, bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> None:  # fmt: skip
    statistics = (running_mean, running_var)
    _batch_norm(notes, number, graph, result, input, *statistics, weight, bias, use_input_stats, momentum, eps)


def _torch_batch_norm(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, input: Any, weight: Any, bias: Any,
    running_mean: Any, running_var: Any, training: bool, momentum: float, eps: float, *_: Any, **__: Any,
) -> None:  # fmt: skip
    _batch_norm(notes, number, graph, result, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _diff(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, n: int = 1, dim: int = -1, prepend: Any = None,
    append: Any = None, **_: Any,
) -> None:  # fmt: skip
    ends = (None if end is None or graph.carries(end) else end for end in (prepend, append))
    first, last = ends
    if first is not None or last is not None:
        put(notes, number, graph, torch.diff(torch.zeros_like(input), n, dim, first, last), 1, "constant joined")


def note_input(notes: Notes, number: int, graph: Graph, result: Any, input: torch.Tensor, **_: Any) -> None:
    """Note the input of a function that saves its result only."""
    notes.inputs[number] = input.detach()


_T = torch.Tensor

WRITING = """
scatter scatter_add index_put index_copy index_fill index_add masked_scatter select_scatter slice_scatter
diagonal_scatter lerp addcmul addcdiv
""".split()
"""Functions, with in-place forms, linear in the numbers that they put into, or add to, others."""

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
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate], cat),
    torch.stack: stack,
    torch.where: chosen,
    _T.where: method_where,
    **dict.fromkeys([_T.masked_fill, _T.masked_fill_, torch.masked_fill], masked_fill),
    F.pad: pad,
    **dict.fromkeys([F.threshold, torch.threshold], threshold),
    **{
        function: written(getattr(home, name), 2 if name in ("lerp", "addcdiv") else 9)
        for name in WRITING
        for home in (torch, torch.Tensor)
        for function in (getattr(home, name), getattr(torch.Tensor, f"{name}_", None))
        if function is not None
    },
    **dict.fromkeys([torch.maximum, torch.minimum, _T.maximum, _T.minimum], larger_or_smaller),
    **dict.fromkeys([torch.fmax, torch.fmin, _T.fmax, _T.fmin], larger_or_smaller),
    **dict.fromkeys([torch.max, torch.min, _T.max, _T.min], larger_of_two),
    **dict.fromkeys([torch.hstack, torch.column_stack], side_by_side(1)),
    torch.vstack: side_by_side(0),
    torch.dstack: side_by_side(2),
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
    _A.cat: cat,
    _A.stack: stack,
    _A.where: chosen,
    **dict.fromkeys([_A.masked_fill, _A.masked_fill_], masked_fill),
    **dict.fromkeys([_A.maximum, _A.minimum], larger_or_smaller),
    **dict.fromkeys([_A.tanh, _A.sigmoid, _A.exp, _A.tanh_, _A.sigmoid_, _A.exp_], note_input),
}
