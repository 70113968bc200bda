"""Tables with names: DataFrames and Series, known by what they can do; pandas is never imported."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from layerlens.errors import InputError

Names: TypeAlias = "tuple[str, ...]"
"""Names of features, one for each column."""

Index: TypeAlias = "tuple[str | int, ...]"
"""Names of samples, as in the index of a DataFrame: whole numbers, and texts for all else."""


class Table(Protocol):
    """A DataFrame, whose rows are samples, or a Series, which is one sample."""

    @property
    def index(self) -> Any:
        """Names of the rows."""

    @property
    def iloc(self) -> Any:
        """Rows by their number."""

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The numbers."""


def is_frame(x: object) -> bool:
    """Return whether this is a DataFrame."""
    return all(hasattr(x, name) for name in ("columns", "dtypes", "index", "iloc", "to_numpy"))


def is_series(x: object) -> bool:
    """Return whether this is a Series."""
    return all(hasattr(x, name) for name in ("name", "dtype", "index", "iloc", "to_numpy")) and not is_frame(x)


def is_row(x: object) -> bool:
    """Return whether this is a row of a data set: a dict of numbers by column."""
    values = x.values() if isinstance(x, Mapping) else ()
    return bool(values) and all(isinstance(one, (numbers.Real, np.bool_)) for one in values)


def read_table(table: Any) -> tuple[np.ndarray[Any, Any], Names, Index | None]:
    """Return the numbers `(rows, columns)`, the names of the columns, and those of the rows.

    Columns that are numbered from 0 have no names; rows that are have None.

    Args:
        table: a DataFrame, or a Series, which is one row.

    Raises:
        InputError: when a column has no numbers, a missing value, or the name of another.
    """
    if is_series(table):
        columns, index = list(table.index), [] if table.name is None else [table.name]
        values, kinds = list(table), [type(one).__name__ for one in table]
        bad = [place for place, one in enumerate(values) if not isinstance(one, (numbers.Real, np.bool_))]
    else:
        columns, index = list(table.columns), list(table.index)
        dtypes = list(table.dtypes)
        kinds, bad = [str(dtype) for dtype in dtypes], [k for k, one in enumerate(dtypes) if one.kind not in "biuf"]
    names = _texts(columns)
    if bad:
        listed = ", ".join(f"{names[place]!r} ({kinds[place]})" for place in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InputError(
            f"column(s) {listed}{more} hold no numbers. Encode them as for the training of the model, for example by "
            f"pandas.get_dummies(df), or by Lens(model, transform=...) with a fitted transformer; or leave them out: "
            f"df.drop(columns={[columns[place] for place in bad[:5]]!r})."
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several columns are named {', '.join(map(repr, repeated[:5]))}; each needs its own name.")
    if is_series(table):
        array = np.array([values])
    elif all(one.kind in "biu" for one in dtypes) and not table.isna().to_numpy().any():
        array = table.to_numpy(dtype=bool if all(one.kind == "b" for one in dtypes) else np.int64)
    else:
        array = table.to_numpy(dtype=np.float64, na_value=np.nan)
    if array.dtype.kind == "f" and (missing := np.isnan(array).sum(axis=0)).any():
        listed = ", ".join(f"{names[k]!r} ({missing[k]} of {len(array)})" for k in np.flatnonzero(missing)[:5])
        raise InputError(f"values are missing in column(s) {listed}: fill them in, df.fillna(...), or df.dropna().")
    numbered = columns == list(range(len(columns)))
    return array, () if numbered else names, _index(index)


def feature_axis(names: Sequence[str], shape: Sequence[int], axes: Sequence[str] | None = None) -> int | None:
    """Return which axis of `(batch, ...)` has these features; None where none has as many, or it is unknown.

    Args:
        names: names of the features.
        shape: sizes of the axes.
        axes: names of the axes, where known.
    """
    fits = [axis for axis in range(1, len(shape)) if shape[axis] == len(names)]
    named = [axis for axis in fits if axes is not None and axes[axis] in ("feature", "channel")]
    ends = [axis for axis in fits if axis in (1, len(shape) - 1)]
    return next((found[0] for found in (named, ends) if len(found) == 1), None)


def check_names(name: str, names: Sequence[str], shape: Sequence[int]) -> None:
    """Check that an input has a feature for each name: as columns, or as the first or last axis of a series.

    Raises:
        InputError: when it has not, or two have the same name.
    """
    if isinstance(names, str) or not all(isinstance(one, str) for one in names):
        raise InputError(f"names of features must be a list of texts, got {names!r}.")
    if len(names) not in (*shape[1:2], *shape[-1:]) or len(shape) < 2:
        raise InputError(f"{len(names)} names of features were given for input {name!r} of shape {tuple(shape)}.")
    if len(set(names)) < len(names):
        raise InputError(f"the names of features must differ from each other, got {list(names)!r}.")


def _texts(labels: Iterable[object]) -> Names:
    """The labels as texts; those of several levels are joined."""
    return tuple(" / ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in labels)


def _index(labels: list[Any]) -> Index | None:
    """The names of rows; None where they are only numbered from 0."""
    if not labels or labels == list(range(len(labels))):
        return None
    texts = _texts(labels)
    whole = [isinstance(one, numbers.Integral) and not isinstance(one, bool) for one in labels]
    return tuple(int(one) if is_int else text for one, text, is_int in zip(labels, texts, whole, strict=True))
