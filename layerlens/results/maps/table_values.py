"""Attributions of tables: one number for each named feature of each sample."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from layerlens.errors import InputError, check_count, choose
from layerlens.model.trees import describe

from ..values.ranking import Ranking
from .attribution import Attribution

WORDS: Final = (("token",), ("word",), ("span",))
"""Axes of texts."""


class TableValues(NamedTuple):
    """The values of a table.

    Attributes:
        values: `(batch, feature)`, float64.
        inputs: the features themselves, `(batch, feature)`, float64; None where they are not kept.
        names: name of each feature.
    """

    values: torch.Tensor
    inputs: torch.Tensor | None
    names: tuple[str, ...]


def table_of(attribution: Attribution, name: str | None = None) -> TableValues:
    """Return the values of a table with the features and their names, `f0`, `f1`, ... where they have none.

    Args:
        attribution: values `(batch, feature)`.
        name: name of the input, where there are several.

    Raises:
        InputError: when the values are not one number for each feature, or there are several inputs without a name.
        OptionError: when there is no such input.
    """
    given, inputs = attribution.values, attribution.inputs
    if isinstance(given, dict):
        if name is None and len(given) > 1:
            raise InputError(f"there are values for several inputs: {', '.join(given)}. Say which: name=.")
        name = choose("input name", next(iter(given)) if name is None else name, given)
    values = given[name or ""] if isinstance(given, dict) else given
    kept = inputs.get(name or "") if isinstance(inputs, dict) else inputs
    axes = attribution.axes_of(name)
    if values.ndim != 2 or attribution.tokens_of(name) is not None or (axes is not None and axes[1:] in WORDS):
        raise InputError(
            f"a table has one number for each feature, (batch, feature); got {describe(values)} with axes {axes}. "
            "Draw it with .plot()."
        )
    names = attribution.features_of(name) or tuple(f"f{index}" for index in range(values.shape[1]))
    known = kept is not None and kept.shape == values.shape
    return TableValues(
        values.detach().double().cpu(), kept.detach().double().cpu() if known and kept is not None else None, names
    )


def importance(attribution: Attribution, name: str | None = None, *, draws: int = 1000, seed: int = 0) -> Ranking:
    """Return the mean |value| of every feature of a table over the samples, with 95 % intervals.

    The intervals come from a bootstrap over samples; one sample has none.

    Args:
        attribution: values `(batch, feature)`.
        name: name of the input, where there are several.
        draws: number of draws of the bootstrap.
        seed: seed of the draws.

    Raises:
        InputError: when the values are not one number for each feature.
        OptionError: when there is no such input, or `draws` is not a count.

    Example:
        >>> a = Attribution(torch.tensor([[1.0, -4.0], [3.0, 2.0]]), None, True, "score", "", "", {}, torch.ones(2))
        >>> importance(a).values.tolist()
        [2.0, 3.0]
    """
    check_count("draws", draws)
    values, _, names = table_of(attribution, name)
    sizes, count = values.abs(), len(values)
    interval = None
    if count > 1:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(count, (draws, count), generator=generator)
        times = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(draws, count, dtype=torch.float64)
        )
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        interval = (times @ sizes / count).quantile(ends, dim=0).T.contiguous()
    return Ranking(
        quantity=f"mean |value| of {count} sample{'s' * (count != 1)}",
        items=names,
        values=sizes.mean(dim=0),
        units=attribution.units,
        signed=False,
        method=attribution.how,
        settings=attribution.settings | {"draws": draws, "seed": seed},
        interval=interval,
    )
