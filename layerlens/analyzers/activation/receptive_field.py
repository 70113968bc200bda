"""Receptive fields: the part of the input that a layer can depend on, and how much it does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.analyzers.common.calls.used_tensors import one_tensor
from layerlens.analyzers.common.samples import rows_influence, said_once
from layerlens.analyzers.common.scorer import backward_pass
from layerlens.axes.followed import followed
from layerlens.axes.layout import described, roles
from layerlens.axes.provenance.axis import Axes
from layerlens.errors import InputError, OptionError, RecordError, TargetError, check_count, check_seed, choose
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.probes.export import called, read_units
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import ReceptiveField
from layerlens.signatures import public
from layerlens.targets.units import at_place

By = Literal["nan", "change"]
AT_ONCE = 8


@public(renamed={"probes": "draws"})
def receptive_field(
    model: nn.Module,
    x: Input,
    layer: Selection,
    *,
    unit: int | None = None,
    place: tuple[int, ...] | None = None,
    axes: tuple[int, ...] | None = None,
    by: By = "nan",
    draws: int = 8,
    call: int = 0,
    seed: int = 0,
    batch_size: int = AT_ONCE,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> ReceptiveField:
    """Measure the receptive field of every place of a layer, and how strongly it is used at one of them.

    The theoretical field: line by line (each row, each column) of the first sample is replaced, and the places of the
    layer that change are noted: exact for any architecture, without arithmetic on kernels and strides. The effective
    field: the gradient of the units at `place`, over all samples: sqrt(mean over units of (dy/dx)^2), by random signs
    for many units (Luo et al. 2016, Understanding the effective receptive field in deep convolutional neural networks,
    NeurIPS).

    Args:
        model: ... It has one floating-point input.
        x: ... The effective field depends on it, the theoretical one only on its size.
        unit: unit whose effective field is measured; None for all together.
        place: where the effective field is measured; None for the middle of the layer's map.
        axes: the axes of the input that are places, such as `(1,)` of (batch, time, feature); None for those that
            are followed from it through the model.
        by: how to find the places that depend on a line. `"nan"` fills it with NaN, which passes through every
            operation, also through a product with 0, such as masked attention; `"change"` adds random numbers and looks
            for outputs that differ, which misses lines that only dead units read.
        draws: number of random sign vectors for the effective field of all units; 0 uses the sum of the units.
        batch_size: lines per pass.

    Returns:
        A `ReceptiveField`; costs one forward pass per line of the input and `draws` gradients.

    Raises:
        InputError: when there is not one floating-point input with places.
        LayerNotFound: when the selection matches no layer; SelectionError when it matches several.
        RecordError: when the layer did not run, or returned no tensor with units.
        OptionError: when there is no such unit, place or axis.
        TargetError: when no gradient of the layer reaches the input.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv1d(2, 2, 3, stride=2))
        >>> field = receptive_field(net, torch.ones(1, 1, 12), "1")
        >>> field.size, field.stride, field.boxes[1].tolist()
        ((5,), (2,), [[2, 7]])
    """
    choose("by", by, ("nan", "change"))
    check_count("batch_size", batch_size)
    check_seed(seed)
    inputs = as_inputs(x)
    tensors = inputs.tensors()
    name, values = next(iter(tensors.items()))
    if len(tensors) > 1 or not values.is_floating_point():
        raise InputError("a receptive field needs one floating-point input; pass others in forward=.")
    known = functools.partial(followed, model, inputs, forward)
    spatial = _axes(values, axes, known().inputs.get(name, ()))
    matches = one_match(model, layer, calls=False)
    (path,) = matches
    with borrowed(model, grad=False), Probe(model, matches, stop=call == 0) as record:
        inputs.run(model, forward)
    if not record.calls(path):
        raise RecordError(f"layer {path!r} did not run, so it has no receptive field.")
    tensor, _ = one_tensor(model, inputs, forward, called(record, call)) or (None, None)

    def units(sample: torch.Tensor, graph: bool) -> torch.Tensor:
        """Return the layer's output `(batch, unit, *places)`."""
        with Probe(model, matches, graph=graph, stop=call == 0, followed=known) as record:
            inputs.replace({name: sample}).run(model, forward)
        return read_units(record, call, tensor=tensor)

    with borrowed(model), said_once() as passes:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            changed = values[0].detach().flip(tuple(range(values.ndim - 1))) * 2
            if batch_size > 1 and rows_influence(lambda rows: units(rows, False), changed, values[0].detach()):
                batch_size = 1
            boxes = _boxes(units, values[:1].detach(), spatial, by, seed, batch_size, progress)
        at = _place(place, boxes.shape[:-2], path)
        effective = _effective(model, units, values.detach(), at, unit, draws, seed, path)
    others = [axis for axis in range(1, values.ndim) if axis not in spatial]
    effective = effective.mean(dim=others).sqrt() if others else effective.sqrt()
    settings = {"unit": unit, "axes": spatial, "by": by, "draws": draws, "seed": seed, **passes}
    size = tuple(values.shape[axis] for axis in spatial)
    return ReceptiveField(path, call, boxes, size, at, effective, settings, values.detach().clone())


