"""Which tensors a class activation map can be made at, and how their places lie over the input."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch

from layerlens.analyzers.common.scorer import Scorer
from layerlens.axes.call_site import CallSite
from layerlens.axes.follow import Followed
from layerlens.axes.layout import Grid, arranged, grid, only, role, roles
from layerlens.axes.placement import even_grid
from layerlens.axes.provenance.axis import Axes
from layerlens.axes.provenance.roles import UNITS
from layerlens.errors import InputError, OptionError
from layerlens.model.layers import Selection
from layerlens.model.trees import describe

Reshape: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Output of a layer -> `(batch, unit, *places)`."""

TensorKey: TypeAlias = tuple[str, int, str]
"""Layer, call, and tensor of what it returned."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of all class activation maps; see `grad_cam`."""

    layer: Selection = None
    call: int | None = None
    relu: bool = True
    aug_smooth: bool = False
    eigen_smooth: bool = False
    grid: tuple[int, ...] | None = None
    reshape: Reshape | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A tensor with places.

    Attributes:
        place: where it is in the run.
        grid: its places.
        view: makes `(batch, unit, *places)` of it, also for another number of samples.
    """

    place: TensorKey
    grid: Grid
    view: Reshape


def inputs_with_places(scorer: Scorer, found: Followed, name: str) -> list[str]:
    """Return the inputs that a map can cover: pictures and volumes before texts and series.

    Raises:
        InputError: when there is none.
    """
    counts = {leaf: len(places_of(found, leaf)) for leaf in scorer.leaves if leaf in found.inputs}
    names = sorted((leaf for leaf, count in counts.items() if count), key=lambda leaf: -counts[leaf])
    if not names:
        given = ", ".join(f"{key} {describe(x)}" for key, x in scorer.inputs.tensors().items())
        raise InputError(
            f"{name} needs an image input (batch, channel, height, width), a volume, a series or token ids, that is, "
            f"places that a map can cover; got {given}. Lens(model, axes={{'0': ('batch', 'time', 'feature')}}) names "
            "the axes of an input."
        )
    return names


def places_of(found: Followed, name: str) -> dict[int, tuple[str, int]]:
    """Return the axes of an input along which its places lie: number -> name, size."""
    numbered = {number: next(axis.parts()) for number, axis in enumerate(found.inputs[name]) if axis.size > 1}
    return {number: (part.source.name, part.size) for number, part in numbered.items()
            if part.source.name not in ("batch", *UNITS)}  # fmt: skip


def candidates(found: Followed, names: Sequence[str], options: Options) -> Iterator[list[Candidate]]:
    """Yield the tensors with units at more than one place, in the order in which their layers returned.

    One list for each input, for grids along all of its axes before those along some, and for tensors whose units are
    one stream before those that attention splits into heads.
    """
    for name in names:
        tensors = [
            (one, _split(axes))
            for site in found.calls if site.path
            for tensor, axes in site.outputs.items()
            for one in [_candidate(site, tensor, axes, found, name, options)] if one is not None
        ]  # fmt: skip
        every, layers = len(places_of(found, name)), Counter(one.place[0] for one, _ in tensors)
        for whole, split in itertools.product((True, False), (False, True)):
            chosen = [one for one, heads in tensors if heads is split and (len(one.grid.axes) == every) is whole]
            if not whole:  # each call of a layer that ran several times saw another part, such as one frame
                chosen = [one for one in chosen if layers[one.place[0]] == 1]
            if chosen:
                yield chosen


def _split(axes: Axes) -> bool:
    """Whether attention splits the units of a tensor into heads, as it does queries, keys and values."""
    return any(part.source.heads for axis in axes for part in axis.parts() if part.source.kind == "unit")


def _candidate(
    site: CallSite, tensor: str, axes: Axes, found: Followed, name: str, options: Options
) -> Candidate | None:
    known = any(_counts_units(axes, number) for number in range(len(axes))) and "key" not in roles(axes)
    if options.grid is not None:
        return asked(site, tensor, axes, found, name, options.grid)
    places = grid(axes, name) if known else None
    if places is None or places.places < 2 or not places.covers:
        return None
    return _followed(site, tensor, axes, places)


def _counts_units(axes: Axes, number: int) -> bool:
    parts = list(axes[number].parts())
    return bool(parts) and all(part.source.kind == "unit" or part.source.role == "unit" for part in parts)


def _followed(site: CallSite, tensor: str, axes: Axes, places: Grid) -> Candidate | None:
    batch = [axis for axis in axes if any(part.source.role == "batch" for part in axis.parts())]
    if len(batch) != 1:
        return None
    return Candidate((site.path, site.index, tensor), places, lambda output: arranged(output, axes, places))


def named(site: CallSite, tensors: Sequence[str], found: Followed, names: Sequence[str]) -> list[Candidate]:
    """Return the tensors with places among some of those that a call returned, each over the first input it has.

    Raises:
        AxesUnknown: when axes are not known.
    """
    kept: list[Candidate] = []
    for tensor in tensors:
        axes = site.axes(tensor)
        every = (grid(axes, name) for name in names)
        places = next((one for one in every if one is not None and one.places > 1), None)
        one = None if places is None else _followed(site, tensor, axes, places)
        if one is not None:
            kept.append(one)
    return kept


def asked(
    site: CallSite, tensor: str, axes: Axes, found: Followed, name: str, sizes: tuple[int, ...]
) -> Candidate | None:
    """Return a tensor as the caller says: tokens on a grid after what is left over; None if it does not fit."""
    over = _over(axes, found, name, sizes)
    batch, unit = only(axes, "batch"), only(axes, "unit")
    if over is None or batch is None or unit is None:
        return None
    rest = [number for number in range(len(axes)) if number not in (batch, unit)]
    counts = tuple(axes[number].size for number in rest)
    extra = counts[0] - math.prod(sizes) if len(rest) == 1 else 0
    if extra < 0 or not (len(rest) == 1 or counts == sizes) or any(role(axes[number]) == "batch" for number in rest):
        return None

    def view(output: torch.Tensor) -> torch.Tensor:
        moved = output.permute(batch, unit, *rest)
        return moved[:, :, extra:].reshape(*moved.shape[:2], *sizes) if len(rest) == 1 else moved

    return Candidate((site.path, site.index, tensor), over, view)


def reshaped(
    site: CallSite, tensor: str, output: torch.Tensor, found: Followed, names: Sequence[str], reshape: Reshape
) -> Candidate:
    """Return a tensor as a function of the caller lays it out.

    Raises:
        OptionError: when it does not return `(batch, unit, *places)`.
    """
    laid = reshape(output.detach())
    sizes = tuple(laid.shape[2:]) if isinstance(laid, torch.Tensor) else ()
    over = next((one for name in names if (one := _over(site.outputs[tensor], found, name, sizes))), None)
    if over is None or len(laid) != found.inputs[names[0]][0].size:
        axes = ", ".join(text for text, _ in places_of(found, names[0]).values())
        raise OptionError(
            f"reshape= must return (batch, unit, {axes}) of the layer's output; it gave {describe(laid)}."
        )
    return Candidate((site.path, site.index, tensor), over, reshape)


def _over(axes: Axes, found: Followed, name: str, sizes: tuple[int, ...]) -> Grid | None:
    """The grid of a tensor if it has these sizes, else places evenly spread over the input; or None."""
    own, over = grid(axes, name), places_of(found, name)
    if own is not None and own.sizes == sizes:
        return own
    if len(over) != len(sizes) or not sizes:
        return None
    names, extents = zip(*over.values(), strict=True)
    return even_grid(name, tuple(over), names, sizes, extents)
