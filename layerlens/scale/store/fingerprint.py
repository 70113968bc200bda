"""The options of an analysis as JSON: the same in every process, and different for different options."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from layerlens.targets.target import Target

from .plain_values import added, text_digest
from .reached import Reached


class Described(str):
    """A function or an object of the user as text: its name, and a digest of its code and of what that reads.

    Attributes:
        name: the name alone.
        code: what the code reaches, see `Reached`.
    """

    name: str
    code: Mapping[str, str]


def as_json(value: object) -> Any:
    """Return a value as JSON; functions and objects are described by what they do: their source text and content."""
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "__dict__"):
        return [as_json(part) for part in value]
    if isinstance(value, Target):
        return target_settings(value)
    reached = Reached()
    described = reached.value(value)
    reached.finish()
    if not reached.code:
        return described
    name = described if isinstance(described, str) else f"{type(value).__module__}.{type(value).__qualname__}"
    found = Described(f"{name} {text_digest(f'{described} {sorted(reached.code.items())}')}")
    found.name, found.code = name, reached.code
    return found


def code_in(settings: Any) -> dict[str, str]:
    """Return what the code of all functions in settings reaches, by name."""
    code: dict[str, str] = dict(settings.code) if isinstance(settings, Described) else {}
    parts = settings.values() if isinstance(settings, Mapping) else settings if isinstance(settings, list) else ()
    for part in parts:
        for name, text in code_in(part).items():
            code |= added(code, name.partition(" #")[0], text)
    return code


def without_code(settings: Any) -> Any:
    """Return settings with functions by name only."""
    if isinstance(settings, Mapping):
        return {name: without_code(part) for name, part in settings.items()}
    if isinstance(settings, list):
        return [without_code(part) for part in settings]
    return settings.name if isinstance(settings, Described) else settings


def target_settings(aim: Target | None) -> Any:
    """Return a target as JSON: its label, lists of classes, and functions."""
    if aim is None:
        return "label of each sample"
    parts = list(_parts(aim, set()))
    return {"target": aim.label, "of": as_json(parts)} if parts else aim.label


def _parts(value: object, seen: set[int]) -> Iterator[Any]:
    """Yield the user's functions and lists of classes in a target, from the closures of its function.

    Yields:
        Functions and tensors.
    """
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Target):
        yield from _parts(value.function, seen)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _parts(part, seen)
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, types.FunctionType) and (value.__module__ or "").startswith("layerlens."):
        for cell in value.__closure__ or ():
            try:
                yield from _parts(cell.cell_contents, seen)
            except ValueError:  # a name that has no value yet
                continue
    elif callable(value):
        yield value
