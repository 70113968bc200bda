"""What the layers did: every call of every selected layer, in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerlens.axes.names import axes_of
from layerlens.errors import RecordError, suggestion
from layerlens.model.layers import LayerPath
from layerlens.model.trees import describe, named_tensors

from .call import Call, Noted


class Record(Mapping[LayerPath, Any]):
    """The calls of the selected layers in one run, or in all runs of one probe.

    `record["conv1"]` is the output of a layer that was called once; `record.calls("rnn")` lists the calls of any
    layer. Iterating yields the layers that ran.

    Attributes:
        selected: the layers that were asked for, in definition order.
        partial: True when the run ended by an error, so that later calls are missing.
        stopped: True when the run was ended on purpose after the last layer that was wanted.
        unedited: the layers, or calls, whose edit was never made because they did not run.
        parts: the layers of a tensor parallel model whose output, as recorded, is the part of this process.
    """

    def __init__(self, selected: list[LayerPath], aliases: Mapping[LayerPath, LayerPath] | None = None) -> None:
        self.selected = tuple(selected)
        self.partial = self.stopped = False
        self.unedited: tuple[str, ...] = ()
        self.parts: tuple[LayerPath, ...] = ()
        self.aliases = dict(aliases or {})
        self._by_layer: dict[LayerPath, list[Call]] = {path: [] for path in selected}
        self._sequence: list[Call] = []
        self.noted: list[Noted] = []
        """Calls that a probe has seen, to be told apart when they are asked for; used by probes."""

    def declare(self, layer: LayerPath) -> None:
        """Add a name to those that were selected (used where names are found as the model runs)."""
        if layer not in self._by_layer:
            self._by_layer[layer] = []
            self.selected = (*self.selected, layer)

    def add(self, call: Call) -> None:
        """Append a call (used by probes)."""
        self._settle()
        self._by_layer[call.layer].append(call)
        self._sequence.append(call)

    def _settle(self) -> None:
        """Make calls of what was noted; in a hook there is no time for it."""
        noted, self.noted[:] = self.noted.copy(), []
        for path, index, module, tensor, written in noted:
            place = (path, index, len(self._sequence), type(module).__name__, axes_of(module, tensor))
            call = Call(*place, tensor.detach(), stored=((tensor, written),))
            self._by_layer[path].append(call)
            self._sequence.append(call)

    @property
    def _calls(self) -> dict[LayerPath, list[Call]]:
        if self.noted:
            self._settle()
        return self._by_layer

    @property
    def _order(self) -> list[Call]:
        if self.noted:
            self._settle()
        return self._sequence

    def calls(self, layer: LayerPath) -> list[Call]:
        """Every call of `layer`, in order; empty when it was selected and did not run.

        Raises:
            RecordError: when the layer was not selected.
        """
        layer = self.aliases.get(layer, layer)
        if layer not in self._calls:
            near = suggestion(layer, self._calls)
            raise RecordError(f"layer {layer!r} is not in this record of {len(self._calls)} layers.{near}")
        return list(self._calls[layer])

    def __getitem__(self, layer: LayerPath) -> Any:
        calls = self.calls(layer)
        if len(calls) == 1:
            return calls[0].output
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
        """The record of some samples of the batch: `record.samples(2)`, `record.samples(slice(0, 8))`.

        The batch axis is that of the layer's kind, such as 1 for the states of an LSTM, and the first or second one
        that has as many entries as the batch where that is not known. A tensor with one entry there is what all samples
        share, such as position embeddings, and stays. Arguments and gradients are left out.

        A linear layer inside a model that puts time first is not told from one that puts the batch first: there,
        run the samples by themselves.

        Raises:
            OptionError: when there is no such sample.
            RecordError: when a tensor has no axis of the samples; names the layer.
        """
        from .record_batches import samples

        return samples(self, index)

    @classmethod
    def stack(cls, records: Sequence[Record]) -> Record:
        """The records of several batches as one, along the batch axis; what is no tensor is that of the first.

        Raises:
            OptionError: when there are none.
            RecordError: when they hold different calls, or outputs of different nesting, shapes or types.
        """
        from .record_batches import stack

        return stack(records)

    def numpy(self) -> dict[str, Any]:
        """Every tensor as an array: `layer`, `layer#1` for its second call, `layer:0` inside a nested output.

        Sparse and quantized tensors become dense; bfloat16 and float8 become float32.

        Raises:
            RecordError: when two tensors have the same name, or one has no data.
        """
        from .export import to_numpy

        return to_numpy(self)

    def to_xarray(self) -> Any:
        """A `Dataset` of all tensors with named axes; needs xarray."""
        from .export import to_xarray

        return to_xarray(self)

    def to_pandas(self) -> Any:
        """Statistics of every tensor: mean, std, min, max, share of zeros, number of values that are not finite."""
        from .export import to_pandas

        return to_pandas(self)

    def difference(self, other: Record, *, rtol: float = 0.0, atol: float = 0.0) -> str | None:
        """Where two records differ first, as a sentence; None where calls, nesting, shapes and values are equal.

        Numbers and texts beside the tensors count as well; other objects do not.

        Args:
            other: the other record.
            rtol: relative tolerance of values.
            atol: absolute tolerance of values.
        """
        from .export import difference

        return difference(self, other, rtol=rtol, atol=atol)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the outputs to one safetensors file, in one step; returns its path.

        Named tuples, model outputs and dataclasses are read back as dicts. Arguments and gradients are left out.

        Raises:
            ResultFileError: when the folder does not exist, or a tensor is sparse, nested or quantized.
        """
        from .storage import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read what `save` wrote.

        Raises:
            ResultFileError: when the file is missing, damaged, or of another kind.
        """
        from .storage import load

        return load(path)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def order(self) -> tuple[Call, ...]:
        """All calls in the order in which they ended: the route that the run took."""
        return tuple(self._order)

    @property
    def count(self) -> int:
        """How many calls were recorded."""
        return len(self._order)

    @property
    def unrun(self) -> tuple[LayerPath, ...]:
        """The selected layers that did not run."""
        return tuple(path for path, calls in self._calls.items() if not calls)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held, each storage counted once."""
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
