"""Activation maps: the output of one layer, unit by unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import call_index, one_match
from layerlens.analyzers.common.calls.used_tensors import one_tensor, tensors_read
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed_for
from layerlens.axes.layout import unit_name
from layerlens.errors import OptionError, RecordError
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Layers, Selection
from layerlens.model.tensors import tensor_path
from layerlens.model.trees import describe
from layerlens.probes.call import Call
from layerlens.probes.probe import Probe
from layerlens.results import ActivationMaps
from layerlens.signatures import public


@public
def activation_maps(
    model: nn.Module,
    x: Input,
    layer: Selection,
    *,
    units: int | Sequence[int] | None = None,
    call: int = 0,
    forward: Forward | None = None,
) -> ActivationMaps:
    """Return the output of one layer with its units on the second axis.

    Units are the channels of a convolution, the features of a dense, transformer or recurrent layer; the places that
    follow are (height, width), tokens or time steps. Of several tensors (a recurrent
    layer, a tuple, a dict) it is the one that is named (`"rnn/h_n"`), or the only one that the model reads.

    Args:
        units: one or several units to keep; None for all. Negative ones count from the end.

    Returns:
        `ActivationMaps` with values `(batch, unit, *places)`, in the units of the activation.

    Raises:
        LayerNotFound: when the selection matches no layer.
        SelectionError: when it matches several.
        RecordError: when the layer did not run, has no such call, or returned no tensor with units.
        OptionError: when there is no such unit.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> maps = activation_maps(net, torch.zeros(2, 1, 8, 8), "1", units=[0, 3])
        >>> maps.values.shape, maps.axes
        (torch.Size([2, 2, 6, 6]), ('batch', 'unit', 'height', 'width'))
    """
    matches, inputs = one_match(model, layer, calls=False), as_inputs(x)
    (path,) = matches
    with borrowed(model, grad=False), Probe(model, matches) as record:
        inputs.run(model, forward)
    calls = record.calls(path)
    chosen = calls[call_index(path, len(calls), call)]
    known = followed_for(model, inputs, forward, [(path, chosen.index)])
    name, output = one_tensor(model, inputs, forward, chosen) or ("", None)
    maps = _maps(chosen, name, output, known, units, shown_input(inputs))
    return maps if matches.tensors[path] else dataclasses.replace(maps, layer=path)


@public
def layer_maps(
    model: nn.Module,
    x: Input,
    layers: Selection,
    *,
    units: int | Sequence[int] | None = None,
    forward: Forward | None = None,
) -> list[ActivationMaps]:
    """Return the outputs of several layers with their units on the second axis, from one run, in order of execution.

    For the layers of a generator: `activation_mosaic(layer_maps(model, z, nn.ConvTranspose2d))`.

    Args:
        layers: ... Every call of a layer is returned, and of several tensors those that the model reads.
        units: units to keep of each layer; None for all.

    Returns:
        One `ActivationMaps` for each call.

    Raises:
        LayerNotFound: when the selection matches no layer.
        RecordError: when none of the layers ran, or one returned no tensor with units.
        OptionError: when a layer has no such unit.

    Example:
        >>> generator = nn.Sequential(nn.ConvTranspose2d(4, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2))
        >>> [tuple(maps.values.shape) for maps in layer_maps(generator, torch.zeros(1, 4, 1, 1), nn.ConvTranspose2d)]
        [(1, 8, 4, 4), (1, 1, 10, 10)]
    """
    inputs = as_inputs(x)
    matches = Layers(model).select(layers, calls=True, tensors=True)
    with borrowed(model, grad=False), Probe(model, matches) as record:
        inputs.run(model, forward)
    if not record.order:
        raise RecordError(f"none of the {len(matches)} layers ran: the run took another route.")
    known = followed_for(model, inputs, forward, [(call.layer, call.index) for call in record.order])
    shown = shown_input(inputs)
    read = tensors_read(model, inputs, forward, record.order)
    return [_maps(call, name, output, known, units, shown) for call, name, output in read]


def _maps(
    recorded: Call,
    name: str,
    output: torch.Tensor | None,
    known: Followed,
    units: int | Sequence[int] | None,
    shown: torch.Tensor | None,
) -> ActivationMaps:
    """Return the maps of one tensor of a recorded call.

    Raises:
        RecordError: when it returned no tensor with units.
        AxesUnknown: when its axes are not known.
    """
    path = recorded.layer
    if output is None or not output.ndim:
        raise RecordError(f"layer {path!r} returned {describe(recorded.output)}, which has no units.")
    site = known.site(path, recorded.index)
    only_one = len(site.outputs) == 1
    axes = site.names(next(iter(site.outputs)) if only_one else name, output)
    if axes is None:
        site.axes(next(iter(site.outputs)) if only_one else name)
        raise RecordError(f"layer {path!r} returned {describe(output)}, and other axes when they were followed.")
    values, axes = units_second(output, axes)
    kept = chosen_units(path, values.shape[1], units)
    if units is not None:
        values = values[:, list(kept)]
    return ActivationMaps(tensor_path(path, name), recorded.index, values.contiguous(), kept, axes, shown)


def shown_input(inputs: Inputs) -> torch.Tensor | None:
    """Return a copy of the input if it is one floating-point tensor."""
    tensors = inputs.tensors()
    only = next(iter(tensors.values()))
    return only.detach().clone() if len(tensors) == 1 and only.is_floating_point() else None


def units_second(output: torch.Tensor, axes: Sequence[str]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Move the batch to axis 0 and the units to axis 1; a missing one gets length 1."""
    if "batch" not in axes:
        output, axes = output.unsqueeze(0), ("batch", *axes)
    unit = unit_name(axes) or "unit"
    if unit not in axes:
        output, axes = output.unsqueeze(-1), (*axes, unit)
    order = ("batch", unit, *(name for name in axes if name not in ("batch", unit)))
    return output.permute([axes.index(name) for name in order]), order


def chosen_units(path: str, count: int, units: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the requested units, counted from the start; all for None.

    Raises:
        OptionError: when one does not exist.
    """
    if units is None:
        return tuple(range(count))
    requested = [units] if isinstance(units, int) else list(units)
    if not requested:
        raise OptionError("units=[] keeps none; give one or more, or None for all.")
    for unit in requested:
        if isinstance(unit, bool) or not isinstance(unit, int) or not -count <= unit < count:
            raise OptionError(f"there is no unit {unit!r}: layer {path!r} has {count} (0 to {count - 1}).")
    return tuple(unit % count for unit in requested)
