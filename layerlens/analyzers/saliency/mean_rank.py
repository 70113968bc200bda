"""The mean of the ranks that several maps give the places of an input."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.analyzers.common.statistics import average_ranks
from layerlens.errors import InputError, OptionError
from layerlens.model.trees import describe
from layerlens.results import Attribution
from layerlens.results.arithmetic import check_same_inputs
from layerlens.results.maps.attribution import Values

CHANNEL = "channel"
UNITS = "mean rank, 0 the lowest and 1 the highest"


def mean_rank(*maps: Attribution) -> Attribution:
    """Rank the places by each map, and take the mean of the ranks: what the maps agree on.

    Methods that go wrong in different ways, such as relevance and masks, correct each other, and ranks need no common
    unit: on photographs the mean rank of relevance and RISE is more faithful than either (docs/faithfulness.md). The
    size of values is lost, and the sum has no meaning.

    Values are added over channels first, where an axis is known as that of channels; else each value is a place. Equal
    values share the mean of their ranks; padding is not ranked and gets 0.

    Args:
        maps: two or more, of the same batch and target, over the same places.

    Returns:
        An `Attribution` `(batch, *places)`, without the axis of channels, by input where there are several: from 0, the
        place that every map puts last, to 1.

    Raises:
        OptionError: when there are fewer than two maps.
        InputError: when the maps are of other inputs, places or targets, or hold values that are not finite.

    Example:
        >>> from torch import nn
        >>> from layerlens import saliency
        >>> net = nn.Linear(3, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, -1.0, 0.0]]))
        >>> maps = [saliency(net, torch.ones(1, 3), method=one) for one in ("gradient", "input_x_gradient")]
        >>> mean_rank(*maps).tensor
        tensor([[1.0000, 0.0000, 0.5000]])
    """
    if len(maps) < 2:
        raise OptionError(f"mean_rank takes two maps or more, mean_rank(a, b); got {len(maps)}.")
    for one in maps:
        if not isinstance(one, Attribution):
            raise OptionError(f"mean_rank takes attributions, as lens.saliency returns them; got {describe(one)}.")
    first = maps[0]
    ranked = [_by_input(one) for one in maps]
    for one, own in zip(maps[1:], ranked[1:], strict=True):
        _check_same(first, ranked[0], one, own)
    means = {name: torch.stack([own[name] for own in ranked]).mean(dim=0) for name in ranked[0]}
    axes = {name: _places(first.axes_of(name)) for name in means}
    known = {name: one for name, one in axes.items() if one is not None}
    several = isinstance(first.values, dict)
    values: Values = {str(name): one for name, one in means.items()} if several else means[None]
    where = {"where": first.settings["where"]} if "where" in first.settings else {}
    fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(Attribution)}
    fields |= {
        "values": values,
        "axes": {str(name): one for name, one in known.items()} if several else axes[None],
        "signed": False,
        "units": UNITS,
        "method": "mean rank of " + " and ".join(one.method for one in maps),
        "settings": {**where, "maps": [{"method": one.method, **one.settings} for one in maps]},
        "checks": {},
        "standard_error": None,
        "degrees": None,
        "skewness": None,
        "cost": " and ".join(one.cost for one in maps if one.cost),
    }
    return Attribution(**fields)


def _by_input(one: Attribution) -> dict[str | None, torch.Tensor]:
    """The ranks of the places of each input, `(batch, *places)`, from 0 to 1."""
    names: list[str | None] = list(one.values) if isinstance(one.values, dict) else [None]
    found: dict[str | None, torch.Tensor] = {}
    for name in names:
        axes = one.axes_of(name)
        values = (one.values[str(name)] if isinstance(one.values, dict) else one.tensor).detach().double().cpu()
        if axes is not None and CHANNEL in axes[1:]:
            values = values.sum(dim=axes.index(CHANNEL))
        if not bool(values.isfinite().all()):
            raise InputError(f"the map by {one.method} holds NaN or infinite values, so its places cannot be ranked.")
        used = one.used_of(name)
        found[name] = torch.stack(
            [_ranks(row, None if used is None else used[place]) for place, row in enumerate(values)]
        ).float()
    return found


def _ranks(values: torch.Tensor, used: torch.Tensor | None) -> torch.Tensor:
    """The ranks of the values of a sample, from 0 to 1, equal ones the same; 0 where a place is not used."""
    kept = torch.ones(values.shape, dtype=torch.bool)
    if used is not None:
        kept &= used.bool().cpu().reshape(*used.shape, *[1] * (values.ndim - used.ndim))  # tokens come first
    ranks = torch.zeros(values.shape, dtype=torch.float64)
    ranks[kept] = (average_ranks(values[kept]) - 1) / max(1, int(kept.sum()) - 1)
    return ranks


def _places(axes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if axes is None else (axes[0], *(axis for axis in axes[1:] if axis != CHANNEL))


def _check_same(
    first: Attribution,
    ranks: dict[str | None, torch.Tensor],
    other: Attribution,
    ranked: dict[str | None, torch.Tensor],
) -> None:
    """Check that two maps are of the same places, targets and inputs.

    Raises:
        InputError: when they are not.
    """
    start = f"the maps by {first.method} and {other.method} have no common ranks"
    shapes = [{name: tuple(values.shape) for name, values in one.items()} for one in (ranks, ranked)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{start}: their places are {shapes[0]} and {shapes[1]}, by input, without channels.")
    places = [one.settings.get("where") for one in (first, other)]
    if places[0] != places[1]:
        raise InputError(f"{start}: one is at {places[0] or 'the input'}, the other at {places[1] or 'the input'}.")
    targets = [[one.target_of(row) for row in range(len(one.score))] for one in (first, other)]
    if targets[0] != targets[1]:
        raise InputError(f"{start}: one is of {first.target}, the other of {other.target}. Give both the same target.")
    check_same_inputs(first, other, start)
