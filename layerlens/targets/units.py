"""Targets inside a model: a unit, a direction, or a whole layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

from layerlens.errors import TargetError, choose
from layerlens.model.layers import Selection
from layerlens.model.selection import InputOf
from layerlens.model.trees import describe
from layerlens.signatures import public

from .target import Target

Unit: TypeAlias = "int | slice | tuple[int | slice, ...] | Callable[[torch.Tensor], torch.Tensor]"
"""One unit or several of `(batch, unit, *places)`; see `neuron`."""


@public
def neuron(
    layer: Selection,
    unit: Unit,
    *,
    place: int | tuple[int, ...] | None = None,
    over: Literal["mean", "max", "sum"] = "mean",
    call: int = 0,
) -> Target:
    """Return one unit of a layer, or several, as the target of saliency or relevance.

    Args:
        layer: a selection that matches one layer, or a tensor of its output (`"rnn/h_n"`). Of several tensors without a
            name it is the one that the model reads. `input_of(layer)` for what the layer takes.
        unit: channel or feature, negative ones count from the end; a slice of them; an index into `(unit, *places)` of
            numbers and slices, such as `(3, 0, slice(2, 5))`; or a function from `(batch, unit, *places)` to
            `(batch,)`, or to several values of each sample.
        place: a token or time step, or `(row, column)` of an image; None for all places.
        over: how several units and places are combined.

    Raises:
        TargetError: when a place is given twice; on use, when there is no such unit, place or call.

    Example:
        >>> import layerlens
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> unit = neuron("0", 2)
        >>> found = layerlens.saliency(net, torch.ones(1, 2), target=unit, method="gradient")
        >>> torch.equal(found.tensor[0], net[0].weight[2])
        True
    """
    choose("reading over places", over, ("mean", "max", "sum"))
    at = () if place is None else (place,) if isinstance(place, int) else place
    if at and (callable(unit) or (isinstance(unit, tuple) and len(unit) > 1)):
        raise TargetError(
            f"unit={unit!r} says which places it reads, so place={place!r} is one too many: leave it out."
        )
    name = layer if isinstance(layer, (str, InputOf)) else "a layer"

    def read(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        flat = chosen_units(output, unit, at, name)
        if flat.ndim == 1:
            return flat
        flat = flat.flatten(1)
        return flat.amax(dim=1) if over == "max" else flat.sum(dim=1) if over == "sum" else flat.mean(dim=1)

    own = getattr(unit, "__name__", "a function") if callable(unit) else unit
    label = f"{'units' if isinstance(unit, slice) else 'unit'} {own} of {name}"
    return Target(read, label + ("" if place is None else f" at {place}"), at=(layer, call), own=callable(unit))


def chosen_units(
    output: torch.Tensor, unit: Unit, place: tuple[int, ...] = (), layer: object = "a layer"
) -> torch.Tensor:
    """Return the units of an output `(batch, unit, *places)` that are chosen, `(batch, ...)`.

    Args:
        output: the output.
        unit: which units, as in `neuron`.
        place: the place; empty for all.
        layer: name of the layer, for errors.

    Raises:
        TargetError: when there is no such unit or place.
    """
    if callable(unit):
        found = unit(output)
        if not isinstance(found, torch.Tensor) or found.shape[:1] != output.shape[:1]:
            raise TargetError(
                f"the function of the units of layer {layer!r} must return one value for each of {len(output)} "
                f"sample(s), (batch,), for {tuple(output.shape)}; got {describe(found)}."
            )
        return found
    index = (*unit, *place) if isinstance(unit, tuple) else (unit, *place)
    sizes = tuple(output.shape[1:])
    if isinstance(index[0], int) and not -sizes[0] <= index[0] < sizes[0]:
        raise TargetError(f"layer {layer!r} has {sizes[0]} units; there is no unit {index[0]}.")
    bad = [at for at, size in zip(index, sizes, strict=False) if isinstance(at, int) and not -size <= at < size]
    if bad or len(index) > len(sizes) or (place and len(index) != len(sizes)):
        given = repr(place[0] if len(place) == 1 else place) if place else index[1:]
        raise TargetError(f"unit {index[0]} of layer {layer!r} has places {sizes[1:]}; there is no place {given}.")
    every = (slice(None), *index)  # a star inside an index needs Python 3.11
    chosen: torch.Tensor = output[every]
    if not chosen.numel():
        raise TargetError(
            f"unit={unit!r} of layer {layer!r} chooses nothing of {sizes[0]} units and places {sizes[1:]}."
        )
    return chosen


@public
def direction(
    layer: Selection,
    vector: torch.Tensor,
    *,
    place: int | tuple[int, ...] | None = None,
    cosine: float = 0.0,
    call: int = 0,
) -> Target:
    """Return a direction in the space of a layer's units as the target: the product of activations with a vector.

    sum over units of v a, averaged over places, times the cosine between v and a to a power, which favors direction
    over strength (Olah et al. 2018, The building blocks of interpretability).

    Args:
        layer: a selection that matches one layer.
        vector: `(unit,)`.
        place: as in `neuron`; None for the mean over all places.
        cosine: power of the cosine, which is at least 0.1; 0 for none.

    Raises:
        TargetError: when `vector` is not one vector; on use, when it does not fit the layer, or there is no such place.

    Example:
        >>> towards = direction("0", torch.tensor([1.0, -1.0]))
        >>> towards(torch.tensor([[3.0, 1.0]]), at=("0", 0))
        tensor([2.])
    """
    if not isinstance(vector, torch.Tensor) or vector.ndim != 1:
        raise TargetError(f"a direction is one vector (unit,), got {describe(vector)}.")
    index: tuple[int, ...] | None = (place,) if isinstance(place, int) else place

    def read(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if output.shape[1] != len(vector):
            raise TargetError(f"layer {layer!r} has {output.shape[1]} units; the direction has {len(vector)}.")
        along = vector.to(output)
        values = output
        if index is not None:
            sizes = output.shape[2:]
            if len(index) != len(sizes) or any(not -n <= i < n for i, n in zip(index, sizes, strict=True)):
                raise TargetError(f"layer {layer!r} has places {tuple(sizes)}; there is no place {place!r}.")
            values = at_place(output, index)
        flat = values.reshape(*values.shape[:2], -1)  # (batch, unit, place)
        product = torch.einsum("bup,u->bp", flat, along)
        if cosine:
            sizes_of = flat.norm(dim=1) * along.norm()
            product = product * (product / sizes_of.clamp_min(1e-12)).clamp_min(0.1) ** cosine
        return product.mean(dim=1)

    return Target(read, f"a direction of {layer if isinstance(layer, str) else 'a layer'}", at=(layer, call))


@public
def deep_dream(layer: Selection, *, call: int = 0) -> Target:
    """Return a whole layer as the target: the mean square of its activations (Mordvintsev et al. 2015, Inceptionism).

    Args:
        layer: a selection that matches one layer.

    Example:
        >>> deep_dream("0")(torch.tensor([[3.0, 1.0]]), at=("0", 0))
        tensor([5.])
    """

    def read(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return output.square().flatten(1).mean(dim=1)

    return Target(read, f"all of {layer if isinstance(layer, str) else 'a layer'}", at=(layer, call))


def at_place(output: torch.Tensor, place: tuple[int, ...]) -> torch.Tensor:
    """Return the units at one place, `(batch, unit)`, of an output `(batch, unit, *places)`.

    A permutation is avoided: the backward of BatchNorm in torch (2.13, CPU, one sample) silently misreads a gradient
    whose memory is ordered (height, width, batch, unit).
    """
    index = (slice(None), slice(None)) + place  # noqa: RUF005 - a star inside an index needs Python 3.11
    units: torch.Tensor = output[index]
    return units
