"""Nested arguments and outputs of models: tuples, named tuples, lists, dicts, dataclasses, tensors."""

from __future__ import annotations

import copy
import dataclasses
import enum
import gc
import types
from collections import UserDict
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from layerlens.errors import InputError

CONSTANT: Final = (
    bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout, type, nn.Module,
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type(None), type(Ellipsis), slice,
)  # fmt: skip
"""Values that a run does not change, and modules, which `borrowed` restores."""

Held = Callable[[torch.Tensor], torch.Tensor]


def map_tensors(value: object, function: Callable[[torch.Tensor], Any], held: Held | None = None) -> Any:
    """Rebuild `value` with `function` applied to each tensor; everything else is kept.

    Args:
        value: any nesting of tuples, lists, dicts and dataclasses.
        function: tensor -> what replaces it.
        held: the same for tensors inside of other objects, such as a cache, which are then copied; None keeps them.

    Raises:
        InputError: when an object must be copied and cannot be.

    Example:
        >>> map_tensors({"a": (torch.ones(2), None)}, lambda t: t + 1)
        {'a': (tensor([2., 2.]), None)}
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if type(value) is list or type(value) is tuple:
        return type(value)([map_tensors(part, function, held) for part in value])
    if isinstance(value, tuple):
        parts = [map_tensors(part, function, held) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else _same_type(value, parts)
    if isinstance(value, list):
        listed = _same_type(value, [map_tensors(part, function, held) for part in value])
        return _with_attributes(listed, value, held)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(part, function, held) for key, part in value.items()}
        if type(value) is dict:
            return mapped
        try:
            twin: Any = copy.copy(value)
            for key, part in mapped.items():
                twin[key] = part
        except TypeError:  # a mapping that cannot be copied or written, such as MappingProxyType
            return mapped
        return _with_attributes(twin, value, held, but={*mapped, "data"} if isinstance(value, UserDict) else {*mapped})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(twin, field.name, map_tensors(getattr(value, field.name), function, held))
        return twin
    if held is None or isinstance(value, (*CONSTANT, types.MethodType)):
        return value
    return _copied(value, held)


def _with_attributes(twin: Any, value: object, held: Held | None, but: Container[Any] = ()) -> Any:
    """A container of the user's own class, with copies of the attributes that the original has besides its parts."""
    if held is not None and type(twin) is type(value):
        for name, attribute in getattr(value, "__dict__", {}).items():
            if name not in but:
                object.__setattr__(twin, name, map_tensors(attribute, held, held))
    return twin


def _copied(value: object, held: Held) -> Any:
    """A copy of an object with all that it holds, such as a cache; its tensors by `held`, its modules as they are.

    Raises:
        InputError: when it cannot be copied.
    """
    memo: dict[int, Any] = {}
    waiting = [value]
    for one in waiting:
        if isinstance(one, torch.Tensor):
            memo[id(one)] = held(one)
        elif isinstance(one, nn.Module):
            memo[id(one)] = one
        elif id(one) not in memo and not isinstance(one, CONSTANT):
            memo[id(one)] = one
            waiting += gc.get_referents(one)
    memo = {key: twin for key, twin in memo.items() if isinstance(twin, (torch.Tensor, nn.Module))}
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:  # whatever its class raises
        raise InputError(
            f"the input holds a {type(value).__name__}, which the model may change and which cannot be copied "
            f"({str(error)[:100]}), so it would not stay as it was. Give tensors, lists or dicts, or make it inside "
            "of forward=."
        ) from error


def replace_tensors(value: object, function: Callable[[str, torch.Tensor], Any]) -> Any:
    """Do the same as `map_tensors`, with the dotted path of each tensor as the first argument."""
    names = (name for name, _ in named_tensors(value))
    return map_tensors(value, lambda tensor: function(next(names), tensor))


def _same_type(value: tuple[Any, ...] | list[Any], parts: list[Any]) -> Any:
    """The parts in a sequence of the type of `value`, or of its base type if that type does not take a list."""
    base = tuple if isinstance(value, tuple) else list
    if type(value) is base:
        return base(parts)
    try:
        return type(value)(parts)
    except TypeError:
        return base(parts)


def named_tensors(value: object, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor inside `value`.

    Yields:
        Its dotted path (`""` for a bare tensor) and the tensor.
    """
    if isinstance(value, torch.Tensor):
        yield prefix, value
        return
    items: Iterator[tuple[Any, Any]]
    if type(value) in (tuple, list):
        items = enumerate(value)  # type: ignore[arg-type]
    elif value is None or isinstance(value, (bool, int, float, str)):
        return
    elif isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = iter(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        items = iter(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = iter((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        return
    for key, part in items:
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(part, torch.Tensor):
            yield name, part
        else:
            yield from named_tensors(part, name)


def entries(output: object) -> list[Mapping[str, Any]] | None:
    """Return an output that is a list with a mapping per sample, such as detections; None for any other."""
    if not isinstance(output, (list, tuple)) or hasattr(output, "_fields") or not output:
        return None
    return list(output) if all(isinstance(one, Mapping) for one in output) else None


def rows_of(output: object, rows: torch.Tensor, batch: int, *, by_entry: bool = False) -> Any:
    """Return the output of some rows of a batch.

    A list with as many mappings as samples has one for each if a tensor in it has another first axis; if all have the
    batch there, it may as well be a list of heads, which only the caller can tell.

    Args:
        output: a list with a mapping per sample, or any nesting; of that, tensors with the batch first are cut.
        rows: which, `(n,)`; a row may come several times.
        batch: rows that the output has.
        by_entry: whether it is known to be a list with a mapping per sample.
    """
    found = entries(output)
    if found is not None and len(found) == batch and (by_entry or not _all_of_length(output, batch)):
        return [found[row] for row in rows.tolist()]

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.is_nested or not tensor.ndim or len(tensor) != batch
        return tensor if whole else tensor[rows.to(tensor.device)]

    return map_tensors(output, cut)


def _all_of_length(output: object, batch: int) -> bool:
    return all(tensor.ndim and len(tensor) == batch for _, tensor in named_tensors(output))


def unmapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is seen inside of `torch.vmap` with the mapped axis in front; any other as it is."""
    while torch._C._functorch.is_batchedtensor(tensor):
        mapped = torch._C._functorch.maybe_get_bdim(tensor)
        tensor = torch._C._functorch.get_unwrapped(tensor).movedim(mapped, 0)
    return tensor


def first_tensor(value: object) -> torch.Tensor | None:
    """Return the first tensor in `value`, or None; one of nested layout is padded with 0."""
    tensor = next((tensor for _, tensor in named_tensors(value)), None)
    return None if tensor is None else padded(tensor)


def padded(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is, or padded with 0 if its layout is nested."""
    dense: torch.Tensor = torch.nested.to_padded_tensor(tensor, 0.0) if tensor.is_nested else tensor
    return dense


def version(tensor: torch.Tensor) -> int:
    """Return how often `tensor` was written in place; 0 for inference tensors, which do not count writes."""
    return 0 if tensor.is_inference() else int(tensor._version)


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as a numpy array, without its graph; types that numpy does not have, as bfloat16, in float32."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.complex32:
        tensor = tensor.to(torch.complex64)
    elif tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


def describe(value: object) -> str:
    """Describe `value` in short: `float32 (1, 3, 224, 224)`, `tuple of 2`, `dict with a, b`."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} nested, {len(value.unbind())} parts" if value.is_nested else f"{kind} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
