"""Records by sample: some samples of one, and several batches as one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .call import Call
from .errors import OptionError, RecordError
from .nested import describe, named_tensors, replace_tensors
from .record import Record

_RECURRENT = ("RNN", "LSTM", "GRU")


def batch_size(record: Record) -> int:
    """The number of samples: what most calls agree on.

    Raises:
        RecordError: when the record holds no tensor with a batch axis.
    """
    sizes: Counter[int] = Counter()
    for call in record.order:
        for name, tensor in named_tensors(call.output):
            if tensor.ndim:
                axis = _known_axis(call, name)
                sizes[tensor.shape[0 if axis is None else axis]] += 1 if axis is None else 3
    if not sizes:
        raise RecordError("this record holds no tensor with a batch axis.")
    return sizes.most_common(1)[0][0]


def samples(record: Record, index: int | slice | Sequence[int]) -> Record:
    """The record of some samples of the batch; see `Record.samples`."""
    batch = batch_size(record)
    try:
        if isinstance(index, slice):
            chosen = list(range(batch)[index])
        else:
            chosen = [range(batch)[n] for n in ([index] if isinstance(index, int) else index)]
    except (IndexError, TypeError) as error:
        raise OptionError(f"samples {index!r} are not in a record of {batch} (0 to {batch - 1}).") from error
    rows = torch.tensor(chosen, dtype=torch.int64)

    def cut(call: Call, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(_axis(call, name, tensor, batch), rows.to(tensor.device))

    return _rebuilt(record, lambda call: replace_tensors(call.output, lambda name, t: cut(call, name, t)))


def stack(records: Sequence[Record]) -> Record:
    """The records of several batches as one; see `Record.stack`."""
    if not records:
        raise OptionError("no records to stack; give one or more.")
    first = records[0]
    places = [(call.layer, call.index) for call in first.order]
    for number, other in enumerate(records):
        if [(call.layer, call.index) for call in other.order] != places:
            raise RecordError(
                f"record {number} holds other calls than record 0, so they cannot be stacked: the runs took other "
                "routes, or other layers were selected. compare record.order of both."
            )
    batches = [batch_size(record) for record in records]
    calls = list(zip(*(record.order for record in records), strict=True))
    by_place = {(group[0].layer, group[0].index): group for group in calls}

    def joined(call: Call) -> Any:
        group = by_place[call.layer, call.index]
        parts = [dict(named_tensors(other.output)) for other in group]

        def join(name: str, tensor: torch.Tensor) -> torch.Tensor:
            axis = _axis(call, name, tensor, batches[0])
            try:
                return torch.cat([part[name] for part in parts], dim=axis)
            except (KeyError, RuntimeError) as error:
                shapes = ", ".join(describe(part[name]) if name in part else "nothing" for part in parts[:4])
                raise RecordError(
                    f"layer {call.layer!r}, call {call.index}: outputs {shapes} cannot be stacked; pad the inputs to "
                    "one length, or reduce in the capture."
                ) from error

        return replace_tensors(call.output, join)

    stacked = _rebuilt(first, joined)
    stacked.partial = any(record.partial for record in records)
    return stacked


def _rebuilt(record: Record, value_of: Callable[[Call], Any]) -> Record:
    """A record of the same calls with other outputs; arguments and gradients are left out."""
    twin = Record(list(record.selected), record.aliases)
    twin.partial, twin.stopped, twin.unedited = record.partial, record.stopped, record.unedited
    for call in record.order:
        value = value_of(call)
        twin.add(dataclasses.replace(call, value=value, arguments=None, stored=(), stored_inputs=(), gradients=None))
    return twin


def _known_axis(call: Call, name: str) -> int | None:
    """The batch axis of a tensor whose axes are known; None where they are not."""
    if call.type in _RECURRENT and name.startswith("1"):
        return 1  # states are (layers, batch, features) whichever axis comes first in the output
    if call.axes is not None and "batch" in call.axes and name in ("", "0"):
        return call.axes.index("batch")
    return None


def _axis(call: Call, name: str, tensor: torch.Tensor, batch: int) -> int:
    known = _known_axis(call, name)
    for axis in (0, 1) if known is None else (known,):
        if axis < tensor.ndim and tensor.shape[axis] == batch:
            return axis
    raise RecordError(
        f"layer {call.layer!r}, call {call.index}: {describe(tensor)} has no axis of the {batch} samples, so it "
        "cannot be taken apart by sample. Capture without this layer, or read it from record.calls."
    )
