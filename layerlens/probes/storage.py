"""Records on disk: one safetensors file with the tensors by call, and the rest as JSON in its metadata; no pickle."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from layerlens.axes.call_site import CallSite
from layerlens.axes.layout import Role, positions, role
from layerlens.axes.provenance.axis import Axis, Part, Source
from layerlens.errors import AxesUnknown, RecordError, ResultFileError, WriteError
from layerlens.files import no_place, parse_json, whole, with_ending
from layerlens.model.packing import packed, unpacked
from layerlens.model.trees import describe

from .call import Call

if TYPE_CHECKING:
    from .record import Record

FORMAT = "layerlens-record/1"


def save(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write a record; see `Record.save`.

    Raises:
        ResultFileError: when the folder does not exist, the name has the ending of another format, or a tensor cannot
            be stored.
        WriteError: when the file cannot be written, with the reason.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = with_ending(path, ".safetensors", "a record", "")
    if why := no_place(path):
        raise ResultFileError(f"cannot save to {path}: {why}")
    tensors: dict[str, torch.Tensor] = {}
    types: dict[str, str] = {}
    calls = []
    for number, call in enumerate(record.order):
        parts: list[torch.Tensor] = []
        fields = {"layer": call.layer, "index": call.index, "type": call.type, "seconds": call.seconds}
        fields["names"] = call.names
        fields |= {"axes": _known_axes(call), "shape of value": outline(call.output, parts, f"{number}:")}
        for number_in_call, tensor in enumerate(parts):
            if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
                raise ResultFileError(
                    f"layer {call.layer!r}, call {call.index}: {describe(tensor)} is sparse, nested, quantized or "
                    "without data, which a file cannot hold; make it a plain tensor with capture(reduce=...)."
                )
            name = f"{number}:{number_in_call}"
            stored, types[name] = packed(tensor)
            tensors[name] = stored.clone()  # safetensors refuses tensors that share memory
        calls.append(fields)
    content: dict[str, Any] = {
        "selected": record.selected,
        "aliases": dict(record.aliases),
        "unedited": record.unedited,
    }
    content |= {"partial": record.partial, "stopped": record.stopped, "calls": calls}
    content["types"] = {name: kind for name, kind in types.items() if kind}
    try:
        with whole(path) as file:
            save_file(tensors, file.name, metadata={"format": FORMAT, "record": json.dumps(content)})
    except SafetensorError as error:
        raise WriteError(f"cannot write {path}: {error}.") from error
    return path


def load(path: str | os.PathLike[str], kind: type[Record]) -> Record:
    """Read a file that `save` wrote; see `Record.load`.

    Raises:
        ResultFileError: when the file is missing, damaged, or of another kind.
    """
    from safetensors import safe_open

    path = Path(path)
    if path.suffix != ".safetensors" and not os.path.exists(path):
        path = path.with_name(f"{path.name}.safetensors")
    if not os.path.isfile(path):
        raise ResultFileError(f"there is no file {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ResultFileError(f"{path} has format {about.get('format')!r}; this layerlens reads {FORMAT!r}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        content = parse_json(about["record"])
        tensors |= {name: unpacked(tensors[name], dtype) for name, dtype in content.get("types", {}).items()}
        record = kind(list(content["selected"]), content["aliases"])
        record.partial, record.stopped = bool(content["partial"]), bool(content["stopped"])
        record.unedited = tuple(content["unedited"])
        for order, call in enumerate(content["calls"]):
            fields = (call["layer"], call["index"], order, call["type"], _restored_axes(call))
            record.add(Call(*fields, _restored(call["shape of value"], tensors), seconds=call["seconds"],
                            names=tuple(call.get("names", ()))))  # fmt: skip
    except ResultFileError:
        raise
    except Exception as error:  # whatever values that do not fit raise
        raise ResultFileError(f"{path} is not a record of layerlens, or is damaged ({error!s:.200}).") from error
    return record


def _known_axes(call: Call) -> Any:
    """Return name of a tensor -> name, role, size, and the stride and offset of places, of each of its axes, as JSON.

    Returns:
        The reason, if they cannot be followed.
    """
    try:
        outputs = call.site.outputs
    except (AxesUnknown, RecordError) as error:
        return call.followed if isinstance(call.followed, str) else str(error)
    return {name: [_described(axis) for axis in axes] for name, axes in outputs.items()}


def _described(axis: Axis) -> list[Any]:
    at, part = positions(axis), axis.part
    return [axis.name, role(axis), axis.size, *([part.stride, part.offset] if at and part is not None else [])]


def _restored_axes(call: Mapping[str, Any]) -> Any:
    """Return what followed a call, or why its axes are not known."""
    known = call["axes"]
    if isinstance(known, str):
        return known
    if known is None or isinstance(known, list):
        return "the file is of an earlier version, which did not follow them"
    outputs = {name: tuple(itertools.starmap(_axis, axes)) for name, axes in known.items()}
    site = CallSite(call["layer"], call["index"], outputs, {}, next(iter(outputs)) if len(outputs) == 1 else "")
    return lambda: site


def _axis(name: str, kind: Role, size: int, stride: float | None = None, offset: float = 0.0) -> Axis:
    """The axis of this name and role."""
    if kind == "none":
        return Axis()
    source = Source("extra", size, name)
    if kind in ("batch", "place", "unit"):
        source = Source("input", size, name, role=kind)
    elif kind == "unknown":
        source = Source("unknown", size, why="it was not known when the record was saved")
    return Axis((Part(source, size, stride or 1.0, offset, inner=kind == "place" and stride is None),))


def outline(value: object, parts: list[torch.Tensor], prefix: str = "") -> Any:
    """Return a value as JSON: its nesting, and everything in it but tensors.

    Named tuples, model outputs and dataclasses become dicts.

    Args:
        value: any value, possibly nested.
        parts: its tensors are appended here; the outline refers to them by number.
        prefix: prefix of each number.
    """
    if isinstance(value, torch.Tensor):
        parts.append(value)
        return {"tensor": f"{prefix}{len(parts) - 1}"}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {"dict": [[_json_key(key), outline(part, parts, prefix)] for key, part in value.items()]}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [outline(part, parts, prefix) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    return {"text": repr(value)[:200]}  # any other object is kept as its text


def _json_key(key: object) -> Any:
    return key if key is None or isinstance(key, (bool, int, float, str)) else str(key)


def _restored(described: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, content),) = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("plain", "text"):
        return content
    if kind == "dict":
        return {key: _restored(part, tensors) for key, part in content}
    sequence = {"tuple": tuple, "list": list}[kind]
    return sequence(_restored(part, tensors) for part in content)
