"""Leaves inside a model: what calls of layers return, or take, instead of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.axes.call_site import CallSite
from layerlens.axes.followed import followed
from layerlens.axes.layout import layer_names, role
from layerlens.errors import InputError, RecordError, SelectionError, TargetError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath, Layers, Selection, is_listed
from layerlens.model.selection import Calls, InputOf, Names
from layerlens.model.tensors import argument_key, changeable, exchanged, tensor_path
from layerlens.model.trees import describe
from layerlens.probes.made_edits import Edited
from layerlens.probes.probe import Probe
from layerlens.probes.record import Record

from ..calls.used_tensors import used_tensors
from ..inner_gradients import InnerGradients


@dataclasses.dataclass(frozen=True)
class LeafCall:
    """One call of one layer, and the layout of a tensor that it returned, or took.

    Attributes:
        layer: path of the layer.
        call: index of the call.
        axis: batch axis of the tensor.
        fold: rows of the tensor that belong to one sample, such as the windows of an image; 1 for most layers.
        axes: names of the axes with the batch first, and `"window"` second where rows were folded; None if unknown.
        module: the layer; None for what it took.
        tensor: name of the tensor of its output, or of its arguments; `""` if it is the only one of floating point.
    """

    layer: LayerPath
    call: int
    axis: int
    fold: int
    axes: tuple[str, ...] | None
    module: nn.Module | None = dataclasses.field(repr=False)
    tensor: str

    @property
    def name(self) -> str:
        """Path of the layer, with the call unless it is the first, and the tensor of several."""
        path = tensor_path(f"{self.layer}#{self.call}" if self.call else self.layer, self.tensor)
        return path if self.module is not None else repr(InputOf(path))

    @property
    def selection(self) -> Selection:
        """What names this tensor of this call in `where`."""
        path = tensor_path(f"{self.layer}#{self.call}", self.tensor)
        return path if self.module is not None else InputOf(path)

    @property
    def edited(self) -> Edited:
        """What an edit of the tensor is an edit of."""
        return self.layer if self.module is not None else InputOf(self.layer)

    def unread(self, score: str, *, together: bool = False) -> TargetError:
        """Return the error that a score does not depend on it, perhaps where other layers are replaced as well."""
        verb = "took" if self.module is None else "returned"
        more = " besides what the other layers hold: take layers that follow each other one by one" if together else ""
        return TargetError(
            f"the score {score!r} does not depend on what layer {self.name!r} {verb}{more}, or not in a way that can "
            "be differentiated. Choose another layer."
        )

    def of(self, output: object) -> tuple[str, torch.Tensor]:
        """Return the full name and the values of the tensor in an output, or in arguments, of the call."""
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

    def exchange(self, value: torch.Tensor, *, through: bool = False) -> Callable[[Any], Any]:
        """Return a function that replaces the tensor in an output by `value`.

        Args:
            value: `(batch, ...)`.
            through: whether gradients also reach what the replaced tensor was made of.
        """
        return lambda output: self.put(output, value, through=through)

    def put(self, output: object, value: torch.Tensor, *, through: bool = False) -> Any:
        """Return an output with `value`, `(batch, ...)`, instead of the tensor; see `exchange`."""
        name, tensor = self.of(output)
        new = self.as_returned(value)
        return exchanged(self.module, output, {name: _Through.apply(new, tensor) if through else new.clone()})  # type: ignore[no-untyped-call]


class _Through(torch.autograd.Function):
    """A value instead of a tensor, whose gradient both get."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradients[0], gradients[0]


