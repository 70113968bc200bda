"""Names of the tensors that one call of a layer returns: `"rnn/h_n"`, `"block/0"`, `"block/logits"`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from layerlens.errors import RecordError, SelectionError, suggestion

from .selection import Names
from .trees import describe, map_tensors, named_tensors

Value = TypeVar("Value")

DOCUMENTED: dict[str, dict[str, str]] = {
    "LSTM": {"0": "output", "1.0": "h_n", "1.1": "c_n"},
    "GRU": {"0": "output", "1": "h_n"},
    "RNN": {"0": "output", "1": "h_n"},
    "LSTMCell": {"0": "h_1", "1": "c_1"},
    "MultiheadAttention": {"0": "attn_output", "1": "attn_output_weights"},
}
"""Names in the documentation of torch's own modules, by position."""


class ByTensor(dict[str, Value]):
    """Values by name of a tensor; a missing name says which there are.

    A name of a layer, or of a part of its output, means the one tensor in it if there is only one; the position in the
    output (`"1/0"`) is another name of the same tensor.

    Args:
        values: name -> value.
        positions: position -> name.
    """

    def __init__(self, values: Mapping[str, Value], positions: Mapping[str, str] | None = None) -> None:
        super().__init__(values)
        self.positions = dict(positions or {})

    def named(self, name: str) -> list[str]:
        """Return the names that a name, a position, or the name of a nested part means."""
        if name in self:
            return [name]
        return [self.positions[name]] if name in self.positions else [one for one in self if one.startswith(f"{name}/")]

    def __missing__(self, name: str) -> Value:
        found = self.named(name)
        if len(found) != 1:
            what = "names several tensors" if found else "is not there"
            raise RecordError(f"{name!r} {what}; name one of: {', '.join(map(repr, self))}.")
        return self[found[0]]


def tensors_of(module: nn.Module | None, output: object) -> ByTensor[torch.Tensor]:
    """Return the tensors of an output by name: `""` if it is one tensor, else as torch documents them, keys or numbers.

    Args:
        module: layer that returned it; None if unknown.
        output: what it returned, possibly nested.

    Example:
        >>> lstm = nn.LSTM(2, 3)
        >>> list(tensors_of(lstm, lstm(torch.ones(4, 1, 2))))
        ['output', 'h_n', 'c_n']
    """
    if isinstance(output, torch.Tensor):
        return ByTensor({"": output})
    tensors, positions = dict[str, torch.Tensor](), dict[str, str]()
    for position, tensor in named_tensors(output):
        name = documented(module, position)
        while name in tensors:  # keys that read alike, as in {"a.b": x, "a": {"b": y}}
            name += "'"
        tensors[name], positions[position.replace(".", "/")] = tensor, name
    return ByTensor(tensors, positions)


def changeable(module: nn.Module | None, output: object, names: Names, layer: str) -> ByTensor[torch.Tensor]:
    """Return the tensors of an output that numbers are read from: the floating-point ones, or those that are named.

    Where none is of floating point, all are returned.

    Raises:
        SelectionError: when a name is not there; it lists those that are.
    """
    every = tensors_of(module, output)
    if names is not None:
        return ByTensor({name: every[name] for name in pick(every, names, layer, output)}, every.positions)
    floating = {name: tensor for name, tensor in every.items() if tensor.is_floating_point()}
    return ByTensor(floating or every, every.positions)


def pick(every: ByTensor[Any], names: Iterable[str], layer: str, output: object) -> list[str]:
    """Return the names of the tensors that `names` name, in their order in the output.

    Raises:
        SelectionError: when a name is not there; it lists those that are.
    """
    chosen: set[str] = set()
    for name in names:
        found = every.named(name)
        if not found and list(every) == [""]:
            raise SelectionError(f"layer {layer!r} returned one tensor: name it {layer!r}, without {'/' + name!r}.")
        if not found:
            raise SelectionError(
                f"layer {layer!r} returned no tensor {name!r} ({describe(output)}); it returned "
                f"{choices(layer, every)}.{suggestion(name, every)}"
            )
        chosen.update(found)
    return [name for name in every if name in chosen]


def only(found: ByTensor[Value], layer: str, doing: str, verb: str = "returned") -> tuple[str, Value]:
    """Return the one tensor of an output, and its name.

    Args:
        found: tensors of the output.
        layer: path of the layer.
        doing: what needs one tensor, for the error.
        verb: what the layer did with them, for the error.

    Raises:
        SelectionError: when there are several; it lists them.
    """
    if len(found) != 1:
        refuse_several(layer, found, doing, verb=verb)
    return next(iter(found.items()))


def refuse_several(
    layer: str, names: Iterable[str], why: str, error: Exception | None = None, verb: str = "returned"
) -> NoReturn:
    """Refuse a layer that returned, or took, several tensors where one has to be named.

    Raises:
        SelectionError: always.
    """
    raise SelectionError(
        f"layer {layer!r} {verb} several tensors, {why.rstrip('.')}. Name one: {choices(layer, names)}."
    ) from error


def choices(layer: str, names: Iterable[str]) -> str:
    """Return the tensors of a layer as they are named in a selection: `'rnn/output', 'rnn/h_n'`."""
    listed = [repr(tensor_path(layer, name)) for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def tensor_path(layer: str, name: str) -> str:
    """Return the name of a tensor of a layer: `"rnn/h_n"`, or the name of the layer if it returned only one."""
    return f"{layer}/{name}" if name else layer


def argument_key(name: str) -> str:
    """Return the name of an argument in a `CallSite`, from its name in `(args, kwargs)`, such as `"1/mask"`."""
    return name.partition("/")[2].replace("/", ".")


def exchanged(module: nn.Module | None, output: object, new: Mapping[str, torch.Tensor]) -> Any:
    """Return an output with other tensors, by name."""
    names = iter(tensors_of(module, output))
    return map_tensors(output, lambda tensor: new.get(next(names), tensor))


def documented(module: nn.Module | None, position: str) -> str:
    """Return the name of the tensor at a position of an output, as `named_tensors` counts it."""
    for kind in type(module).__mro__:
        if kind.__name__ in DOCUMENTED and kind.__module__.startswith("torch."):
            for start, name in DOCUMENTED[kind.__name__].items():
                if position == start or position.startswith(f"{start}."):
                    return (name + position[len(start) :]).replace(".", "/")
    return position.replace(".", "/")
