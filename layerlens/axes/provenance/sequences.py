"""Recurrent kernels."""

from __future__ import annotations

from .axis import Axis, Part, Source, new
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
    signal = operation["input"]
    axes = operation.axes(signal)
    if axes is None or ("batch_sizes" in operation and operation["batch_sizes"] is not None and len(axes) == 2):
        return None if axes is None else _packed(operation, axes[-1])
    first = "batch_first" in operation and bool(operation["batch_first"])
    time, batch = (axes[-2], axes[0]) if first else (axes[0], axes[-2])
    note(axes[-1], "contracted")
    note(time, "stepped")
    unit = new("unit", operation.out[0].shape[-1])
    batched = len(axes) == 3
    states = [(_layers(part.shape[0]), *((batch,) if batched else ()),
               new("unit", part.shape[-1])) for part in operation.out[1:]]  # fmt: skip
    return [(*axes[:-1], unit), *states]


def _packed(operation: Operation, features: Axis) -> Found:
    note(features, "contracted")
    rows = new("unknown", operation.out[0].shape[0], "a packed sequence mixes samples and steps")
    states = [(_layers(part.shape[0]),
               new("unknown", part.shape[1], "a packed sequence is sorted by length"), new("unit", part.shape[-1]))
              for part in operation.out[1:]]  # fmt: skip
    return [(rows, new("unit", operation.out[0].shape[-1])), *states]


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
