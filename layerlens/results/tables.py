"""Arrays as tables: a row for each value, with its place on every axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from layerlens.errors import need
from layerlens.inputs.tables import feature_axis
from layerlens.model.trees import as_array


def rows(
    values: torch.Tensor | Mapping[str, torch.Tensor],
    axes: Sequence[str] | Mapping[str, Sequence[str]] | None,
    tokens: Sequence[Sequence[str]] | Mapping[str, Sequence[Sequence[str]]] | None = None,
    features: Mapping[str, Sequence[str]] | None = None,
    index: Sequence[str | int] | None = None,
) -> Any:
    """A pandas DataFrame of attributions: input where there are several, sample, place on each axis, token, value.

    Args:
        values: `(batch, ...)`, or by input name.
        axes: names of the axes, the batch first, or a dict of them by input name; None, or a number of names that does
            not fit, counts them.
        tokens: tokens of each sample, for values `(batch, token)` and `(batch, token, ...)`; a shorter text may have
            fewer, and gets the empty text. Or a dict of them by input name.
        features: names of the features of inputs, by input name; others are numbered.
        index: names of the samples; None numbers them.

    Raises:
        MissingPackage: when pandas is not installed.

    Example:
        >>> list(rows(torch.ones(2, 3), ("batch", "token"), [["a", "b", "c"], ["d"]])["token text"])
        ['a', 'b', 'c', 'd', '', '']
    """
    pandas = need("pandas", "to_pandas")
    named = {"": values} if isinstance(values, torch.Tensor) else values
    frames = []
    for name, tensor in named.items():
        array = as_array(tensor)
        places = np.indices(array.shape).reshape(array.ndim, -1)
        given = axes.get(name) if isinstance(axes, Mapping) else axes
        known = given if given is not None and len(given) == array.ndim else None
        names = ["sample", *(known[1:] if known else (f"axis {axis}" for axis in range(1, array.ndim)))]
        columns: dict[str, Any] = {"input": name} if name else {}
        columns |= dict(zip(names, places, strict=True))
        if index is not None:
            columns["sample"] = np.array(index, dtype=object)[places[0]]
        titles = next(iter(features.values()), ()) if features and not name else (features or {}).get(name, ())
        if titles and (axis := feature_axis(titles, array.shape, known)) is not None:
            columns[names[axis] if known else "feature"] = np.array(titles, dtype=object)[columns.pop(names[axis])]
        own = tokens.get(name) if isinstance(tokens, Mapping) else tokens
        if own is not None and array.ndim > 1:
            texts = [[*row, *[""] * (array.shape[1] - len(row))] for row in own]
            columns["token text"] = np.array(texts, dtype=object)[places[0], places[1]]
        frames.append(pandas.DataFrame({**columns, "value": array.reshape(-1)}))
    return pandas.concat(frames, ignore_index=True)
