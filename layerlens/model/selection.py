"""The result of a selection: the layers, which of their calls, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from layerlens.errors import LayerNotFound, SelectionError

Calls: TypeAlias = frozenset[int] | None
"""Calls of a layer, 0 for its first; None for all."""


class Matches(list[str]):
    """The paths that a selection matched, in definition order: a list that says why, and can be combined.

    `a | b` has the layers of either, `a & b` those in both, `a - b` those of `a` that are not in `b`.

    Attributes:
        types: path -> class name, of every layer of the model.
        calls: path -> the selected calls.
        why: path -> the reason for the match.

    Args:
        types: path -> class name of every layer, in definition order.
        found: path -> (calls, why) of the matches.

    Example:
        >>> from layerlens import select
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> select(net) - select(net, nn.Linear)
        1 of 3 layers
          1  ReLU  every layer
    """

    def __init__(self, types: Mapping[str, str], found: Mapping[str, tuple[Calls, str]]) -> None:
        super().__init__(path for path in types if path in found)
        self.types = types
        self.calls: dict[str, Calls] = {path: found[path][0] for path in self}
        self.why: dict[str, str] = {path: found[path][1] for path in self}

    def found(self) -> dict[str, tuple[Calls, str]]:
        """Return path -> (calls, why)."""
        return {path: (self.calls[path], self.why[path]) for path in self}

    def __or__(self, other: Matches) -> Matches:
        types, found = self._types_of_both(other), self.found()
        for path, (calls, why) in other.found().items():
            found[path] = join(found[path], (calls, why)) if path in found else (calls, why)
        return Matches(types, found)

    def __and__(self, other: Matches) -> Matches:
        types = self._types_of_both(other)

        def both(path: str) -> Calls:
            one, two = self.calls[path], other.calls.get(path, frozenset())
            return two if one is None else one if two is None else one & two

        return self._restrict(types, both)

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

        return self._restrict(types, rest)

    def _restrict(self, types: Mapping[str, str], calls_of: Callable[[str], Calls]) -> Matches:
        kept = {path: (calls, self.why[path]) for path in self if (calls := calls_of(path)) != frozenset()}
        if not kept:
            raise LayerNotFound("no layer is left: the two selections have none in common, or all of them.")
        return Matches(types, kept)

    def _types_of_both(self, other: Matches) -> Mapping[str, str]:
        if not isinstance(other, Matches) or list(self.types) != list(other.types):
            raise SelectionError("selections can be combined with those of the same model: lens.select(...).")
        return self.types

    def __repr__(self) -> str:
        names = [name_of(path, self.calls[path]) for path in self]
        widths = [max(map(len, column), default=0) for column in (names, [self.types[path] for path in self])]
        head = f"{len(self)} of {len([path for path in self.types if path])} layers"
        lines = [
            f"  {name:{widths[0]}}  {self.types[path]:{widths[1]}}  {self.why[path]}"
            for name, path in zip(names, self, strict=True)
        ]
        if len(lines) > 24:
            lines = [*lines[:18], f"  ... {len(lines) - 22} more", *lines[-4:]]
        return "\n".join([head, *lines])


def join(one: tuple[Calls, str], two: tuple[Calls, str]) -> tuple[Calls, str]:
    """Return the calls of both, and both reasons."""
    calls = None if one[0] is None or two[0] is None else one[0] | two[0]
    return calls, one[1] if one[1] == two[1] else f"{one[1]}; {two[1]}"


def name_of(path: str, calls: Calls) -> str:
    """Return the name of a layer, with its calls unless all are selected."""
    return (path or "(model)") + ("" if calls is None else f"#{_numbers(calls)}")


def _numbers(calls: frozenset[int]) -> str:
    return ",".join(map(str, sorted(calls)))
