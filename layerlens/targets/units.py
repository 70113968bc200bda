"""Targets inside a model: a unit, a direction, or a whole layer."""

from __future__ import annotations

from typing import Literal

import torch

from layerlens.errors import TargetError, choose
from layerlens.model.layers import Selection
from layerlens.model.trees import describe
from layerlens.signatures import public

from .target import Target


@public
def neuron(
    layer: Selection,
    unit: int,
    *,
    place: int | tuple[int, ...] | None = None,
    over: Literal["mean", "max", "sum"] = "mean",
    call: int = 0,
) -> Target:
    """Return one unit of a layer as the target of saliency or relevance.

    Args:
        layer: a selection that matches one layer, or a tensor of its output (`"rnn/h_n"`). Of several tensors without a
            name it is the one that the model reads.
        unit: channel or feature; negative ones count from the end.
        place: a token or time step, or `(row, column)` of an image; None for all places.
        over: how all places are combined.

    Raises:
        TargetError: on use, when there is no such unit, place or call.

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
    index: tuple[int, ...] | None = (place,) if isinstance(place, int) else place

    def read(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if not -output.shape[1] <= unit < output.shape[1]:
            raise TargetError(f"layer {layer!r} has {output.shape[1]} units; there is no unit {unit}.")
        values = output[:, unit]
        if index is None:
            flat = values.reshape(len(values), -1)
            return flat.amax(dim=1) if over == "max" else flat.sum(dim=1) if over == "sum" else flat.mean(dim=1)
        sizes = values.shape[1:]
        if len(index) != len(sizes) or any(not -n <= i < n for i, n in zip(index, sizes, strict=True)):
            raise TargetError(f"unit {unit} of layer {layer!r} has places {tuple(sizes)}; there is no place {place!r}.")
        chosen: torch.Tensor = values.permute(*range(1, values.ndim), 0)[index]
        return chosen

    where = "" if place is None else f" at {place}"
    name = f"unit {unit} of {layer if isinstance(layer, str) else 'a layer'}{where}"
    return Target(read, name, at=(layer, call))


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
