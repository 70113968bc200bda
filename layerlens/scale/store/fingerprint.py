"""The options of an analysis as JSON: the same in every process, and other options are told from them."""

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
"""Numbers of a tensor that are written out; of larger ones a digest is kept."""

LONG = 400
"""Characters of the state of an object that is written out."""

DEPTH = 6
"""Objects within objects that are looked into."""


def plain(value: Any, depth: int = DEPTH) -> Any:
    """A value as JSON; of functions and objects what they are made of, or a digest of it."""
    if isinstance(value, enum.Enum) or value is None or isinstance(value, (bool, int, str)):
        return str(value) if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part, depth) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part, depth) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(plain(part, depth)) for part in value)
    if isinstance(value, np.generic):
        return plain(value.item(), depth)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= MOST else f"{describe(value)}, SHA-256 {_short(value)}"
    if isinstance(value, Target):
        return target_settings(value)
    return named(value, depth)


def named(value: Any, depth: int = DEPTH) -> Any:
    """A function, a class or an object in words that are the same in every process."""
    if isinstance(value, functools.partial):
        return {"partial": plain([value.func, value.args, value.keywords], depth - 1)}
    if isinstance(value, types.MethodType):
        return {"method": plain([value.__func__, value.__self__], depth - 1)}
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        told = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
        return f"{told} {_text_digest(_function(value, depth))}" if isinstance(value, types.FunctionType) else told
    told = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return f"{told} {_text_digest(structure(value) + weights_digest(value))}"
    if isinstance(value, (torch.dtype, torch.device, slice, range)):
        return str(value)
    held = getattr(value, "__dict__", None)
    if dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not held or depth <= 0:
        return told
    state = plain(held, depth - 1)
    return {told: state} if len(str(state)) <= LONG else f"{told} {_text_digest(str(state))}"


def structure(model: nn.Module) -> str:
    """The modules of a model and their options, as text without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))


def target_settings(aim: Target | None) -> Any:
    """What a target scores, as JSON: its label, and what the label does not say: lists of classes, functions."""
    if aim is None:
        return "label of each sample"
    parts = list(_parts(aim))
    return {"target": aim.label, "of": plain(parts)} if parts else aim.label


def _parts(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """The user's functions and the lists of classes in a target, which stand in the closures of its function."""
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
    """What a function does: its code, and the values that it finds outside of its arguments."""
    code = function.__code__
    found: list[Any] = [_code(code), plain(function.__defaults__, depth - 1), plain(function.__kwdefaults__, depth - 1)]
    if depth > 0:
        found += [plain(cell.cell_contents, depth - 1) for cell in function.__closure__ or () if _full(cell)]
        known = ((name, function.__globals__.get(name)) for name in _names(code))
        found += [[name, part] for name, part in known if isinstance(part, (bool, int, float, str))]
    return str(found)


def _full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that has no value yet
        return False


def _code(code: types.CodeType) -> str:
    constants = [_code(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _names(code: types.CodeType) -> list[str]:
    """The global names and attributes in a function and those that it makes."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return [*dict.fromkeys([*code.co_names, *inner])]


def _short(tensor: torch.Tensor) -> str:
    return digest([("", tensor)])[:16]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
