"""Leaves inside a model: the output of one call of one layer instead of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.axes.names import Axes, axes_of, batch_axis
from layerlens.errors import InputError, RecordError, SelectionError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.trees import describe, map_tensors, named_tensors
from layerlens.probes.probe import Probe


@dataclasses.dataclass(frozen=True)
class Place:
    """One call of one layer, and the layout of its output.

    Attributes:
        layer: path of the layer.
        call: index of the call.
        axis: batch axis of the output.
        fold: rows of the output that belong to one sample, such as the windows of an image; 1 for most layers.
        axes: names of the axes with the batch first, where they are known.
    """

    layer: LayerPath
    call: int
    axis: int
    fold: int
    axes: Axes | None

    @property
    def name(self) -> str:
        """Path of the layer, with the call unless it is the first."""
        return f"{self.layer}#{self.call}" if self.call else self.layer

    def batch_first(self, output: torch.Tensor) -> torch.Tensor:
        """Return the output as `(batch, ...)`."""
        moved = output.movedim(self.axis, 0)
        return moved if self.fold == 1 else moved.reshape(-1, self.fold, *moved.shape[1:])

    def as_returned(self, value: torch.Tensor) -> torch.Tensor:
        """Undo `batch_first`."""
        flat = value if self.fold == 1 else value.flatten(0, 1)
        return flat.movedim(0, self.axis)

    def exchange(self, value: torch.Tensor) -> Callable[[Any], Any]:
        """Return a function that replaces the first floating-point tensor of an output by `value`."""

        def changed(output: object) -> Any:
            names = iter(dict(named_tensors(output)))
            chosen = _main(output)
            return map_tensors(
                output, lambda tensor: self.as_returned(value).clone() if next(names) == chosen else tensor
            )

        return changed


def find_place(
    model: nn.Module, inputs: Inputs, where: Selection, forward: Forward | None
) -> tuple[Place, torch.Tensor]:
    """Find the call that `where` names, and its output with the batch first; the model is run once.

    Raises:
        LayerNotFound: when the selection matches no layer.
        SelectionError: when it matches several layers or calls.
        RecordError: when the layer did not run, ran several times and no call was named, or returned no tensor of
            floating-point numbers.
        InputError: when the batch axis of its output is unknown.
    """
    matches = Layers(model).select(where, calls=True)
    if len(matches.calls) > 1:
        raise SelectionError(f"where={where!r} matches {len(matches.calls)} layers, one is needed: {matches[:8]}.")
    ((path, chosen),) = matches.calls.items()
    with torch.no_grad(), Probe(model, path) as record:
        inputs.run(model, forward)
    calls = record.calls(path)
    if not calls:
        raise RecordError(f"layer {path!r} did not run: the run took another route, or its parent calls it by parts.")
    if (chosen is None and len(calls) > 1) or (chosen is not None and len(chosen) > 1):
        raise SelectionError(
            f"layer {path!r} ran {len(calls)} times; name one call: where='{path}#0' to '{path}#{len(calls) - 1}'."
        )
    index = 0 if chosen is None else next(iter(chosen))
    if index >= len(calls):
        raise RecordError(f"layer {path!r} ran {len(calls)} time(s); there is no call {index}.")
    name = _main(calls[index].output)
    if name is None:
        raise RecordError(f"layer {path!r} returned {describe(calls[index].output)}: no floating-point tensor.")
    output = dict(named_tensors(calls[index].output))[name]
    axis, batch = batch_axis(model.get_submodule(path), output), inputs.batch
    if not output.ndim or output.shape[axis] % batch:
        raise InputError(
            f"layer {path!r} returned {describe(output)} for a batch of {batch}: its batch axis is unknown. "
            "Choose another layer, or give one sample."
        )
    fold = output.shape[axis] // batch
    axes = axes_of(model.get_submodule(path), output) if fold == 1 else None
    if axes is not None:
        axes = ("batch", *(name for name in axes if name != "batch")) if "batch" in axes else None
    place = Place(path, index, axis, fold, axes)
    return place, place.batch_first(output)


def _main(output: object) -> str | None:
    """The name of the first floating-point tensor in an output."""
    return next((name for name, tensor in named_tensors(output) if tensor.is_floating_point()), None)
