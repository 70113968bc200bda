"""Groups of the columns of tables, by name or by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from layerlens.errors import OptionError, choose
from layerlens.model.trees import describe

from ..leaves.leaves import Leaf, leaf_name
from ..scorer import Scorer

NAMED = "input name in the features"


def is_groups(spec: object) -> bool:
    """Return whether features are groups: a dict from the name of a group to a list of columns, or lists by input."""
    return isinstance(spec, Mapping) and any(isinstance(part, (list, tuple, range, Mapping)) for part in spec.values())


def column_names(scorer: Scorer, name: str) -> tuple[str, ...]:
    """Return the names of the columns of an input that is a table, where they are known."""
    leaf = scorer.leaves[name]
    return scorer.inputs.features.get(name, ()) if _is_table(leaf) else ()


def grouped(
    scorer: Scorer, groups: Mapping[str, object], names: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return labels by leaf from groups; -1 for columns and inputs in no group.

    Args:
        scorer: scorer of a borrowed model.
        groups: name of a group -> its columns: by name, also of several tables, or by number where there is one table;
            or a dict from input to its columns, or to `"all"` for the whole input, which may be of any kind.
        names: names of the columns where there is one table; None takes those of the inputs.

    Raises:
        OptionError: when there is no table, or the groups do not fit.
    """
    tables = {name: leaf.value.shape[1] for name, leaf in scorer.leaves.items() if _is_table(leaf)}
    by_input = all(isinstance(part, Mapping) for part in groups.values())
    if not (tables or by_input) or (len(tables) > 1 and names is not None):
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
    for number, (group, parts) in enumerate(groups.items()):
        for given, columns in parts.items() if isinstance(parts, Mapping) else [(None, parts)]:
            of = given if given is None else leaf_name(scorer.inputs, scorer.leaves, given, NAMED)
            if of is not None and isinstance(columns, str) and columns == "all":
                if bool((labels[of] >= 0).any()):
                    raise OptionError(f"input {given!r} is in two groups; each column can be in one.")
                labels[of][...] = number
                continue
            if (
                not isinstance(columns, (list, tuple, range))
                or not len(columns)
                or (of is not None and of not in tables)
            ):
                raise OptionError(
                    f"group {group!r} must be a list of columns, or a dict from input to its columns or 'all'; got "
                    f"{columns!r}{'' if of is None else f' for input {given!r}'}."
                )
            for column in columns:
                where, at = _place(column, tables if of is None else {of: tables[of]}, places)
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
        found = [place for place in places[choose("column", column, places)] if place[0] in tables]
        if not found:
            raise OptionError(f"column {column!r} is in no input {', '.join(tables)}.")
        if len(found) > 1:
            listed = [name for name, _ in found]
            raise OptionError(
                f"column {column!r} is in several inputs: {', '.join(listed)}. Give columns by input: "
                f"{{{listed[0]!r}: [{column!r}]}}."
            )
        return found[0]
    first, count = next(iter(tables.items()))
    if len(tables) > 1:
        raise OptionError(
            f"column {column!r} may be in any of {', '.join(tables)}: give columns by their names, or by input: "
            f"{{{first!r}: [{column!r}]}}."
        )
    if isinstance(column, bool) or not isinstance(column, int) or not 0 <= column < count:
        raise OptionError(f"column {column!r} is none of 0 to {count - 1}.")
    return first, column