def find_leaf_calls(
    model: nn.Module, inputs: Inputs, where: Selection, forward: Forward | None
) -> list[tuple[LeafCall, torch.Tensor]]:
    """Find the calls that `where` names, and their tensors with the batch first; the model is run once.

    Of several tensors of an output it is those that are named, or all that the model reads, for which it is run once
    more; of several arguments those that are named, or all.

    Raises:
        LayerNotFound: when the selection matches no layer.
        SelectionError: when one that is not in a list matches several layers, or it matches several calls.
        RecordError: when a layer did not run, ran several times and no call was named, or has no tensor of
            floating-point numbers.
        AxesUnknown: when the axis of samples of a tensor is not known.
        InputError: when a tensor has none.
    """
    known = followed(model, inputs, forward)
    chosen = _chosen(Layers(model), where)

    def run(values: Mapping[str, torch.Tensor]) -> Record:
        taken = any(argument for *_, argument in chosen)
        with Probe(model, [path for path, *_ in chosen], inputs=taken) as record:
            inputs.replace(values).run(model, forward)
        return record

    with torch.no_grad():
        record = InnerGradients().run(run, inputs.floating())
    found = {}
    for path, calls, names, argument in chosen:
        index = _call(record, path, calls)
        module = None if argument else model.get_submodule(path)
        call = record.calls(path)[index]
        output = call.inputs if argument else call.output
        tensors = changeable(module, output, names, path)
        if not any(tensor.is_floating_point() for tensor in tensors.values()):
            verb = "took" if argument else "returned"
            raise RecordError(f"layer {path!r} {verb} {describe(output)}: no floating-point tensor.")
        used = list(tensors)
        if len(tensors) > 1 and names is None and not argument:
            used = used_tensors(model, inputs, forward, path).get((path, index), used)
        named = names is not None or len(tensors) > 1
        places = [_place(known.site(path, index), module, n, named, tensors[n], inputs.batch) for n in used]
        found.update({place.name: (place, value) for place, value in places})
    return list(found.values())


def _chosen(layers: Layers, where: Selection, *, several: bool = False) -> list[tuple[LayerPath, Calls, Names, bool]]:
    """Path, calls, tensors, and whether they are arguments, of all that is named.

    Raises:
        SelectionError: when one that is not in a list matches several layers.
    """
    if isinstance(where, InputOf):
        return [(*one[:3], True) for one in _chosen(layers, where.layer, several=several)]
    if is_listed(where):
        return [one for entry in where for one in _chosen(layers, entry, several=True)]
    matches = layers.select(where, calls=True, tensors=True)
    if len(matches) > 1 and not several:
        raise SelectionError(
            f"where={where!r} matches {len(matches)} layers, one is needed: {matches[:8]}. For all of them at once "
            f"give a list, where=[{where!r}]."
        )
    return [(path, calls, names, False) for path, (calls, names, _) in matches.found().items()]


def _call(record: Record, path: LayerPath, chosen: Calls) -> int:
    """The index of the call that is named.

    Raises:
        RecordError: when there is none.
        SelectionError: when it is one of several.
    """
    calls = record.calls(path)
    if not calls:
        raise RecordError(f"layer {path!r} did not run: the run took another route, or its parent calls it by parts.")
    if (chosen is None and len(calls) > 1) or (chosen is not None and len(chosen) > 1):
        raise SelectionError(
            f"layer {path!r} ran {len(calls)} times; name one call: '{path}#0' to '{path}#{len(calls) - 1}'."
        )
    index = 0 if chosen is None else next(iter(chosen))
    if index >= len(calls):
        raise RecordError(f"layer {path!r} ran {len(calls)} time(s); there is no call {index}.")
    return index


def _place(
    site: CallSite, module: nn.Module | None, name: str, named: bool, output: torch.Tensor, batch: int
) -> tuple[LeafCall, torch.Tensor]:
    argument = module is None
    key = argument_key(name) if argument else name
    axis = site.batch_axis(output, key, argument=argument)
    if axis is None or output.shape[axis] % batch:
        raise InputError(
            f"layer {tensor_path(site.path, name)!r} {'took' if argument else 'returned'} {describe(output)} for a "
            f"batch of {batch}: no axis of it distinguishes the samples. Choose another layer."
        )
    seen = site.seen(key, argument=argument)
    fold, names = output.shape[axis] // batch, layer_names(seen)
    if names is not None:
        windows = () if role(seen[axis]) == "batch" else ("window",)
        names = ("batch", *windows, *(one for place, one in enumerate(names) if place != axis))
    whole = names if names is not None and len(names) == output.ndim + (fold > 1) else None
    place = LeafCall(site.path, site.index, axis, fold, whole, module, name if named else "")
    return place, place.batch_first(output)
