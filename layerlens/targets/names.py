"""Names of classes: the ones that the user gives, and the tokens of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from layerlens.errors import TargetError, suggestion
from layerlens.inputs.inputs import Inputs

from .answers import Answers

Names: TypeAlias = Sequence[str] | Mapping[int, str] | None
"""Class names by index."""


class TokenNames(Mapping[int, str]):
    """Class names that are the tokens of a language model; see `layerlens.targets.tokens.Vocabulary`."""

    def index(self, text: str) -> int:
        """Return the class of a text."""
        raise NotImplementedError

    def answers(self, inputs: Inputs) -> Answers:
        """Return which input the places of an output follow."""
        raise NotImplementedError

    def next_scores(self, output: object, rows: torch.Tensor, answers: Answers | None) -> torch.Tensor:
        """Return the scores of every token as the next one of each row, `(len(rows), tokens)`."""
        raise NotImplementedError


def class_index(name: str, names: Names) -> int:
    """Return the index of a class by its name.

    Raises:
        TargetError: when there is none; names the nearest.
    """
    if isinstance(names, TokenNames):
        return names.index(name)
    if names is None:
        raise TargetError(f"target {name!r} is a name, but no class names are known: Lens(model, class_names=...).")
    pairs = dict(names.items() if isinstance(names, Mapping) else enumerate(names))
    found = [index for index, known in pairs.items() if known == name]
    found = found or [index for index, known in pairs.items() if known.casefold() == name.casefold()]
    if len(found) == 1:
        return int(found[0])
    if found:
        held = ", ".join(f"{index} {pairs[index]!r}" for index in found[:12])
        raise TargetError(f"{len(found)} classes have the name {name!r}: {held}. Give the index of one.")
    table = dict.fromkeys(pairs.values())
    close = suggestion(name, table) or f" Known: {', '.join([*table][:12])}{', ...' if len(table) > 12 else ''}."
    raise TargetError(f"no class is named {name!r} among {len(pairs)}.{close}")


def class_label(index: int, names: Names) -> str:
    """Return the name of a class; `class 3` where it has none, and where names are tokens."""
    if names is None or isinstance(names, TokenNames):
        return f"class {index}"
    if isinstance(names, Mapping):
        return names.get(index, f"class {index}")
    return names[index] if -len(names) <= index < len(names) else f"class {index}"


def read_names(names: Names) -> Names:
    """Return class names as given.

    Raises:
        TargetError: when they are not names by index.
    """
    if names is None or isinstance(names, TokenNames):
        return names
    if isinstance(names, str) or not hasattr(names, "__getitem__"):
        raise TargetError(f"class_names must be a sequence or a mapping of names, got {names!r}.")
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    for index, name in pairs:
        if not isinstance(name, str) or not hasattr(index, "__index__"):
            given = f"{{{index!r}: {name!r}}}"
            raise TargetError(f"class_names are names by index, such as ['cat', 'dog'] or {{1: 'dog'}}, got {given}.")
    return names


def check_names(names: Names, count: int) -> None:
    """Check that there are as many class names as classes, and no index beyond them in a mapping.

    Raises:
        TargetError: when there are not.
    """
    if names is None or isinstance(names, TokenNames):
        return
    if len(names) > count or (len(names) < count and not isinstance(names, Mapping)):
        raise TargetError(
            f"there are {len(names)} class_names for an output of {count} class(es); give one for each, in its order, "
            "or names of some by index: class_names={3: 'cat'}."
        )


def short_label(labels: Sequence[str], what: str = "classes") -> str:
    """Return different labels in one; the first three of many.

    Example:
        >>> short_label(["a", "b", "a"]), short_label(["a", "b", "c", "d"])
        ('a, b', 'a, b, c, ... (4 classes)')
    """
    chosen = list(dict.fromkeys(labels))
    shown = ", ".join(chosen[:3])
    return shown if len(chosen) <= 3 else f"{shown}, ... ({len(chosen)} {what})"
