"""Leaves inside a model: the output of one call of one layer instead of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.axes.call_site import CallSite
from layerlens.axes.followed import followed
from layerlens.axes.layout import layer_names, role
from layerlens.errors import InputError, RecordError, SelectionError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.tensors import changeable, exchanged, refuse_several, tensor_path
from layerlens.model.trees import describe
from layerlens.probes.probe import Probe
from layerlens.probes.record import Record

from ..calls.used_tensors import used_tensors
from ..inner_gradients import InnerGradients


@dataclasses.dataclass(frozen=True)
class LeafCall:
    """One call of one layer, and the layout of its output.

    Attributes:
        layer: path of the layer.
        call: index of the call.
        axis: batch axis of the output.
        fold: rows of the output that belong to one sample, such as the windows of an image; 1 for most layers.
        axes: names of the axes with the batch first, and `"window"` second where rows were folded; None if unknown.
        module: the layer.
        tensor: name of the tensor of its output; `""` if it is the only one of floating point.
    """

    layer: LayerPath
    call: int
    axis: int
    fold: int
    axes: tuple[str, ...] | None
    module: nn.Module = dataclasses.field(repr=False)
    tensor: str

    @property
    def name(self) -> str:
        """Path of the layer, with the call unless it is the first, and the tensor of several."""
        return tensor_path(f"{self.layer}#{self.call}" if self.call else self.layer, self.tensor)

    def of(self, output: object) -> tuple[str, torch.Tensor]:
        """Return the full name and the values of the tensor in an output of the call."""
        found = changeable(self.module, output, None, self.layer)
        return next((name, tensor) for name, tensor in found.items() if self.tensor in (name, ""))

    def batch_first(self, output: torch.Tensor) -> torch.Tensor:
        """Return the output as `(batch, ...)`."""
        moved = output.movedim(self.axis, 0)
        return moved if self.fold == 1 else moved.reshape(-1, self.fold, *moved.shape[1:])

    def as_returned(self, value: torch.Tensor) -> torch.Tensor:
        """Undo `batch_first`."""
        flat = value if self.fold == 1 else value.flatten(0, 1)
        return flat.movedim(0, self.axis)

    def exchange(self, value: torch.Tensor) -> Callable[[Any], Any]:
        """Return a function that replaces the tensor in an output by `value`."""
        return lambda output: exchanged(self.module, output, {self.of(output)[0]: self.as_returned(value).clone()})


def find_leaf_call(
    model: nn.Module, inputs: Inputs, where: Selection, forward: Forward | None
) -> tuple[LeafCall, torch.Tensor]:
    """Find the one tensor that `where` names, as `find_leaf_calls`.

    Raises:
        SelectionError: when the model reads several tensors of the layer; it lists them.
    """
    found = find_leaf_calls(model, inputs, where, forward)
    if len(found) > 1:
        refuse_several(found[0][0].layer, [place.tensor for place, _ in found], "and one is needed here")
    return found[0]


def find_leaf_calls(
    model: nn.Module, inputs: Inputs, where: Selection, forward: Forward | None
) -> list[tuple[LeafCall, torch.Tensor]]:
    """Find the call that `where` names, and the tensors of its output with the batch first; the model is run once.

    Of several tensors it is those that are named, or all that the model reads, for which it is run once more.

    Raises:
        LayerNotFound: when the selection matches no layer.
        SelectionError: when it matches several layers or calls.
        RecordError: when the layer did not run, ran several times and no call was named, or returned no tensor of
            floating-point numbers.
        AxesUnknown: when the axis of samples of its output is not known.
        InputError: when its output has none.
    """
    known = followed(model, inputs, forward)
    matches = Layers(model).select(where, calls=True, tensors=True)
    if len(matches.calls) > 1:
        raise SelectionError(f"where={where!r} matches {len(matches.calls)} layers, one is needed: {matches[:8]}.")
    ((path, chosen),) = matches.calls.items()

    def run(values: Mapping[str, torch.Tensor]) -> Record:
        with Probe(model, path) as record:
            inputs.replace(values).run(model, forward)
        return record

    with torch.no_grad():
        record = InnerGradients().run(run, inputs.floating())
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
    module, output, names = model.get_submodule(path), calls[index].output, matches.tensors[path]
    found = changeable(module, output, names, path)
    if not any(tensor.is_floating_point() for tensor in found.values()):
        raise RecordError(f"layer {path!r} returned {describe(output)}: no floating-point tensor.")
    used = list(found)
    if len(found) > 1 and names is None:
        used = used_tensors(model, inputs, forward, path).get((path, index), used)
    named = names is not None or len(found) > 1
    site = known.site(path, index)
    return [_place(site, module, name, named, found[name], inputs.batch) for name in used]


def _place(
    site: CallSite, module: nn.Module, name: str, named: bool, output: torch.Tensor, batch: int
) -> tuple[LeafCall, torch.Tensor]:
    axis = site.batch_axis(output, name)
    if axis is None or output.shape[axis] % batch:
        raise InputError(
            f"layer {tensor_path(site.path, name)!r} returned {describe(output)} for a batch of {batch}: no axis of it "
            "distinguishes the samples. Choose another layer."
        )
    fold, axes, names = output.shape[axis] // batch, site.seen(name), layer_names(site.seen(name))
    if names is not None:
        windows = () if role(axes[axis]) == "batch" else ("window",)
        names = ("batch", *windows, *(one for place, one in enumerate(names) if place != axis))
    whole = names if names is not None and len(names) == output.ndim + (fold > 1) else None
    place = LeafCall(site.path, site.index, axis, fold, whole, module, name if named else "")
    return place, place.batch_first(output)
