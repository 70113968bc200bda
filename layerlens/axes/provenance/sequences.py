"""Recurrent kernels."""

from __future__ import annotations

import torch

from .axis import Axes, Axis, Part, Source, cut, new
from .choices import numbered
from .reshaped import reshaped
from .table import Found, Operation, row
from .windows import note


@row("aten.mkldnn_rnn_layer")
def recurrent_layer(operation: Operation) -> Found:
    """Run over the first axis; states have no places."""
    axes = operation.axes(operation["input"])
    if axes is None:
        return None
    note(axes[2], "contracted")
    note(axes[0], "stepped")
    unit = new("unit", operation.out[0].shape[2])
    states = [None if not part.numel() or part.ndim != 3 else (Axis(), axes[1], unit) for part in operation.out[1:]]
    return [(axes[0], axes[1], unit), *states]


@row("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", "aten._cudnn_rnn", "aten.miopen_rnn", "aten._thnn_rnn")
def recurrent(operation: Operation) -> Found:
    """Run over time; `(output, states...)`, the states with a first axis of layers and directions."""
    packed = "batch_sizes" in operation and "data" in operation
    axes = operation.axes(operation["data" if packed else "input"])
    if axes is None or packed:
        return None if axes is None else _packed(operation, axes)
    first = "batch_first" in operation and bool(operation["batch_first"])
    time, batch = (axes[-2], axes[0]) if first else (axes[0], axes[-2])
    note(axes[-1], "contracted")
    note(time, "stepped")
    unit = new("unit", operation.out[0].shape[-1])
    batched = len(axes) == 3
    states = [(_layers(part.shape[0]), *((batch,) if batched else ()),
               new("unit", part.shape[-1])) for part in operation.out[1:]]  # fmt: skip
    return [(*axes[:-1], unit), *states]


def _packed(operation: Operation, axes: Axes) -> Found:
    """The rows of a packed sequence stay where they are; the states have a row for each sequence."""
    note(axes[-1], "contracted")
    _, sequences = _unpacked(axes[0], operation["batch_sizes"])
    states = [(new("extra", part.shape[0]) if part.shape[0] > 1 else Axis(), sequences, new("unit", part.shape[-1]))
              for part in operation.out[1:]]  # fmt: skip
    return [(axes[0], new("unit", operation.out[0].shape[-1])), *states]


def _unpacked(axis: Axis, sizes: torch.Tensor) -> Axes:
    """Return the axes of steps and sequences that were packed into one axis."""
    steps, sequences = len(sizes), int(sizes[0])
    chosen = None if axis.part is None else axis.part.source.chosen
    if chosen is not None and chosen[0].size == steps * sequences:
        return reshaped((chosen[0],), (steps, sequences))
    why = "a packed sequence that was not packed in this run"
    return new("unknown", steps, why), new("unknown", sequences, why)


@row("aten._pack_padded_sequence")
def pack(operation: Operation) -> Found:
    """Keep the entries of each step that belong to a sequence."""
    axes, sizes = operation.own(), operation.out[1]
    time, batch = (axes[1], axes[0]) if operation["batch_first"] else (axes[0], axes[1])
    note(time, "stepped")
    time = cut(time, 0, len(sizes))
    numbers = torch.cat([step * batch.size + torch.arange(int(size)) for step, size in enumerate(sizes)])
    return [(numbered(Axis((*time.factors, *batch.factors)), numbers), *axes[2:]), None]


@row("aten._pad_packed_sequence")
def unpack(operation: Operation) -> Found:
    """Put the entries of a packed sequence back to their steps."""
    axes = operation.own()
    time, batch = _unpacked(axes[0], operation["batch_sizes"])
    first = operation["batch_first"]
    size = operation.out[0].shape[1 if first else 0]
    time = time if time.size == size else new("unknown", size, "steps behind those of a packed sequence")
    return [((batch, time) if first else (time, batch)) + axes[1:], None]


@row("aten._thnn_fused_lstm_cell", "aten._thnn_fused_gru_cell", "aten.lstm_cell", "aten.gru_cell")
def cell(operation: Operation) -> Found:
    """One step: every output has a row for each sample."""
    axes = next((found for found in map(operation.axes, operation.tensors()) if found is not None), None)
    if axes is None:
        return None
    parts = operation.out if isinstance(operation.out, (tuple, list)) else (operation.out,)
    unit = new("unit", parts[0].shape[-1])
    found = [(*axes[:-1], unit if part.shape[-1] == unit.size else new("unit", part.shape[-1])) for part in parts]
    return list(found) if isinstance(operation.out, (tuple, list)) else found[0]


def _layers(count: int) -> Axis:
    """The axis of layers and directions of a state."""
    return Axis((Part(Source("extra", count, "layer"), count),))
