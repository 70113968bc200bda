"""Which layers a class activation map can be made at, and how their outputs lie over the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import Seen
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError
from layerlens.model.layers import Layers, Selection
from layerlens.model.trees import describe

from .grid import Grid, Reshape, asked_grid, grid_of, patch_grids
from .input_extent import Extent, extents

Candidate = tuple[Seen, Grid]


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


def places_of(scorer: Scorer, calls: Sequence[Seen], name: str) -> list[Extent]:
    """Find what a map can cover; refuse an input without places."""
    covered = extents(scorer, calls)
    if not covered:
        refuse_without_places(scorer, name)
    return covered


def refuse_without_places(scorer: Scorer, name: str) -> NoReturn:
    """Refuse an input without places.

    Raises:
        InputError: always.
    """
    given = ", ".join(f"{key} {describe(x)}" for key, x in scorer.inputs.tensors().items())
    raise InputError(
        f"{name} needs an image input (batch, channel, height, width), a volume, a series or token ids, that is, "
        f"places that a map can cover; got {given}."
    )


def grid_at(
    one: Seen, extent: Extent, every: Sequence[Seen], scorer: Scorer, options: Options, output: torch.Tensor | None
) -> Grid | None:
    """Return the grid of a call's output over an extent, or None."""
    if one.shape is None or one.axes is None or not one.floating:
        return None
    if options.reshape is not None:
        return None if output is None else _reshaped(output, extent, options.reshape, len(scorer.rows))
    known = patch_grids((call.shape, call.axes) for call in every)
    return _call_grid(one, extent, known, options, len(scorer.rows))


def _call_grid(
    one: Seen, extent: Extent, known: dict[tuple[int, int], bool], options: Options, batch: int
) -> Grid | None:
    if one.shape is None or one.axes is None or "batch" not in one.axes:
        return None
    rows = one.shape[one.axes.index("batch")]
    if not rows or rows % batch:
        return None
    if options.grid is not None:
        fits = len(options.grid) == len(extent.size) and rows == batch
        return asked_grid(one.shape, one.axes, options.grid) if fits else None
    return grid_of(one.shape, one.axes, extent.size, known, rows // batch)


def _reshaped(output: torch.Tensor, extent: Extent, reshape: Reshape, batch: int) -> Grid:
    laid = reshape(output.detach())
    if not isinstance(laid, torch.Tensor) or laid.ndim != 2 + len(extent.size) or len(laid) != batch:
        axes = ", ".join(extent.axes)
        raise OptionError(
            f"reshape= must return (batch, unit, {axes}) of the layer's output; it gave {describe(laid)}."
        )
    return Grid(tuple(laid.shape[2:]), tuple(range(laid.ndim)), reshape=reshape)


def candidates_over(
    scorer: Scorer, calls: Sequence[Seen], every: Sequence[Seen], extent: Extent, options: Options
) -> list[Candidate]:
    """Those of `calls` whose output is a grid, in the order of their ends; no attention matrices, no projections."""
    layers, known = Layers(scorer.model), patch_grids((one.shape, one.axes) for one in every)
    lengths = {one.shape[1] for one in every if one.shape is not None and len(one.shape) == 3}
    chosen: list[Candidate] = []
    linear: list[Candidate] = []
    for one in calls:
        if one.shape is None or one.axes is None or not one.floating or not one.path:
            continue
        if len(one.shape) == 4 and one.shape[-1] == one.shape[-2] and one.shape[-1] in lengths:
            continue  # (batch, head, token, token)
        grid = _call_grid(one, extent, known, options, len(scorer.rows))
        if grid is not None:
            flat = len(one.shape) == 3 and isinstance(layers[one.path], nn.Linear)
            (linear if flat else chosen).append((one, grid))
    return chosen or linear
