"""Which tensors an operation writes into."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def tensors_written(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors that an operation is about to write into, as its schema says.

    Args:
        function: an operation as a dispatch mode gets it.
        args: its arguments by position.
        kwargs: its arguments by name.

    Yields:
        The tensors, also those in lists.
    """
    for place, name in _places(function):
        yield from tensors_in(args[place] if place < len(args) else kwargs.get(name))


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Yield an argument that is a tensor, or those in a list or tuple of some."""
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(one, torch.Tensor):
            yield one


@functools.cache
def _places(function: Any) -> tuple[tuple[int, str], ...]:
    """The position and name of each argument that an operation writes into."""
    schema = getattr(function, "_schema", None)
    if schema is None or not schema.is_mutable:
        return ()
    writes = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    return tuple((place, schema.arguments[place].name) for place, write in enumerate(writes) if write)
