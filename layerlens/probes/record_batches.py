"""Records by sample: some samples of one, and several batches as one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from layerlens.errors import OptionError, RecordError
from layerlens.model.trees import describe, map_tensors, named_tensors, replace_tensors

from .call import Call
from .record import Record

_RECURRENT = ("RNN", "LSTM", "GRU")


def part_axes(call: Call, name: str, tensor: torch.Tensor) -> tuple[str, ...] | None:
    """The names of the axes of one tensor of an output, None where they are not known; `name` as in `named_tensors`."""
    if call.type in _RECURRENT and name.startswith("1"):  # states, whichever axis comes first in the output
        return ("layer", "batch", "feature") if tensor.ndim == 3 else None
    known = call.axes is not None and name in ("", "0") and len(call.axes) == tensor.ndim
    return call.axes if known else None


def batch_size(record: Record) -> int:
    """The number of samples: what most calls agree on; the first met, and not 1, where as many speak for each.

    Raises:
        RecordError: when the record holds no tensor with a batch axis.
    """
    sizes: Counter[int] = Counter()
    for call in record.order:
        for name, tensor in named_tensors(call.output):
            if tensor.ndim and not tensor.is_nested:
                axis = _known_axis(call, name, tensor)
                sizes[tensor.shape[0 if axis is None else axis]] += 1 if axis is None else 3
    if not sizes:
        raise RecordError("this record holds no tensor with a batch axis.")
    return max(sizes, key=lambda size: (sizes[size], size != 1))


def samples(record: Record, index: int | slice | Sequence[int]) -> Record:
    """The record of some samples of the batch; see `Record.samples`."""
    batch = batch_size(record)
    try:
        numbers = range(batch)[index] if isinstance(index, slice) else _numbers(index)
        chosen = [range(batch)[number] for number in numbers]
    except (IndexError, TypeError) as error:
        raise OptionError(f"samples {index!r} are not in a record of {batch} (0 to {batch - 1}).") from error
    rows = torch.tensor(chosen, dtype=torch.int64)

    def cut(call: Call, name: str, tensor: torch.Tensor) -> torch.Tensor:
        axis = sample_axis(call, name, tensor, batch)
        return tensor if axis is None else tensor.index_select(axis, rows.to(tensor.device))

    return _rebuilt(record, lambda call: replace_tensors(call.output, lambda name, t: cut(call, name, t)))


def stack(records: Iterable[Record]) -> Record:
    """The records of several batches as one; see `Record.stack`."""
    records = list(records)
    if not records:
        raise OptionError("no records to stack; give one or more.")
    places = [(call.layer, call.index) for call in records[0].order]
    for number, other in enumerate(records):
        if [(call.layer, call.index) for call in other.order] != places:
            raise RecordError(
                f"record {number} holds other calls than record 0, so they cannot be stacked: the runs took other "
                "routes, or other layers were selected. compare record.order of both."
            )
    batches = [batch_size(record) for record in records] if places else []
    groups = iter(list(zip(*(record.order for record in records), strict=True)))
    stacked = _rebuilt(records[0], lambda call: _joined(next(groups), batches))
    stacked.partial = any(record.partial for record in records)
    return stacked


def _joined(group: Sequence[Call], batches: Sequence[int]) -> Any:
    """One output of those of the same call in several batches; what is no tensor is that of the first."""
    call = group[0]
    outputs = [list(named_tensors(other.output)) for other in group]

    def refused(shown: list[str]) -> RecordError:
        return RecordError(
            f"layer {call.layer!r}, call {call.index}: outputs {', '.join(shown[:4])} cannot be stacked; pad the "
            "inputs to one length, or reduce in the capture."
        )

    if any([name for name, _ in parts] != [name for name, _ in outputs[0]] for parts in outputs):
        raise refused([describe(other.output) for other in group])
    columns = iter(list(zip(*outputs, strict=True)))

    def join(_: torch.Tensor) -> torch.Tensor:
        column = next(columns)
        tensors: list[torch.Tensor] = [tensor for _, tensor in column]
        shown = [describe(tensor) for tensor in tensors]
        axes = {sample_axis(call, column[0][0], t, batch) for t, batch in zip(tensors, batches, strict=True)}
        if len(axes) > 1 or len({tensor.dtype for tensor in tensors}) > 1:
            raise refused(shown)
        (axis,) = axes
        if axis is None:  # the same for all samples
            if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
                raise refused(shown)
            return tensors[0]
        try:
            return torch.cat(tensors, dim=axis)
        except RuntimeError as error:
            raise refused(shown) from error

    return map_tensors(call.output, join)


def _rebuilt(record: Record, value_of: Callable[[Call], Any]) -> Record:
    """A record of the same calls with other outputs; arguments and gradients are left out."""
    twin = Record(list(record.selected), record.aliases)
    twin.partial, twin.stopped, twin.unedited = record.partial, record.stopped, record.unedited
    for call in record.order:
        value = value_of(call)
        twin.add(dataclasses.replace(call, value=value, arguments=None, stored=(), stored_inputs=(), gradients=None))
    return twin


def _numbers(index: Any) -> list[Any]:
    """An index as a list; a mask or a flag is none."""
    dtype = getattr(index, "dtype", None)
    if isinstance(index, bool) or str(dtype).rpartition(".")[2] == "bool":
        raise TypeError("numbers of samples are wanted")
    return [index] if hasattr(index, "__index__") and not getattr(index, "shape", ()) else list(index)


def _known_axis(call: Call, name: str, tensor: torch.Tensor) -> int | None:
    """The batch axis of a tensor whose axes are known; None where they are not."""
    axes = part_axes(call, name, tensor)
    return axes.index("batch") if axes is not None and "batch" in axes else None


def sample_axis(call: Call, name: str, tensor: torch.Tensor, batch: int) -> int | None:
    """The axis of samples; None for a tensor with one entry there that all samples share, as position embeddings."""
    known = _known_axis(call, name, tensor)
    first = 0 if known is None else known
    dims = 0 if tensor.is_nested else tensor.ndim
    if first < dims and tensor.shape[first] in (1, batch):
        return first if tensor.shape[first] == batch else None
    if known is None and dims > 1 and tensor.shape[1] == batch:
        return 1
    raise RecordError(
        f"layer {call.layer!r}, call {call.index}: {describe(tensor)} has no axis of the {batch} samples, so it "
        "cannot be taken apart by sample. Capture without this layer, or read it from record.calls."
    )
