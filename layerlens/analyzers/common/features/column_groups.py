"""Groups of the columns of tables, by name or by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from layerlens.errors import OptionError, choose
from layerlens.model.trees import describe

from ..leaves.leaves import Leaf
from ..scorer import Scorer


def is_groups(spec: object) -> bool:
    """Return whether features are groups of columns: a dict from the name of a group to a list of columns."""
    return isinstance(spec, Mapping) and any(isinstance(part, (list, tuple, range)) for part in spec.values())


def column_names(scorer: Scorer, name: str) -> tuple[str, ...]:
    """Return the names of the columns of an input that is a table, where they are known."""
    leaf = scorer.leaves[name]
    return scorer.inputs.features.get(name, ()) if _is_table(leaf) else ()


def grouped(
    scorer: Scorer, groups: Mapping[str, object], names: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return labels by leaf from groups of columns; -1 for columns in no group, and for inputs other than tables.

    Args:
        scorer: scorer of a borrowed model.
        groups: name of a group -> its columns: by name, also of several tables, or by number where there is one table.
        names: names of the columns where there is one table; None takes those of the inputs.

    Raises:
        OptionError: when there is no table, or the groups do not fit.
    """
    tables = {name: leaf.value.shape[1] for name, leaf in scorer.leaves.items() if _is_table(leaf)}
    if not tables or (len(tables) > 1 and names is not None):
        raise OptionError(
            f"groups of columns{'' if names is None else ' with names='} need an input (batch, columns)"
            f"{'' if names is None else ', only one'}; this model takes "
            f"{', '.join(f'{name} {describe(leaf.value)}' for name, leaf in scorer.leaves.items())}. Give labels by "
            "input instead."
        )
    if names is not None and len(names) != next(iter(tables.values())):
        raise OptionError(f"{len(names)} names were given for {next(iter(tables.values()))} columns.")
    places: dict[str, list[tuple[str, int]]] = {}
    for table in tables:
        for place, title in enumerate(column_names(scorer, table) if names is None else names):
            places.setdefault(title, []).append((table, place))
    labels = {
        name: torch.full((tables[name],) if name in tables else (1,) * leaf.value.ndim, -1)
        for name, leaf in scorer.leaves.items()
    }
    for number, (group, columns) in enumerate(groups.items()):
        if not isinstance(columns, (list, tuple, range)) or not len(columns):
            raise OptionError(f"group {group!r} must be a list of columns, got {columns!r}.")
        for column in columns:
            where, at = _place(column, tables, places)
            if labels[where][at] >= 0:
                raise OptionError(f"column {column!r} is in two groups; each column can be in one.")
            labels[where][at] = number
    return labels


def _is_table(leaf: Leaf) -> bool:
    return leaf.is_input and leaf.value.ndim == 2


def _place(column: object, tables: Mapping[str, int], places: Mapping[str, list[tuple[str, int]]]) -> tuple[str, int]:
    """Return the table and the number of a column.

    Raises:
        OptionError: when there is none, or several.
    """
    if isinstance(column, str):
        if not places:
            raise OptionError(
                f"column {column!r} is given by its name, but no names are known: give names= (of sobol and morris), a "
                "DataFrame, or Lens(model, feature_names=[...])."
            )
        found = places[choose("column", column, places)]
        if len(found) > 1:
            raise OptionError(f"column {column!r} is in several inputs: {', '.join(name for name, _ in found)}.")
        return found[0]
    first, count = next(iter(tables.items()))
    if len(tables) > 1:
        raise OptionError(f"column {column!r} may be in any of {', '.join(tables)}: give columns by their names.")
    if isinstance(column, bool) or not isinstance(column, int) or not 0 <= column < count:
        raise OptionError(f"column {column!r} is none of 0 to {count - 1}.")
    return first, column