def _axes(values: torch.Tensor, axes: tuple[int, ...] | None, known: Axes) -> tuple[int, ...]:
    """Return the axes of places, counted from the start, in order; those that were followed where none are given.

    Raises:
        InputError: when there is none, or one is unknown.
        OptionError: when one does not exist.
    """
    if axes is None:
        found = roles(known)
        if "place" not in found or "unknown" in found:
            raise InputError(
                f"the input {tuple(values.shape)} ({described(known) if known else 'not followed'}) has no places "
                "after the batch that are known; name them, such as axes=(1,)."
            )
        return tuple(axis for axis, kind in enumerate(found) if kind == "place")
    if any(not -values.ndim < axis < values.ndim or axis % values.ndim == 0 for axis in axes):
        raise OptionError(f"axes={axes!r} of an input {tuple(values.shape)}; give axes after the batch.")
    return tuple(sorted(axis % values.ndim for axis in axes))


def _lines(sample: torch.Tensor, axis: int, by: By, seed: int) -> Iterator[torch.Tensor]:
    """Yield the sample with each line along `axis` replaced in turn."""
    generator = torch.Generator().manual_seed(seed)
    for line in range(sample.shape[axis]):
        changed = sample.clone()
        part = changed.select(axis, line)
        if by == "nan":
            part.fill_(torch.nan)
        else:
            spread = sample.std().item() or 1.0
            part.add_(3 * spread * torch.randn(part.shape, generator=generator).to(part))
        yield changed


def _boxes(
    units: Callable[[torch.Tensor, bool], torch.Tensor],
    sample: torch.Tensor,
    axes: tuple[int, ...],
    by: By,
    seed: int,
    batch_size: int,
    progress: bool | None,
) -> torch.Tensor:
    """Return the box of each place, `(*places, axis, 2)`."""
    base = units(sample.repeat(batch_size, *[1] * (sample.ndim - 1)), False)  # as many rows as in the passes below
    total = sum(sample.shape[axis] for axis in axes)
    steps = iter(track(range(total), "receptive_field", enabled=progress))
    columns = []
    for axis in axes:
        changes = []
        lines = list(range(sample.shape[axis]))
        changed = _lines(sample, axis, by, seed)
        for first in range(0, len(lines), batch_size):
            part = [next(changed) for _ in lines[first : first + batch_size]]
            filled = torch.cat(part + [sample] * (batch_size - len(part)))
            output = units(filled, False)
            differs = output.isnan() if by == "nan" else output != base
            changes.append(differs[: len(part)].any(dim=1))  # (line, *places)
            for _ in part:
                next(steps)
        seen = torch.cat(changes).cpu()
        count = len(seen)
        start = seen.int().argmax(dim=0)  # the first line that matters
        stop = count - seen.flip(0).int().argmax(dim=0)
        some = seen.any(dim=0)
        columns.append(torch.stack([start.where(some, 0), stop.where(some, 0)], dim=-1))
    next(steps, None)
    return torch.stack(columns, dim=-2)


def _place(place: tuple[int, ...] | None, sizes: torch.Size, path: str) -> tuple[int, ...]:
    """Return the requested place, counted from the start; the middle for None.

    Raises:
        OptionError: when there is none.
    """
    if place is None:
        return tuple(size // 2 for size in sizes)
    if len(place) != len(sizes) or any(not -n <= i < n for i, n in zip(place, sizes, strict=True)):
        raise OptionError(f"layer {path!r} has places {tuple(sizes)}; there is no place {place!r}.")
    return tuple(i % n for i, n in zip(place, sizes, strict=True))


def _effective(
    model: nn.Module,
    units: Callable[[torch.Tensor, bool], torch.Tensor],
    values: torch.Tensor,
    place: tuple[int, ...],
    unit: int | None,
    draws: int,
    seed: int,
    path: str,
) -> torch.Tensor:
    """Return the mean over units of the squared gradient at a place, shaped like the input.

    Raises:
        OptionError: when there is no such unit.
        TargetError: when no gradient reaches the input.
    """
    leaf = values.clone().requires_grad_()
    output = units(leaf, True)
    at = at_place(output, place)  # (batch, unit)
    count = at.shape[1]
    if unit is not None and not -count <= unit < count:
        raise OptionError(f"layer {path!r} has {count} units; there is no unit {unit}.")
    if not at.requires_grad:
        raise TargetError(f"no gradient of layer {path!r} reaches the input: it does not depend on it.")
    if unit is not None:
        weights = [torch.nn.functional.one_hot(torch.tensor(unit % count), count)]
    elif count <= draws:
        weights = list(torch.eye(count))  # exact
    else:
        generator = torch.Generator().manual_seed(seed)
        weights = [2 * torch.randint(2, (count,), generator=generator) - 1 for _ in range(max(draws, 1))]
        weights = weights if draws else [torch.ones(count)]
    total = torch.zeros_like(values)
    for index, one in enumerate(weights):
        with backward_pass(model):
            score = (at * one.to(at)).sum()
            (gradient,) = torch.autograd.grad(score, leaf, retain_graph=index + 1 < len(weights))
        total += gradient.square()
    # random signs: E (sum of s_u g_u)^2 is the sum over units, so one vector estimates all of them
    return total / (1 if unit is not None else count if count <= draws else len(weights) * count)
