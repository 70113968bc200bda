"""The options of an analysis as JSON: the same in every process, and different for different options."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import math
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens.model.hashing import digest, weights_digest
from layerlens.model.trees import describe
from layerlens.targets.target import Target

MOST = 64
"""Numbers of a tensor that are written out; larger tensors get a digest."""

LONG = 400
"""Characters of the state of an object that are written out."""

DEPTH = 6
"""Levels of nested objects that are described."""


def as_json(value: object, depth: int = DEPTH) -> Any:
    """Return a value as JSON; functions and objects are described by their content, or a digest of it."""
    if isinstance(value, enum.Enum) or value is None or isinstance(value, (bool, int, str)):
        return str(value) if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(part, depth) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_json(part, depth) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(as_json(part, depth)) for part in value)
    if isinstance(value, np.generic):
        return as_json(value.item(), depth)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= MOST else f"{describe(value)}, SHA-256 {_short(value)}"
    if isinstance(value, Target):
        return target_settings(value)
    return describe_object(value, depth)


def describe_object(value: object, depth: int = DEPTH) -> Any:
    """Describe a function, a class or an object in the same way in every process."""
    if isinstance(value, functools.partial):
        return {"partial": as_json([value.func, value.args, value.keywords], depth - 1)}
    if isinstance(value, types.MethodType):
        return {"method": as_json([value.__func__, value.__self__], depth - 1)}
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        name = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
        return f"{name} {_text_digest(_function(value, depth))}" if isinstance(value, types.FunctionType) else name
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return f"{name} {_text_digest(structure(value) + weights_digest(value))}"
    if isinstance(value, (torch.dtype, torch.device, slice, range)):
        return str(value)
    attributes = getattr(value, "__dict__", None)
    if dataclasses.is_dataclass(value):
        attributes = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not attributes or depth <= 0:
        return name
    state = as_json(attributes, depth - 1)
    return {name: state} if len(str(state)) <= LONG else f"{name} {_text_digest(str(state))}"


def structure(model: nn.Module) -> str:
    """Return the modules of a model and their options, as text without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))


def target_settings(aim: Target | None) -> Any:
    """Return a target as JSON: its label, lists of classes, and functions."""
    if aim is None:
        return "label of each sample"
    parts = list(_parts(aim))
    return {"target": aim.label, "of": as_json(parts)} if parts else aim.label


def _parts(value: object, depth: int = DEPTH) -> Iterator[Any]:
    """Yield the user's functions and lists of classes in a target, from the closures of its function.

    Yields:
        Functions and tensors.
    """
    if isinstance(value, Target):
        yield from _parts(value.function, depth)
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, types.FunctionType) and value.__module__.startswith("layerlens."):
        for cell in (value.__closure__ or ()) if depth else ():
            yield from _parts(cell.cell_contents, depth - 1)
    elif callable(value):
        yield value


def _function(function: types.FunctionType, depth: int) -> str:
    """Describe a function: its code, and the values that it uses besides its arguments."""
    code = function.__code__
    found: list[Any] = [
        _code(code),
        as_json(function.__defaults__, depth - 1),
        as_json(function.__kwdefaults__, depth - 1),
    ]
    if depth > 0:
        found += [as_json(cell.cell_contents, depth - 1) for cell in function.__closure__ or () if _has_value(cell)]
        known = ((name, function.__globals__.get(name)) for name in _names(code))
        found += [[name, part] for name, part in known if isinstance(part, (bool, int, float, str))]
    return str(found)


def _has_value(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that has no value yet
        return False


def _code(code: types.CodeType) -> str:
    constants = [_code(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _names(code: types.CodeType) -> list[str]:
    """Return the global names and attributes in a function and its inner functions."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return [*dict.fromkeys([*code.co_names, *inner])]


def _short(tensor: torch.Tensor) -> str:
    return digest([("", tensor)])[:16]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
