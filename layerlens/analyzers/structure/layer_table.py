"""The layer table: what a model is nbytes of, and with an input what each layer returns and how long it takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.axes.layout import described as axes_text
from layerlens.errors import check_count
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath, Layers, parameter_count
from layerlens.model.placement import home
from layerlens.model.trees import first_tensor, named_tensors
from layerlens.probes.probe import Probe
from layerlens.probes.record import Record
from layerlens.results import LayerRow, LayerTable
from layerlens.signatures import public


@public
def layers(
    model: nn.Module, x: Input | None = None, *, depth: int | None = None, forward: Forward | None = None
) -> LayerTable:
    """List the layers of a model; with an input also their calls, output shapes and shares of time.

    The time of a layer is its own: the time between start and end of its calls, minus the calls inside. The model
    runs in eval mode without gradients: once for the first input of a shape, when its axes are followed, and once to be
    timed (the cost of the hooks, a few microseconds per call, is part of the outer layers).

    Args:
        x: ... None does not run the model.
        depth: levels below the model that are shown; None for all. The rows hold all.

    Returns:
        A `LayerTable`: the model itself, then every module once, in definition order.

    Raises:
        OptionError: if `depth` is below 1.

    Example:
        >>> table = layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2))
        >>> [(row.path, row.type, row.calls, row.output, row.parameters) for row in table.rows]
        [('', 'Sequential', 1, '(4, 3)', 9), ('0', 'Linear', 1, '(4, 3)', 9), ('1', 'ReLU', 1, '(4, 3)', 0)]
    """
    if depth is not None:
        check_count("depth", depth)
    layers = Layers(model)
    device = _device(model)
    if x is None:
        plain = tuple(_row(path, module) for path, module in layers.items())
        return LayerTable(type(model).__name__, plain, None, device, depth)
    given = as_inputs(x)
    followed_axes = followed(model, given, forward)
    with borrowed(model, grad=False):
        _wait(device)
        with Probe(
            model, lambda path, module: True, timing=True, inputs=_input_shapes, reduce=_stamp(device)
        ) as record:
            given.run(model, forward)
    own, total = _own_seconds(record)
    nbytes = _activation_bytes(model, record)
    rows = tuple(
        dataclasses.replace(
            _row(path, module, record, own.get(path, 0.0) / total if total else 0.0, nbytes.get(path)),
            axes=_axes(followed_axes, path),
        )
        for path, module in layers.items()
    )
    return LayerTable(type(model).__name__, rows, 1000 * total, device, depth)


class _Stamp:
    """What is noted of an output; not a tuple, so that a record does not walk through it.

    Attributes:
        shape: shapes of its first two tensors as text.
        dtype: dtype of that tensor.
        storages: storages of its tensors -> bytes; weak references, which hold no memory and distinguish a storage from
            a later one at the same address.
        before: clock at the end of the call.
        after: clock when the device had finished.
    """

    __slots__ = ("after", "before", "dtype", "shape", "storages")

    def __init__(self, output: object, before: float, after: float) -> None:
        tensor = first_tensor(output)
        self.shape = _shapes_of(output)
        self.dtype = "" if tensor is None else str(tensor.dtype).removeprefix("torch.")
        self.storages = _storages(output)
        self.before, self.after = before, after


def _stamp(device: str) -> Callable[[Any], _Stamp]:
    def reduce(output: object) -> _Stamp:
        before = time.perf_counter()
        _wait(device)
        after = time.perf_counter()
        return _Stamp(output, before, after)

    return reduce


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _own_seconds(record: Record) -> tuple[dict[LayerPath, float], float]:
    """Return the seconds of each layer over its calls, minus the calls inside them, and the seconds of the whole run.

    Calls are ordered by their ends, so those inside a call are the ones just before it that ended after it began.
    """
    own: dict[LayerPath, float] = {}
    finished: list[tuple[float, float]] = []  # (end, seconds) of calls whose parent is still running
    for call in record.order:
        stamp: _Stamp = call.output
        start = stamp.before - (call.seconds or 0.0)
        seconds = inside = stamp.after - start
        while finished and finished[-1][0] > start:
            inside -= finished.pop()[1]
        own[call.layer] = own.get(call.layer, 0.0) + max(inside, 0.0)
        finished.append((stamp.after, seconds))
    return own, sum(own.values())


def _input_shapes(arguments: object) -> tuple[str, str]:
    """Return the shapes of the first two tensors among the arguments, as text, and the dtype of the first."""
    tensors = [tensor for _, tensor in named_tensors(arguments)]
    kind = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
    return _shapes_of(arguments), kind


def _shapes_of(value: object) -> str:
    tensors = [tensor for _, tensor in named_tensors(value)]
    shapes = ["nested" if tensor.is_nested else str(tuple(tensor.shape)) for tensor in tensors[:2]]
    return " + ".join([*shapes, "..."] if len(tensors) > 2 else shapes)


def _storages(value: object) -> dict[StorageWeakRef, int]:
    """Return the storages of the tensors inside -> bytes."""
    parts = [part for _, part in named_tensors(value) if part.layout is torch.strided and not part.is_nested]
    storages = [part.untyped_storage() for part in parts]
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}  # type: ignore[no-untyped-call]


def _activation_bytes(model: nn.Module, record: Record) -> dict[LayerPath, int]:
    """Return the bytes returned by innermost calls, by layer; each storage counts where it is first returned.

    Calls inside a call ended just before it, and after it began.
    """
    seen = set(_storages([*model.parameters(), *model.buffers()]))
    nbytes: dict[LayerPath, int] = {}
    ended: list[float] = []  # of calls whose parent is still running
    for call in record.order:
        stamp: _Stamp = call.output
        start, inside = stamp.before - (call.seconds or 0.0), len(ended)
        while ended and ended[-1] > start:
            ended.pop()
        if len(ended) == inside:
            new = {storage: size for storage, size in stamp.storages.items() if storage not in seen}
            seen.update(new)
            nbytes[call.layer] = nbytes.get(call.layer, 0) + sum(new.values())
        ended.append(stamp.after)
    return nbytes


def _row(
    path: LayerPath,
    module: nn.Module,
    record: Record | None = None,
    share: float | None = None,
    nbytes: int | None = None,
) -> LayerRow:
    runs = record is not None and type(module).forward is not nn.Module.forward  # ModuleList and the like never run
    calls = record.calls(path) if record is not None and runs else None
    stamps: list[_Stamp] = [call.output for call in calls or ()]
    return LayerRow(
        path=path,
        type=type(module).__name__,
        calls=None if calls is None else len(calls),
        output=_shapes([stamp.shape for stamp in stamps]),
        parameters=parameter_count(module),
        own=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        share=share if runs else None,
        input=_shapes([call.inputs[0] for call in calls or ()]),
        dtype=", ".join(dict.fromkeys(stamp.dtype for stamp in stamps if stamp.dtype)),
        order=calls[0].order if calls else None,
        activation=nbytes,
        input_dtype=", ".join(dict.fromkeys(call.inputs[1] for call in calls or () if call.inputs[1])),
    )


def _axes(known: Followed, path: LayerPath) -> str:
    """Describe the axes of what the calls of a layer returned; calls that differ follow each other."""
    described: dict[str, None] = {}
    for outputs in (site.outputs for site in known.calls if site.path == path):
        texts = {name: axes_text(axes) for name, axes in outputs.items()}
        named = [f"{name}: {text}" for name, text in texts.items()] if len(texts) > 1 else texts.values()
        described["; ".join(named)] = None
    return ", ".join(described)


def _shapes(shapes: list[str]) -> str:
    different = list(dict.fromkeys(shape for shape in shapes if shape))
    return ", ".join(different[:2]) + (", ..." if len(different) > 2 else "")


def _device(model: nn.Module) -> str:
    return str(home(model) or "cpu")
