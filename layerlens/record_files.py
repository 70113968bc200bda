"""Records on disk: one safetensors file, the tensors by call and the rest as JSON in its metadata. No pickle."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .call import Call
from .errors import ResultFileError
from .nested import named_tensors
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
        for name, tensor in named_tensors(call.output):
            tensors[f"{number}:{name}"] = tensor.detach().cpu().clone().contiguous()
        fields = {"layer": call.layer, "index": call.index, "type": call.type, "seconds": call.seconds}
        fields |= {"axes": call.axes, "shape of value": _outline(call.output, f"{number}:")}
        calls.append(fields)
    whole: dict[str, Any] = {"selected": record.selected, "aliases": dict(record.aliases), "unedited": record.unedited}
    whole |= {"partial": record.partial, "stopped": record.stopped, "calls": calls}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, str(temporary), metadata={"format": FORMAT, "record": json.dumps(whole)})
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
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
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, ResultFileError):
            raise
        raise ResultFileError(f"{path} is no record of layerlens, or is damaged ({error}).") from error
    return record


def _outline(value: Any, name: str, first: bool = True) -> Any:
    """A value as JSON, its tensors by name; named tuples, model outputs and dataclasses become dicts."""
    if isinstance(value, torch.Tensor):
        return {"tensor": name}
    dot = "" if first else "."
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    if isinstance(value, Mapping):
        return {"dict": [[str(key), _outline(part, f"{name}{dot}{key}", False)] for key, part in value.items()]}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_outline(part, f"{name}{dot}{key}", False) for key, part in enumerate(value)]}
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return {"dict": [[key, _outline(getattr(value, key), f"{name}{dot}{key}", False)] for key in fields]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    return {"text": repr(value)[:200]}  # what is neither a number nor a text is kept as what it looks like


def _filled(outline: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, content),) = outline.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("plain", "text"):
        return content
    if kind == "dict":
        return {key: _filled(part, tensors) for key, part in content}
    parts = [_filled(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts
