"""The calls of all layers of a run with the shapes and axes of their outputs, which are not kept."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.axes.names import Axes, axes_of
from layerlens.errors import RecordError, SelectionError
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.selection import Matches
from layerlens.model.trees import first_tensor, named_tensors
from layerlens.probes.made_edits import Edits
from layerlens.probes.probe import Probe
from layerlens.probes.record import Record

GUESSES: dict[int, Axes] = {
    1: ("batch",),
    2: ("batch", "feature"),
    3: ("batch", "token", "feature"),
    4: ("batch", "channel", "height", "width"),
    5: ("batch", "channel", "depth", "height", "width"),
}
"""Axes by number, where neither the layer nor an earlier one with an output of the same shape shows them."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """One call of one layer.

    Attributes:
        path: path of the layer.
        index: index of the call.
        shape: shape of its first output tensor; None when it returned none.
        axes: names of the axes; None if unknown.
        floating: whether that tensor holds floating-point numbers.
        count: number of floating-point tensors that it returned.
    """

    path: LayerPath
    index: int
    shape: tuple[int, ...] | None
    axes: Axes | None
    floating: bool = False
    count: int = 0


def watch(model: nn.Module, edits: Edits | None = None) -> Probe:
    """Return a probe that notes the shape of what every layer and the model return, in the order of the calls' ends."""
    return Probe(model, lambda path, module: True, reduce=_form, edits=edits)


class _Form:
    """Shape and kind of an output; no tuple, so that a record does not walk through it."""

    __slots__ = ("count", "floating", "shape")

    def __init__(self, tensor: torch.Tensor, count: int) -> None:
        self.shape, self.floating, self.count = tuple(tensor.shape), tensor.is_floating_point(), count


def _form(output: object) -> _Form | None:
    if isinstance(output, torch.Tensor) and not output.is_nested:
        return _Form(output, int(output.is_floating_point()))
    tensor = first_tensor(output)
    count = sum(part.is_floating_point() for _, part in named_tensors(output))
    return None if tensor is None else _Form(tensor, count)


def seen(model: nn.Module, record: Record) -> list[Seen]:
    """Return the calls of a `watch` record, with their axes.

    A layer whose kind does not show its axes (a block, an activation) has those of the last layer before it with an
    output of the same shape whose kind does.
    """
    layers, by_shape = Layers(model), dict[tuple[int, ...], Axes]()
    meta: dict[tuple[int, ...], torch.Tensor] = {}
    calls: list[Seen] = []
    for call in record.order:
        form: _Form | None = call.output
        if form is None:
            calls.append(Seen(call.layer, call.index, None, None))
            continue
        shape, floating = form.shape, form.floating
        if shape not in meta:
            meta[shape] = torch.empty(shape, device="meta")
        axes = _own_axes(layers[call.layer], meta[shape])
        if axes is not None:
            by_shape[shape] = axes
        axes = axes or by_shape.get(shape) or GUESSES.get(len(shape))
        calls.append(Seen(call.layer, call.index, shape, axes, floating, form.count))
    return calls


def axes_of_tensor(module: nn.Module, form: Seen | None, name: str, tensor: torch.Tensor) -> Axes | None:
    """Return the names of the axes of one tensor of a call; `name` is `""` for the only one."""
    known = axes_of(module, tensor, name) if name else None
    if known is None and form is not None and form.axes is not None and len(form.axes) == tensor.ndim:
        known = form.axes
    return known if known is not None or not name else GUESSES.get(tensor.ndim)


def _own_axes(module: nn.Module, output: torch.Tensor) -> Axes | None:
    if output.ndim == 4 and isinstance(module, (nn.Linear, nn.LayerNorm)):
        return ("batch", "height", "width", "feature")
    if isinstance(module, (nn.Dropout, nn.Identity)):  # no axes of their own: they follow any layer
        return None
    return axes_of(module, output)


def one_layer(model: nn.Module, layer: Selection) -> LayerPath:
    """Return the path of the one layer that a selection names.

    Raises:
        LayerNotFound: when it matches none.
        SelectionError: when it matches several, or is None, or names a call or a tensor.
    """
    return one_match(model, layer, calls=False, tensors=False)[0]


def one_match(model: nn.Module, layer: Selection, *, calls: bool = True, tensors: bool = True) -> Matches:
    """Return the match of a selection that names one layer, with the calls and tensors that it names.

    Raises:
        LayerNotFound: when it matches none.
        SelectionError: when it matches several, or is None.
    """
    if layer is None:
        raise SelectionError("layer=None selects every layer; name one. List all: lens.layers()")
    matches = Layers(model).select(layer, calls=calls, tensors=tensors)
    if len(matches) > 1:
        listed = ", ".join(matches[:8]) + (", ..." if len(matches) > 8 else "")
        raise SelectionError(f"the selection matches {len(matches)} layers, one is needed: {listed}.")
    return matches


def call_index(path: LayerPath, count: int, call: int) -> int:
    """Return the index, counted from the start, of a call of a layer that ran `count` times.

    Raises:
        RecordError: when there is no such call.
    """
    if not count:
        raise RecordError(f"layer {path!r} did not run: the run took another route, or its parent calls it by parts.")
    if isinstance(call, bool) or not isinstance(call, int) or not -count <= call < count:
        times = "once" if count == 1 else f"{count} times"
        raise RecordError(f"layer {path!r} ran {times} (calls 0 to {count - 1}); there is no call {call!r}.")
    return call % count
