"""Which tensors of a layer's output the model reads, so that the name of the layer means them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node, get_gradient_edge

from layerlens.axes.follow import Followed
from layerlens.errors import RecordError, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Layers, Selection
from layerlens.model.selection import InputOf
from layerlens.model.tensors import ByTensor, argument_key, changeable, choices, exchanged, only, refuse_several
from layerlens.model.trees import named_tensors, padded
from layerlens.probes.call import Call
from layerlens.probes.edit_site import Site
from layerlens.probes.edits import Change
from layerlens.probes.export import called, read_units
from layerlens.probes.probe import Probe

Marks = dict[tuple[str, int], ByTensor[torch.Tensor]]
"""Path and index of a call -> copies of its tensors with which the model continued."""


def one_tensor(
    model: nn.Module, inputs: Inputs, forward: Forward | None, call: Call
) -> tuple[str, torch.Tensor] | None:
    """Return the name and the values of the tensor that a layer is read from; None if it returned no tensor.

    Of several tensors it is the only one that the model reads.

    Args:
        model: any module.
        inputs: inputs of the run in which the call was recorded.
        forward: function that was called instead of the model.
        call: recorded call.

    Raises:
        SelectionError: when the model reads several; it lists them.
    """
    (*read,) = tensors_read(model, inputs, forward, [call])
    if len(read) > 1:
        refuse_several(call.layer, [name for _, name, _ in read], "and one is needed here")
    ((_, name, tensor),) = read
    return None if tensor is None else (name, tensor)


def tensor_of_target(
    model: nn.Module, inputs: Inputs, forward: Forward | None, at: tuple[Any, int] | None
) -> str | None:
    """Return the name of the tensor that a target inside a model reads; None if its layer returned one, or it has none.

    Args:
        model: any module.
        inputs: inputs of the model.
        forward: function to call instead of the model.
        at: layer and call of the target, as in `Target.at`.
    """
    if at is None or isinstance(at[0], InputOf):
        return None
    with torch.no_grad(), Probe(model, at[0], stop=at[1] == 0) as record:
        inputs.run(model, forward)
    found = one_tensor(model, inputs, forward, called(record, at[1]))
    return found[0] if found else None


def units_of_target(
    model: nn.Module, at: tuple[Any, int], tensor: str | None, known: Followed, run: Callable[[], object]
) -> torch.Tensor:
    """Return what a target inside a model reads, `(batch, unit, *places)`, of a run.

    Args:
        model: any module.
        at: layer and call of the target, as in `Target.at`.
        tensor: its tensor, as `tensor_of_target` returns it.
        known: the axes of the run.
        run: runs the model.

    Raises:
        SelectionError: when the layer takes several tensors and none is named; it lists them.
        RecordError: when the layer did not run, or has no such call.
    """
    layer, call = at
    if not isinstance(layer, InputOf):
        with Probe(model, layer, graph=True, followed=lambda **_: known) as record:
            run()
        return read_units(record, call, tensor=tensor)
    marks: Marks = {}
    keep = _KeepTaken("keep", lambda tensor, site: tensor, keeps=True, marks=marks)
    with Probe(model, (), edits={layer: keep}):
        run()
    calls = list(marks)
    if not -len(calls) <= call < len(calls):
        raise RecordError(f"layer {layer.layer!r} ran {len(calls)} time(s); there is no call {call}.")
    path, index = calls[call]
    name, value = only(marks[path, index], path, "and one is needed here", "took")
    site, key = known.site(path, index), argument_key(name)
    rows, units = (axis(value, key, argument=True) for axis in (site.batch_axis, site.unit_axis))
    if rows is None:
        raise RecordError(f"all samples share what layer {path!r} took, so none has a value of its own.")
    return value.movedim(rows, 0).unsqueeze(1) if units is None else value.movedim((rows, units), (0, 1))


def tensors_read(
    model: nn.Module, inputs: Inputs, forward: Forward | None, calls: Sequence[Call]
) -> Iterator[tuple[Call, str, torch.Tensor | None]]:
    """Yield the tensors that layers are read from: of several those that the model reads.

    Args:
        model: any module.
        inputs: inputs of the run in which the calls were recorded.
        forward: function that was called instead of the model.
        calls: recorded calls.

    Yields:
        Call, name and values of the tensor; None for a call that returned none.
    """
    found = [{name: t for name, t in call.tensors.items() if t.is_floating_point()} for call in calls]
    several = [call.layer for call, tensors in zip(calls, found, strict=True) if len(tensors) > 1]
    used = used_tensors(model, inputs, forward, several) if several else {}
    for call, tensors in zip(calls, found, strict=True):
        if len(tensors) > 1:
            names = [name for name in used.get((call.layer, call.index), ()) if name in tensors]
            yield from ((call, name, padded(tensors[name])) for name in names or tensors)
        else:
            yield call, *(call.single() or ("", None))


def used_tensors(
    model: nn.Module, inputs: Inputs, forward: Forward | None, layers: Selection
) -> dict[tuple[str, int], list[str]]:
    """Return the names of the tensors that the model's output depends on, of each call that returned several.

    The model is run once, if a layer returned several. Where nothing can be differentiated all tensors count, with a
    warning where the layer runs without gradients.

    Args:
        model: any module.
        inputs: inputs of the model.
        forward: function to call instead of the model.
        layers: which layers.
    """
    marks: Marks = {}
    mark = _Mark("mark", lambda tensor, site: tensor, keeps=True, marks=marks)
    selections = Layers(model).select(layers, calls=True, tensors=True).selections()
    with borrowed(model), Probe(model, (), edits=dict.fromkeys(selections, mark)):
        output = inputs.run(model, forward)
        copies = [copy for by_name in marks.values() for copy in by_name.values()]
        reached = _reached([tensor for _, tensor in named_tensors(output) if tensor.requires_grad])
        read = iter([copy.requires_grad and get_gradient_edge(copy).node in reached for copy in copies])
    used = {call: [name for name in by_name if next(read)] for call, by_name in marks.items()}
    for path, call in used:
        if not used[path, call] and not all(copy.requires_grad for copy in marks[path, call].values()):
            warn(
                f"layer {path!r} runs without gradients (no_grad, a reentrant checkpoint), so it is not known which of "
                f"its tensors the model reads, and all count. Name one: {choices(path, marks[path, call])}."
            )
    return {call: names or list(marks[call]) for call, names in used.items()}


def _reached(ends: Sequence[torch.Tensor]) -> set[Node]:
    """Return the nodes of the graph that some tensors depend on; without a backward pass, which might recompute."""
    waiting = [get_gradient_edge(end).node for end in ends]
    found = set(waiting)
    for node in waiting:
        new = {one for one, _ in node.next_functions if one is not None} - found
        found |= new
        waiting += new
    return found


@dataclasses.dataclass(frozen=True)
class _Mark(Change):
    """An edit that keeps numbers, and replaces several tensors by copies."""

    marks: Marks = dataclasses.field(default_factory=dict, repr=False)

    def apply(self, output: object, site: Site) -> Any:
        """Return the output with copies."""
        found = changeable(site.module, output, site.tensors, site.path)
        if len(found) < 2 or not all(tensor.is_floating_point() for tensor in found.values()):
            return output
        copies = {name: tensor.clone() for name, tensor in found.items()}
        for copy in copies.values():
            if torch.is_grad_enabled() and not copy.requires_grad:
                copy.requires_grad_()
        self.marks[site.path, site.call] = ByTensor(copies)
        return exchanged(site.module, output, copies)


@dataclasses.dataclass(frozen=True)
class _KeepTaken(_Mark):
    """An edit that keeps the tensors that a layer takes, which continues with copies."""

    def apply(self, output: object, site: Site) -> Any:
        """Return the arguments with copies."""
        found = changeable(None, output, site.tensors, site.path)
        self.marks[site.path, site.call] = ByTensor(found)
        return exchanged(None, output, {name: tensor.clone() for name, tensor in found.items()})
