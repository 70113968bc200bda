"""Records on disk: one safetensors file, the tensors by call and the rest as JSON in its metadata. No pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import ResultFileError
from layerlens.files import umask
from layerlens.model.trees import describe

from .call import Call
from .record import Record

FORMAT = "layerlens-record/1"


def save(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write a record; see `Record.save`."""
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    if not path.parent.is_dir():
        raise ResultFileError(f"cannot save to {path}: the folder {path.parent} does not exist. Make it first.")
    tensors: dict[str, torch.Tensor] = {}
    calls = []
    for number, call in enumerate(record.order):
        parts: list[torch.Tensor] = []
        fields = {"layer": call.layer, "index": call.index, "type": call.type, "seconds": call.seconds}
        fields |= {"axes": call.axes, "shape of value": outline(call.output, parts, f"{number}:")}
        for place, tensor in enumerate(parts):
            if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
                raise ResultFileError(
                    f"layer {call.layer!r}, call {call.index}: {describe(tensor)} is sparse, nested, quantized or "
                    "without data, which a file cannot hold; make it a plain tensor with capture(reduce=...)."
                )
            tensors[f"{number}:{place}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        calls.append(fields)
    whole: dict[str, Any] = {"selected": record.selected, "aliases": dict(record.aliases), "unedited": record.unedited}
    whole |= {"partial": record.partial, "stopped": record.stopped, "calls": calls}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"format": FORMAT, "record": json.dumps(whole)})
        os.chmod(temporary, 0o666 & ~umask())  # as any new file, not for the owner alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def load(path: str | os.PathLike[str]) -> Record:
    """Read what `save` wrote; see `Record.load`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.suffix != ".safetensors" and not path.exists():
        path = path.with_name(f"{path.name}.safetensors")
    if not path.is_file():
        raise ResultFileError(f"there is no file {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ResultFileError(f"{path} has format {about.get('format')!r}; this layerlens reads {FORMAT!r}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        whole = json.loads(about["record"])
        record = Record(list(whole["selected"]), whole["aliases"])
        record.partial, record.stopped = bool(whole["partial"]), bool(whole["stopped"])
        record.unedited = tuple(whole["unedited"])
        for order, call in enumerate(whole["calls"]):
            axes = None if call["axes"] is None else tuple(call["axes"])
            place = (call["layer"], call["index"], order, call["type"], axes)
            record.add(Call(*place, _filled(call["shape of value"], tensors), seconds=call["seconds"]))
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, ResultFileError):
            raise
        raise ResultFileError(f"{path} is no record of layerlens, or is damaged ({error}).") from error
    return record


def outline(value: Any, parts: list[torch.Tensor], prefix: str = "") -> Any:
    """A value as JSON: how it is nested, and what in it is no tensor.

    Named tuples, model outputs and dataclasses become dicts.

    Args:
        value: nested as it may be.
        parts: its tensors are appended here; the outline holds their places.
        prefix: put before the number of each place.
    """
    if isinstance(value, torch.Tensor):
        parts.append(value)
        return {"tensor": f"{prefix}{len(parts) - 1}"}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {"dict": [[_key(key), outline(part, parts, prefix)] for key, part in value.items()]}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [outline(part, parts, prefix) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    return {"text": repr(value)[:200]}  # what is neither a number nor a text is kept as what it looks like


def _key(key: Any) -> Any:
    return key if key is None or isinstance(key, (bool, int, float, str)) else str(key)


def _filled(described: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, content),) = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("plain", "text"):
        return content
    if kind == "dict":
        return {key: _filled(part, tensors) for key, part in content}
    made = {"tuple": tuple, "list": list}[kind]
    return made(_filled(part, tensors) for part in content)
