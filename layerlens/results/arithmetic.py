"""Sums and differences of results, where they have a meaning; refused where they have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from layerlens.errors import InputError
from layerlens.model.trees import describe

if TYPE_CHECKING:
    from .maps.attribution import Attribution, Values
    from .values.layer_profile import LayerProfile

WORDS = {"+": "add", "-": "subtract"}


def combined(kind: type[Attribution], first: Attribution, second: Attribution, sign: Literal["+", "-"]) -> Attribution:
    """The sum or difference of two attributions of the same inputs in the same units.

    Raises:
        InputError: when inputs, shapes, units, layers or signs do not agree.
    """
    _check_compatible(first, second, WORDS[sign])
    count = len(first.score)
    sides = [[one.target_of(row) for row in range(count)] for one in (first, second)]
    targets = tuple(f"{one} {sign} {two}" for one, two in zip(*sides, strict=True))
    fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(kind)}
    fields |= {
        "values": _combined_values(first.values, second.values, sign),
        "signed": first.signed or sign == "-",
        "target": f"{first.target} {sign} {second.target}",
        "targets": None if first.targets is second.targets is None else targets,
        "method": _joined(first.method, second.method, sign),
        "settings": _settings(first.settings, second.settings),
        "score": first.score + second.score if sign == "+" else first.score - second.score,
        "checks": {},
        "inputs": second.inputs if first.inputs is None else first.inputs,
        "tokens": second.tokens if first.tokens is None else first.tokens,
        "texts": second.texts if first.texts is None else first.texts,
        "standard_error": None,
        "degrees": None,
        "skewness": None,
        "features": {**second.features, **first.features},
        "index": second.index if first.index is None else first.index,
        "cost": " and ".join(filter(None, (first.cost, second.cost))),
    }
    return kind(**fields)


def _check_compatible(first: Attribution, second: Attribution, verb: str) -> None:
    start = f"cannot {verb} these attributions"
    if first.units != second.units:
        raise InputError(
            f"{start}: one is in {first.units!r}, the other in {second.units!r}. Numbers in different units have no "
            f"common scale; draw the maps side by side: plotting.compare_methods([a, b])."
        )
    if first.signed != second.signed:
        raise InputError(
            f"{start}: one has signs and the other only sizes. Take .values.abs() of the first, or neither."
        )
    shapes = [_shapes(one.values) for one in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{start}: their values have different shapes, {_described(first)} and {_described(second)}.")
    places = [one.settings.get("where") for one in (first, second)]
    if places[0] != places[1] or first.axes != second.axes:
        raise InputError(
            f"{start}: one is at {places[0] or 'the input'} with axes {first.axes}, the other at "
            f"{places[1] or 'the input'} with axes {second.axes}."
        )
    if first.score.shape != second.score.shape:
        raise InputError(
            f"{start}: their scores have shapes {tuple(first.score.shape)} and {tuple(second.score.shape)}."
        )
    check_same_inputs(first, second, start)


def check_same_inputs(first: Attribution, second: Attribution, start: str) -> None:
    """Check that two attributions are of the same inputs, as far as both know them.

    Args:
        first: an attribution.
        second: another.
        start: how the message begins.

    Raises:
        InputError: when they are not.
    """
    known = [(name, getattr(first, name), getattr(second, name)) for name in ("inputs", "tokens", "index")]
    for name, one, two in [*known, ("features", first.features or None, second.features or None)]:
        if one is not None and two is not None and not _equal(one, two):
            raise InputError(f"{start}: they are of different {name}. Make both of the same batch, in the same order.")


def _shapes(values: Values) -> object:
    return {name: part.shape for name, part in values.items()} if isinstance(values, Mapping) else values.shape


def _described(one: Attribution) -> str:
    if isinstance(one.values, torch.Tensor):
        return describe(one.values)
    return "; ".join(f"{name} {describe(values)}" for name, values in one.values.items())


def _equal(one: object, two: object) -> bool:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        kinds = one.dtype, two.dtype
        kind = torch.promote_types(*kinds)
        if all(dtype.is_floating_point for dtype in kinds):  # a copy in less precision is the same input
            kind = max(kinds, key=lambda dtype: torch.finfo(dtype).eps)
        return one.shape == two.shape and torch.equal(one.to(kind), two.to(one.device, kind))
    return bool(one == two)


def _combined_values(one: Values, two: Values, sign: str) -> Values:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one + two if sign == "+" else one - two
    one, two = cast(dict[str, torch.Tensor], one), cast(dict[str, torch.Tensor], two)
    return {name: one[name] + two[name] if sign == "+" else one[name] - two[name] for name in one}


def _joined(one: str, two: str, sign: str) -> str:
    """Both names, or the one that they share."""
    return one if one == two else f"{one} {sign} {two}"


def _settings(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """What both share, and what each has for itself."""
    shared = {name: value for name, value in one.items() if name in two and _equal(value, two[name])}
    own = [{name: value for name, value in each.items() if name not in shared} for each in (one, two)]
    return {**shared, **{name: rest for name, rest in zip(("first", "second"), own, strict=True) if rest}}


def difference_of_profiles(first: LayerProfile, second: LayerProfile) -> LayerProfile:
    """The values of the first less those of the second, layer by layer.

    Raises:
        InputError: when quantity, units, layers or series differ.
    """
    for name in ("quantity", "units", "series", "layers"):
        one, two = getattr(first, name), getattr(second, name)
        if one != two:
            where = ""
            if name == "layers":
                odd = [layer for layer in (*one, *two) if (layer in one) != (layer in two)]
                one, two = f"{len(one)} layers", f"{len(two)} layers"
                where = f" (not in both: {', '.join(odd[:3])})" if odd else " in another order"
            raise InputError(
                f"cannot subtract these profiles: their {name} differ, {one!r} and {two!r}{where}. "
                "Measure both with the same function and layers=."
            )
    error = None
    if first.error is not None and second.error is not None:
        error = (first.error**2 + second.error**2).sqrt()
    return dataclasses.replace(
        first,
        quantity=f"difference in {first.quantity}",
        layers=first.layers,
        values=first.values - second.values,
        units=first.units,
        signed=True,
        method=_joined(first.method, second.method, "-"),
        settings=_settings(first.settings, second.settings),
        series=first.series,
        error=error,
        null=None,
        checks={},
        vectors={},
        explanation=(
            f"Each value is by how much the {first.quantity} of a layer is larger in the first profile.",
            "The error is that of independent measurements; a difference within two of it may be chance.",
        ),
    )
