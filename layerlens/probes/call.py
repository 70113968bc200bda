"""One call of one layer: its output, its arguments, and the gradient of its output."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import get_gradient_edge

from layerlens.errors import OverwrittenError, RecordError
from layerlens.model.layers import LayerPath
from layerlens.model.tensors import ByTensor, only, tensors_of
from layerlens.model.trees import describe, named_tensors, padded, version

Stored: TypeAlias = tuple[tuple[torch.Tensor, int], ...]
"""Tensors kept by reference, each with its version when it was recorded."""


class Gradients:
    """Gradients of the tensors that one call returned, added up over backward passes as in `.grad`.

    Args:
        tensors: tensors of the output, by name.
    """

    def __init__(self, tensors: ByTensor[torch.Tensor]) -> None:
        self.found: dict[str, torch.Tensor | None] = {}
        self.positions = tensors.positions
        self.edges: list[Any] = []
        for name, tensor in tensors.items():
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
        axes: names of the output's axes, for example `("batch", "channel", "height", "width")`; None if unknown.
        output: output of the layer, nested as it was.
        inputs: positional and keyword arguments as `(args, kwargs)` if they were asked for, else None.
        names: names of the tensors in the output, in order; none if they are numbers and keys.
        seconds: time from entry to exit of the call, children included, if timing was asked for, else None.
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
    names: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @property
    def tensors(self) -> ByTensor[torch.Tensor]:
        """The tensors of the output by name: `h_n` of an LSTM; `""` for a single tensor.

        Raises:
            OverwrittenError: as `output` does.
        """
        found = tensors_of(None, self.output)
        if not self.names:
            return found
        positions = dict(zip(found, self.names, strict=True))
        return ByTensor(dict(zip(self.names, found.values(), strict=True)), positions)

    def single(self) -> tuple[str, torch.Tensor] | None:
        """Return the name and the values of the one tensor of the output; None if it has none.

        Where one of several tensors is of floating point, it is meant. A nested one is padded with 0. The name is `""`
        unless the output holds several, or the tensor was recorded by its name.

        Raises:
            SelectionError: when there are several; it lists them.
            OverwrittenError: as `output` does.
        """
        found = self.tensors
        floating = ByTensor({name: tensor for name, tensor in found.items() if tensor.is_floating_point()})
        if not found:
            return None
        name, tensor = only(floating or found, self.layer, "and one is needed here")
        return name if isinstance(self.value, torch.Tensor) else "", padded(tensor)

    @property
    def output(self) -> Any:
        """The output of the layer.

        Raises:
            OverwrittenError: when it was kept by reference and an operation has written into it since.
        """
        self._check(self.stored, "output")
        return self.value

    @property
    def inputs(self) -> Any:
        """The `(args, kwargs)` of the layer as they were on entry; None if inputs were not asked for.

        Raises:
            OverwrittenError: when they were kept by reference and an operation, perhaps the layer, wrote into them.
        """
        self._check(self.stored_inputs, "input")
        return self.arguments

    @property
    def gradient(self) -> Any:
        """The gradient of the output: a tensor like it, or a dict by name, as in `tensors`, if it is nested.

        Raises:
            RecordError: when none was asked for, no backward pass has run, or the output requires no gradient.
        """
        if self.gradients is None:
            raise RecordError("gradients were not recorded: Probe(gradients=True), or capture(gradients=True).")
        found = {name: gradient for name, gradient in self.gradients.found.items() if gradient is not None}
        if not found:
            why = "no backward pass has run" if self.gradients.found else "it was computed without gradients"
            raise RecordError(f"layer {self.layer!r}, call {self.index}, has no gradient: {why}.")
        return found[""] if list(found) == [""] else ByTensor(found, self.gradients.positions)

    @property
    def overwritten(self) -> bool:
        """Whether a tensor kept by reference was written in place since the call."""
        return _written((*self.stored, *self.stored_inputs))

    def _check(self, stored: Stored, what: str) -> None:
        if _written(stored):
            raise OverwrittenError(
                f"layer {self.layer!r}, call {self.index}: a later operation wrote into this {what} in place, so its "
                "value is lost. Capture with keep='clone' (or keep='auto' of lens.capture)."
            )

    def __repr__(self) -> str:
        return f"Call({self.layer!r} #{self.index}, {self.type}: {describe(self.value)})"


def _written(stored: Stored) -> bool:
    return any(version(tensor) != written for tensor, written in stored)


def part_axes(call: Call, name: str, tensor: torch.Tensor) -> tuple[str, ...] | None:
    """Return the names of the axes of one tensor of an output; None if unknown. `name` is that of `named_tensors`."""
    if call.names:
        found = dict(zip((at for at, _ in named_tensors(call.value)), call.names, strict=True)).get(name, name)
        if found in ("h_n", "c_n"):  # states, whichever axis comes first in the output
            return ("layer", "batch", "feature") if tensor.ndim == 3 else None
    known = call.axes is not None and name in ("", "0") and len(call.axes) == tensor.ndim
    return call.axes if known else None


def batch_size(calls: Iterable[Call]) -> int:
    """Return the number of samples: the size that most calls agree on; in a tie the first one other than 1.

    Raises:
        RecordError: when no call has a tensor with a batch axis.
    """
    sizes: Counter[int] = Counter()
    for call in calls:
        for name, tensor in named_tensors(call.output):
            if tensor.ndim and not tensor.is_nested:
                axis = _known_axis(call, name, tensor)
                sizes[tensor.shape[0 if axis is None else axis]] += 1 if axis is None else 3
    if not sizes:
        raise RecordError("this record holds no tensor with a batch axis.")
    return max(sizes, key=lambda size: (sizes[size], size != 1))


def sample_axis(call: Call, name: str, tensor: torch.Tensor, batch: int) -> int | None:
    """Return the axis of samples; None for a tensor with one entry that all samples share, as position embeddings.

    Raises:
        RecordError: when the tensor has no axis of that many samples.
    """
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


def _known_axis(call: Call, name: str, tensor: torch.Tensor) -> int | None:
    """Return the batch axis of a tensor if its axes are known, else None."""
    axes = part_axes(call, name, tensor)
    return axes.index("batch") if axes is not None and "batch" in axes else None
