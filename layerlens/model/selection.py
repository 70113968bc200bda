"""The result of a selection: the layers, which of their calls, and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

from layerlens.errors import LayerNotFound, SelectionError

Calls: TypeAlias = frozenset[int] | None
"""Calls of a layer, 0 for its first; None for all."""

Names: TypeAlias = frozenset[str] | None
"""Names of tensors that a layer returned, or of nested parts that hold several; None for all."""

Found: TypeAlias = tuple[Calls, Names, str]
"""Calls, tensors and the reason of a match."""


@dataclasses.dataclass(frozen=True)
class InputOf:
    """What a layer takes instead of what it returns; see `input_of`.

    Attributes:
        layer: a selection of the layer; it may name a call and an argument.
    """

    layer: Any

    def __repr__(self) -> str:
        return f"input of {self.layer}" if isinstance(self.layer, str) else "input of a layer"


_CALLS = re.compile(r"#[\d,]+$")


class Matches(list[str]):
    """The paths that a selection matched, in definition order: a list that says why, and can be combined.

    `a | b` has the layers of either, `a & b` those in both, `a - b` those of `a` that are not in `b`.

    Attributes:
        types: path -> class name, of every layer of the model.
        calls: path -> the selected calls.
        tensors: path -> the selected tensors of what it returned.
        why: path -> the reason for the match.

    Args:
        types: path -> class name of every layer, in definition order.
        found: path -> (calls, tensors, why) of the matches.

    Example:
        >>> from layerlens import select
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> select(net) - select(net, nn.Linear)
        1 of 3 layers
          1  ReLU  every layer
    """

    def __init__(self, types: Mapping[str, str], found: Mapping[str, Found]) -> None:
        super().__init__(path for path in types if path in found)
        self.types = types
        self.calls: dict[str, Calls] = {path: found[path][0] for path in self}
        self.tensors: dict[str, Names] = {path: found[path][1] for path in self}
        self.why: dict[str, str] = {path: found[path][2] for path in self}

    def found(self) -> dict[str, Found]:
        """Return path -> (calls, tensors, why)."""
        return {path: (self.calls[path], self.tensors[path], self.why[path]) for path in self}

    def selections(self) -> list[tuple[str, ...]]:
        """Return a selection of each match by names alone, which can be a key of a dict."""
        found = []
        for path, (calls, tensors, _) in self.found().items():
            name = path if calls is None else f"{path}#{_numbers(calls)}"
            found.append((name,) if tensors is None else tuple(f"{name}/{part}" for part in sorted(tensors)))
        return found

    def names(self) -> list[str]:
        """Return the name of each match, with its calls and tensors unless all are selected."""
        return [name_of(path, self.calls[path], self.tensors[path]) for path in self]

    def __or__(self, other: Matches) -> Matches:
        types, found = self._types_of_both(other), self.found()
        for path, match in other.found().items():
            found[path] = join(path, found[path], match) if path in found else match
        return Matches(types, found)

    def __and__(self, other: Matches) -> Matches:
        types = self._types_of_both(other)

        def both(path: str) -> Calls:
            one, two = self.calls[path], other.calls.get(path, frozenset())
            return two if one is None else one if two is None else one & two

        return self._restrict(types, both, other)

    def __sub__(self, other: Matches) -> Matches:
        types = self._types_of_both(other)

        def rest(path: str) -> Calls:
            if path not in other.calls:
                return self.calls[path]
            one, two = self.calls[path], other.calls[path]
            if two is None:
                return frozenset()
            if one is None:
                raise SelectionError(
                    f"all calls of {path!r} but {_numbers(two)} cannot be selected: the number of calls is unknown."
                )
            return one - two

        return self._restrict(types, rest, other)

    def _restrict(self, types: Mapping[str, str], calls_of: Callable[[str], Calls], other: Matches) -> Matches:
        for path in self:
            if path in other and self.tensors[path] != other.tensors[path]:
                raise SelectionError(f"selections with other tensors of {path!r} can be combined by | only.")
        kept = {
            path: (calls, self.tensors[path], self.why[path])
            for path in self
            if (calls := calls_of(path)) != frozenset()
        }
        if not kept:
            raise LayerNotFound("no layer is left: the two selections have none in common, or all of them.")
        return Matches(types, kept)

    def _types_of_both(self, other: Matches) -> Mapping[str, str]:
        if not isinstance(other, Matches) or list(self.types) != list(other.types):
            raise SelectionError("selections can be combined with those of the same model: lens.select(...).")
        return self.types

    def __repr__(self) -> str:
        names = self.names()
        widths = [max(map(len, column), default=0) for column in (names, [self.types[path] for path in self])]
        head = f"{len(self)} of {len([path for path in self.types if path])} layers"
        lines = [
            f"  {name:{widths[0]}}  {self.types[path]:{widths[1]}}  {self.why[path]}"
            for name, path in zip(names, self, strict=True)
        ]
        if len(lines) > 24:
            lines = [*lines[:18], f"  ... {len(lines) - 22} more", *lines[-4:]]
        return "\n".join([head, *lines])


def join(path: str, one: Found, two: Found) -> Found:
    """Return the calls and tensors of both, and both reasons.

    Raises:
        SelectionError: when they name other tensors of other calls.
    """
    if one[0] != two[0] and one[1] != two[1]:
        raise SelectionError(
            f"{name_of(path, *one[:2])!r} and {name_of(path, *two[:2])!r} are other tensors of other calls, which one "
            "selection cannot hold; make two."
        )
    calls = None if one[0] is None or two[0] is None else one[0] | two[0]
    tensors = None if one[1] is None or two[1] is None else one[1] | two[1]
    return calls, tensors, one[2] if one[2] == two[2] else f"{one[2]}; {two[2]}"


def name_of(path: str, calls: Calls, tensors: Names = None) -> str:
    """Return the name of a layer, with its calls and tensors unless all are selected."""
    named = "" if tensors is None else "/" + ",".join(sorted(tensors))
    return (path or ("" if named else "(model)")) + ("" if calls is None else f"#{_numbers(calls)}") + named


def split_tensor(name: str, layers: Container[str]) -> tuple[str, str]:
    """Split a name into that of a layer, which may hold a `/` itself, and that of a tensor, or the empty string.

    Example:
        >>> split_tensor("rnn#2/h_n", ["rnn"]), split_tensor("a/b", ["a/b"])
        (('rnn#2', 'h_n'), ('a/b', ''))
    """
    parts = name.split("/")
    splits = [("/".join(parts[:end]), "/".join(parts[end:])) for end in range(len(parts), 0, -1)]
    return next((split for split in splits if _CALLS.sub("", split[0]) in layers), splits[-1])


def _numbers(calls: frozenset[int]) -> str:
    return ",".join(map(str, sorted(calls)))
