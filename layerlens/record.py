"""What the layers did: every call of every selected layer, in order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from .axes import axes_of
from .errors import OverwrittenError, RecordError, suggestion
from .layers import LayerPath
from .nested import describe, named_tensors, version

Stored = tuple[tuple[torch.Tensor, int], ...]
"""Tensors kept by reference, each with the version that it had when it was recorded."""


Noted = tuple[LayerPath, int, nn.Module, torch.Tensor, int]
"""Layer, index of the call, module, output and its version."""


class Gradients:
    """Gradients of the tensors that one call returned, added up over backward passes as in `.grad`.

    Args:
        output: of the call, nested as it may be.
    """

    def __init__(self, output: Any) -> None:
        self.found: dict[str, torch.Tensor | None] = {}
        self.edges: list[Any] = []
        for name, tensor in named_tensors(output):
            if tensor.requires_grad:
                self.found[name] = None
                self.edges.append(get_gradient_edge(tensor))
                tensor.register_hook(functools.partial(self._add, name))  # type: ignore[no-untyped-call]

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        before = self.found[name]
        self.found[name] = gradient.detach().clone() if before is None else before + gradient.detach()


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        layer: path of the layer.
        index: 0 for the layer's first call in the run, 1 for the second, ...
        order: position of the call's end among all recorded calls of the run.
        type: name of the module's class.
        axes: names of the output's axes, for example `("batch", "channel", "height", "width")`; None where unknown.
        output: what the layer returned, nested as it was (tuples, dicts, None kept in place).
        inputs: positional and keyword arguments as `(args, kwargs)` when they were asked for, else None.
        seconds: time from entry to exit of the call, children included, when timing was asked for, else None.
    """

    layer: LayerPath
    index: int
    order: int
    type: str
    axes: tuple[str, ...] | None
    value: Any = dataclasses.field(repr=False)
    arguments: Any = dataclasses.field(default=None, repr=False)
    seconds: float | None = None
    stored: Stored = dataclasses.field(default=(), repr=False)
    stored_inputs: Stored = dataclasses.field(default=(), repr=False)
    gradients: Gradients | None = dataclasses.field(default=None, repr=False)

    @property
    def output(self) -> Any:
        """What the layer returned.

        Raises:
            OverwrittenError: when it was kept by reference and an operation has written into it since.
        """
        self._check(self.stored, "output")
        return self.value

    @property
    def inputs(self) -> Any:
        """The layer's `(args, kwargs)` as they were on entry, or None when inputs were not asked for.

        Raises:
            OverwrittenError: when they were kept by reference and an operation, perhaps the layer, wrote into them.
        """
        self._check(self.stored_inputs, "input")
        return self.arguments

    @property
    def gradient(self) -> Any:
        """The gradient of the output: a tensor like it, or a dict by dotted name where it is nested.

        Raises:
            RecordError: when none was asked for, no backward pass has come by, or the output requires no gradient.
        """
        if self.gradients is None:
            raise RecordError("gradients were not recorded: Probe(gradients=True), or capture(gradients=True).")
        found = {name: gradient for name, gradient in self.gradients.found.items() if gradient is not None}
        if not found:
            why = "no backward pass has come by" if self.gradients.found else "it was made without gradients"
            raise RecordError(f"layer {self.layer!r}, call {self.index}, has no gradient: {why}.")
        return found[""] if list(found) == [""] else found

    @property
    def overwritten(self) -> bool:
        """Whether a tensor kept by reference has been written in place since the call."""
        return _written((*self.stored, *self.stored_inputs))

    def _check(self, stored: Stored, what: str) -> None:
        if _written(stored):
            raise OverwrittenError(
                f"layer {self.layer!r}, call {self.index}: a later operation wrote into this {what} in place, so its "
                "value is gone. Capture with keep='clone' (or keep='auto' of lens.capture)."
            )

    def __repr__(self) -> str:
        return f"Call({self.layer!r} #{self.index}, {self.type}: {describe(self.value)})"


def _written(stored: Stored) -> bool:
    return any(version(tensor) != written for tensor, written in stored)


class Record(Mapping[LayerPath, Any]):
    """The calls of the selected layers in one run, or in all runs of one probe.

    `record["conv1"]` is the output of a layer that was called once; `record.calls("rnn")` lists the calls of any
    layer. Iterating yields the layers that ran.

    Attributes:
        selected: the layers that were asked for, in definition order.
        partial: True when the run ended by an error, so that later calls are missing.
        stopped: True when the run was ended on purpose after the last layer that was wanted.
        unedited: the layers, or calls, whose edit was never made because they did not run.
    """

    def __init__(self, selected: list[LayerPath], aliases: Mapping[LayerPath, LayerPath] | None = None) -> None:
        self.selected = tuple(selected)
        self.partial = self.stopped = False
        self.unedited: tuple[str, ...] = ()
        self._aliases = dict(aliases or {})
        self._by_layer: dict[LayerPath, list[Call]] = {path: [] for path in selected}
        self._sequence: list[Call] = []
        self.noted: list[Noted] = []
        """Calls that a probe has seen, to be told apart when they are asked for; used by probes."""

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
        layer = self._aliases.get(layer, layer)
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
        return bool(self._calls.get(self._aliases.get(layer, layer)))  # type: ignore[call-overload]

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
