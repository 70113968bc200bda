"""What the layers did: every call of every selected layer, in order."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import nn

from layerlens.axes.layout import named
from layerlens.errors import OptionError, RecordError, suggestion
from layerlens.model.layers import LayerPath
from layerlens.model.selection import split_tensor
from layerlens.model.tensors import ByTensor, only
from layerlens.model.trees import describe, map_tensors, named_tensors

from . import export, storage
from .call import Call, Run, Stored, batch_size, sample_axis

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import xarray

PendingCall: TypeAlias = tuple[LayerPath, int, nn.Module, torch.Tensor, int, "Run | None"]
"""Layer, index of the call, module, output and its version, and the run."""


class Record(Mapping[LayerPath, Any]):
    """The calls of the selected layers in one run, or in all runs of one probe.

    `record["conv1"]` is the output of a layer that was called once, `record["rnn/h_n"]` one tensor of it;
    `record.calls("rnn")` lists the calls of any layer. Iterating yields the layers that ran.

    Attributes:
        selected: the selected layers, in definition order.
        partial: whether the run ended by an error, so that later calls are missing.
        stopped: whether the run was ended on purpose after the last selected layer.
        unedited: layers, or calls, whose edit was not made because they did not run.
        parts: layers of a tensor parallel model whose recorded output is the part of this process.
        run: the present run of the model, whose axes can be followed; used by probes.
    """

    def __init__(self, selected: list[LayerPath], aliases: Mapping[LayerPath, LayerPath] | None = None) -> None:
        self.selected = tuple(selected)
        self.partial = self.stopped = False
        self.unedited: tuple[str, ...] = ()
        self.parts: tuple[LayerPath, ...] = ()
        self.aliases = dict(aliases or {})
        self.run: Run | None = None
        self._by_layer: dict[LayerPath, list[Call]] = {path: [] for path in selected}
        self._sequence: list[Call] = []
        self.pending: list[PendingCall] = []
        """Calls seen by a probe that are made into `Call` objects on first use; used by probes."""
        self.entered: list[list[tuple[Any, Stored, float]]] = []
        """For each layer the arguments, and the start, of its calls that are running; used by probes."""

    def declare(self, layer: LayerPath) -> None:
        """Add a name to the selected ones, for names that are found while the model runs; used by probes."""
        if layer not in self._by_layer:
            self._by_layer[layer] = []
            self.selected = (*self.selected, layer)

    def add(self, call: Call) -> None:
        """Append a call; used by probes."""
        self._make_pending_calls()
        self._by_layer[call.layer].append(call)
        self._sequence.append(call)

    def overwritten(self) -> set[str]:
        """Return the calls of which something kept by reference was written since: `"bn1#0"`; used by probes."""
        pending = {f"{path}#{index}" for path, index, _, tensor, before, _ in self.pending if tensor._version != before}
        return pending | {call.name for call in self._sequence if call.overwritten}

    def exchange(self, change: Callable[[Call], Call]) -> None:
        """Exchange every call; used by probes."""
        calls = [change(call) for call in self._order]
        self._sequence[:] = []
        self._by_layer = {path: [] for path in self._by_layer}
        for call in calls:
            self.add(call)

    def _make_pending_calls(self) -> None:
        """Make the calls that hooks only noted, because hooks must be fast."""
        pending, self.pending[:] = self.pending.copy(), []
        for path, index, module, tensor, version, run in pending:
            about = (
                path,
                index,
                len(self._sequence),
                type(module).__name__,
                None if run is None else run.of(path, index),
            )
            call = Call(*about, tensor.detach(), stored=((tensor, version),))
            self._by_layer[path].append(call)
            self._sequence.append(call)

    @property
    def _calls(self) -> dict[LayerPath, list[Call]]:
        if self.pending:
            self._make_pending_calls()
        return self._by_layer

    @property
    def _order(self) -> list[Call]:
        if self.pending:
            self._make_pending_calls()
        return self._sequence

    def calls(self, layer: LayerPath) -> list[Call]:
        """Return every call of `layer`, in order; empty if it was selected and did not run.

        Raises:
            RecordError: when the layer was not selected.
        """
        layer = self.aliases.get(layer, layer)
        if layer not in self._calls:
            near = suggestion(layer, self._calls)
            raise RecordError(f"layer {layer!r} is not in this record of {len(self._calls)} layers.{near}")
        return list(self._calls[layer])

    def axes(self, layer: LayerPath, *, call: int = 0) -> tuple[str, ...]:
        """Return the names of the axes of what a layer returned, such as `("batch", "1+height*width", "unit")`.

        They are followed through one more run of the model, the first time that they are asked for, and are saved with
        the record.

        Args:
            layer: the layer, or a tensor of it (`"rnn/h_n"`).
            call: index of the call.

        Raises:
            AxesUnknown: when they cannot be followed: the values were reduced, or the model itself was not called.
            RecordError: when the layer, or the call, is not there.
            SelectionError: when the layer returned several tensors and none was named.
        """
        path, tensor = split_tensor(layer, self._calls.keys() | self.aliases.keys())
        found = next((one for one in self.calls(path) if one.index == call), None)
        if found is None:
            raise RecordError(f"call {call} of layer {path!r} is not in this record.")
        outputs = found.site.outputs
        return named(outputs[tensor] if tensor in outputs else only(ByTensor(outputs), path, "which have axes each")[1])

    def __getitem__(self, layer: LayerPath) -> Any:
        path, tensor = split_tensor(layer, self._calls.keys() | self.aliases.keys())
        calls = self.calls(path)
        if len(calls) == 1:
            return calls[0].tensors[tensor] if tensor else calls[0].output
        if not calls:
            why = "the run ended by an error before it" if self.partial else "the run took another route"
            raise RecordError(f"layer {layer!r} did not run: {why}. Layers that did not run: record.unrun")
        raise RecordError(f"layer {layer!r} ran {len(calls)} times; take one with record.calls({layer!r})[k].output")

    def __iter__(self) -> Iterator[LayerPath]:
        return (path for path, calls in self._calls.items() if calls)

    def __len__(self) -> int:
        return sum(bool(calls) for calls in self._calls.values())

    def __contains__(self, layer: object) -> bool:
        return bool(self._calls.get(self.aliases.get(layer, layer)))  # type: ignore[call-overload]

    def samples(self, index: int | slice | Sequence[int]) -> Record:
        """Return the record of some samples of the batch: `record.samples(2)`, `record.samples(slice(0, 8))`.

        The axis of samples is followed through one more run of the model; of reduced values it is the first. A tensor
        that all samples share, such as position embeddings, is kept. Arguments and gradients are left out.

        Args:
            index: number of a sample, several, or a slice.

        Raises:
            OptionError: when there is no such sample.
            AxesUnknown: when the axes cannot be followed.
            RecordError: when a tensor has no axis of the samples; names the layer.
        """
        batch = batch_size(self.order)
        try:
            numbers = range(batch)[index] if isinstance(index, slice) else _numbers(index)
            chosen = [range(batch)[number] for number in numbers]
        except (IndexError, TypeError) as error:
            raise OptionError(f"samples {index!r} are not in a record of {batch} (0 to {batch - 1}).") from error
        rows = torch.tensor(chosen, dtype=torch.int64)

        def select(call: Call, tensor: torch.Tensor) -> torch.Tensor:
            axis = sample_axis(call, tensor, batch)
            return tensor if axis is None else tensor.index_select(axis, rows.to(tensor.device))

        return self._with_outputs(lambda call: map_tensors(call.output, lambda tensor: select(call, tensor)))

    @classmethod
    def stack(cls, records: Sequence[Record]) -> Record:
        """Join the records of several batches along the batch axis; anything but tensors comes from the first.

        Args:
            records: one or more, of the same layers.

        Raises:
            OptionError: when there are none.
            RecordError: when they hold different calls, or outputs of different nesting, shapes or types.
        """
        records = list(records)
        if not records:
            raise OptionError("no records to stack; give one or more.")
        first = records[0]
        calls = [(call.layer, call.index) for call in first.order]
        for number, other in enumerate(records):
            if [(call.layer, call.index) for call in other.order] != calls:
                raise RecordError(
                    f"record {number} holds other calls than record 0, so they cannot be stacked: the runs took other "
                    "routes, or other layers were selected. compare record.order of both."
                )
        batches = [batch_size(record.order) for record in records] if calls else []
        groups = iter(list(zip(*(record.order for record in records), strict=True)))
        stacked = first._with_outputs(lambda call: _joined(next(groups), batches))
        stacked.partial = any(record.partial for record in records)
        return stacked

    def _with_outputs(self, output_of: Callable[[Call], Any]) -> Record:
        """A record of the same calls with other outputs, without arguments and gradients."""
        twin = Record(list(self.selected), self.aliases)
        twin.partial, twin.stopped, twin.unedited = self.partial, self.stopped, self.unedited
        removed: dict[str, Any] = {"arguments": None, "stored": (), "stored_inputs": (), "gradients": None}
        for call in self.order:
            twin.add(dataclasses.replace(call, value=output_of(call), **removed))
        return twin

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return every tensor as an array: `layer`, `layer#1` for its second call, `layer:0` in a nested output.

        Sparse and quantized tensors become dense; bfloat16 and float8 become float32.

        Raises:
            RecordError: when two tensors have the same name, or one has no data.
        """
        return export.to_numpy(self)

    def to_xarray(self) -> xarray.Dataset:
        """Return a `Dataset` of all tensors with named axes; needs xarray."""
        return export.to_xarray(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Return statistics of every tensor: mean, std, min, max, share of zeros, number of non-finite values."""
        return export.to_pandas(self)

    def difference(self, other: Record, *, rtol: float = 0.0, atol: float = 0.0) -> str | None:
        """Say where two records differ first; None if calls, nesting, shapes and values are equal.

        Numbers and texts next to the tensors are compared as well; other objects are not.

        Args:
            other: the other record.
            rtol: relative tolerance of values.
            atol: absolute tolerance of values.
        """
        return export.difference(self, other, rtol=rtol, atol=atol)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the outputs to one safetensors file, whole or not at all, and return its path.

        Named tuples, model outputs and dataclasses are read back as dicts. Arguments and gradients are left out.

        Raises:
            ResultFileError: when the folder does not exist, or a tensor is sparse, nested or quantized.
        """
        return storage.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a file that `save` wrote.

        Raises:
            ResultFileError: when the file is missing, damaged, or of another kind.
        """
        return storage.load(path, cls)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def order(self) -> tuple[Call, ...]:
        """All calls in the order in which they ended: the route of the run."""
        return tuple(self._order)

    @property
    def count(self) -> int:
        """Number of recorded calls."""
        return len(self._order)

    @property
    def unrun(self) -> tuple[LayerPath, ...]:
        """The selected layers that did not run."""
        return tuple(path for path, calls in self._calls.items() if not calls)

    @property
    def nbytes(self) -> int:
        """Bytes of the recorded tensors, each storage counted once."""
        storages = {}
        for call in self._order:
            for _, tensor in named_tensors((call.value, call.arguments)):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(storages.values())

    def __repr__(self) -> str:
        head = f"Record({len(self)} layers, {len(self._order)} calls, {self.nbytes / 2**20:.1f} MiB"
        head += f", {len(self.unrun)} did not run" if self.unrun else ""
        head += ", partial)" if self.partial else ", stopped)" if self.stopped else ")"
        lines = [
            f"  {call.layer or '(model)'} #{call.index}: {call.type} {describe(call.value)}" for call in self._order
        ]
        if len(lines) > 12:
            lines = [*lines[:8], f"  ... {len(lines) - 10} more", *lines[-2:]]
        return "\n".join([head, *lines])


def _joined(calls: Sequence[Call], batches: Sequence[int]) -> Any:
    """Join the outputs of the same call in several batches; anything but tensors comes from the first.

    Raises:
        RecordError: when they cannot be joined.
    """
    call = calls[0]
    outputs = [list(named_tensors(other.output)) for other in calls]

    def refuse(shown: list[str], cause: Exception | None = None) -> NoReturn:
        raise RecordError(
            f"layer {call.layer!r}, call {call.index}: outputs {', '.join(shown[:4])} cannot be stacked; pad the "
            "inputs to one length, or reduce in the capture."
        ) from cause

    if any([name for name, _ in parts] != [name for name, _ in outputs[0]] for parts in outputs):
        refuse([describe(other.output) for other in calls])
    columns = iter(list(zip(*outputs, strict=True)))

    def join(_: torch.Tensor) -> torch.Tensor:
        column = next(columns)
        tensors: list[torch.Tensor] = [tensor for _, tensor in column]
        shown = [describe(tensor) for tensor in tensors]
        axes = {sample_axis(*one) for one in zip(calls, tensors, batches, strict=True)}
        if len(axes) > 1 or len({tensor.dtype for tensor in tensors}) > 1:
            refuse(shown)
        (axis,) = axes
        if axis is None:  # the same for all samples
            if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
                refuse(shown)
            return tensors[0]
        try:
            return torch.cat(tensors, dim=axis)
        except RuntimeError as error:
            refuse(shown, error)

    return map_tensors(call.output, join)


def _numbers(index: object) -> list[Any]:
    """Return an index as a list.

    Raises:
        TypeError: for a mask or a flag.
    """
    dtype = getattr(index, "dtype", None)
    if isinstance(index, bool) or str(dtype).rpartition(".")[2] == "bool":
        raise TypeError("numbers of samples are wanted")
    return [index] if hasattr(index, "__index__") and not getattr(index, "shape", ()) else list(index)  # type: ignore[call-overload]
