"""Leaves, where gradients start: the floating-point inputs, or the embeddings of token ids; and their layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.axes.followed import followed
from layerlens.axes.layout import layer_names
from layerlens.axes.series import time_axis
from layerlens.errors import AxesUnknown, InputError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath
from layerlens.probes.made_edits import Edit

from .layer_leaf import LeafCall
from .token_leaf import Use, token_uses

SERIES: dict[int, tuple[str, ...]] = {1: ("batch", "time", "feature"), 2: ("batch", "channel", "time")}
"""The axes of a series by that of time."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor from which a score is differentiated.

    Attributes:
        value: the tensor, detached; for token ids their embeddings (batch, token, feature), those of several tables
            side by side; for a layer its output with the batch first.
        uses: the calls of embedding layers whose output it is; none for other leaves.
        place: the call of the layer whose output it is, where one was asked for.
        axes: names of the axes of an input, where the model shows them; else None.
    """

    value: torch.Tensor
    uses: tuple[Use, ...] = ()
    place: LeafCall | None = None
    axes: tuple[str, ...] | None = None

    @property
    def layer(self) -> LayerPath | None:
        """The (first) embedding layer; None where the leaf is not an embedding of token ids."""
        return self.uses[0].layer if self.uses else None

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the model itself."""
        return not self.uses and self.place is None


def find_leaves(model: nn.Module, inputs: Inputs, forward: Forward | None) -> dict[str, Leaf]:
    """Find the leaves of a run of `model` on `inputs`, by input name.

    Floating-point inputs are leaves, except those whose name ends in `mask` when there are others. Token ids cannot
    carry a gradient: their leaf is what the embedding layers make of them, in every call that reads them, for which
    the model is run once. See `token_uses` for which integer inputs count.

    Raises:
        InputError: when there is neither.
    """
    floating = inputs.floating()
    leaves = {name: _input_leaf(model, inputs, forward, name) for name in floating if not name.endswith("mask")}
    ids = {name: x for name, x in inputs.tensors().items() if x.dtype in (torch.int64, torch.int32) and x.ndim}
    uses = token_uses(model, inputs, forward, ids) if ids else {}
    if not (leaves or uses):
        leaves = {name: _input_leaf(model, inputs, forward, name) for name in floating}
    if leaves or uses:
        return leaves | {name: Leaf(_embedded(ids[name], calls), tuple(calls)) for name, calls in uses.items()}
    if any(isinstance(module, nn.Embedding) for module in model.modules()) and ids:
        raise InputError(
            f"gradients have no place to start: no nn.Embedding of {type(model).__name__} reads {', '.join(ids)} as "
            "they are, transposed, flattened or step by step. Pass floating-point inputs, such as inputs_embeds=..."
        )
    raise InputError(f"gradients need a floating-point input or token ids; got {inputs}. Try x.float().")


def _input_leaf(model: nn.Module, inputs: Inputs, forward: Forward | None, name: str) -> Leaf:
    """The leaf of a floating-point input; the axes of a picture of one or three colors are those of any picture."""
    x = inputs.tensors()[name].detach()
    if x.ndim == 3:
        time = time_axis(model.modules(), x.shape)
        return Leaf(x, axes=None if time is None else SERIES[time])
    if x.ndim < 4 or (x.ndim == 4 and x.shape[1] in (1, 3)):
        return Leaf(x)
    axes = followed(model, inputs, forward).inputs.get(name)
    return Leaf(x, axes=None if axes is None else layer_names(axes))


def _tables(uses: Sequence[Use]) -> dict[LayerPath, slice]:
    """The features of a leaf that are from each table."""
    places: dict[LayerPath, slice] = {}
    start = 0
    for use in uses:
        if use.layer not in places:
            places[use.layer] = slice(start, start + use.output.shape[-1])
            start += use.output.shape[-1]
    return places


def _embedded(ids: torch.Tensor, uses: Sequence[Use]) -> torch.Tensor:
    """What the embeddings make of the ids, in the ids' own layout; 0 for ids that no call reads."""
    tables = _tables(uses)
    width = max(place.stop for place in tables.values())
    value = uses[0].output.new_zeros(ids.numel(), width)
    places = torch.arange(ids.numel(), device=value.device).reshape(ids.shape)
    for use in uses:
        table = tables[use.layer]
        value[use.arrange(places).flatten(), table] = use.output.detach().reshape(-1, table.stop - table.start)
    return value.reshape(*ids.shape, width)


def substitute(leaves: Mapping[str, Leaf], values: Mapping[str, torch.Tensor]) -> dict[LayerPath, Edit]:
    """Return edits for a `Probe` that replace what layers returned by `values`."""
    replaced: dict[LayerPath, dict[int, Callable[[Any], Any]]] = {}
    for name, leaf in leaves.items():
        if leaf.place is not None:
            calls = replaced.setdefault(leaf.place.layer, {})
            calls[leaf.place.call] = _after(calls.get(leaf.place.call), leaf.place.exchange(values[name]))
        tables = _tables(leaf.uses)
        for use in leaf.uses:
            replaced.setdefault(use.layer, {})[use.call] = _laid_out(use, values[name], tables[use.layer])

    def edit(by_call: dict[int, Callable[[Any], Any]]) -> Edit:
        calls = iter(range(1 << 62))

        def exchange(output: object) -> Any:
            change = by_call.get(next(calls))
            return output if change is None else change(output)

        return exchange

    return {layer: edit(by_call) for layer, by_call in replaced.items()}


def _after(first: Callable[[Any], Any] | None, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return then if first is None else lambda output: then(first(output))


def _laid_out(use: Use, value: torch.Tensor, table: slice) -> Callable[[Any], Any]:
    """Make the output of one call: a copy, because the model may write into it."""
    return lambda output: use.arrange(value[..., table]).clone()


def unit_and_places(leaf: Leaf) -> tuple[int | None, list[int]]:
    """Return the axis of channels or features of a sample (None where there is none), and the axes that are places.

    Of a series `(batch, channel, time)` or `(batch, time, feature)` time is what no layer reads as channels or
    features, and where no layer shows it, the longer axis.
    """
    sizes = leaf.value.shape[1:]
    axes = leaf.axes if leaf.place is None else leaf.place.axes
    if leaf.place is not None and len(sizes) > 1 and axes is None:
        raise AxesUnknown(
            f"the axes of layer {leaf.place.name!r} are not known, so it has no places to change. Name them, such as "
            f"Lens(model, axes={{{leaf.place.name!r}: ('batch', 'token', 'unit')}})."
        )
    if axes is not None and len(axes) == leaf.value.ndim:
        unit = next((axes.index(one) - 1 for one in ("channel", "feature") if one in axes), None)
        return unit, [axis for axis in range(len(sizes)) if axis != unit] or [0]
    if len(sizes) == 1:
        return None, [0]
    if len(sizes) == 2:
        return (0, [1]) if sizes[1] >= sizes[0] else (1, [0])
    return 0, list(range(1, len(sizes)))


def place_axes(leaf: Leaf) -> list[int]:
    """Return the axes of a sample that are places: tokens, steps, pixels, columns of a table; none for a single id."""
    return list(range(leaf.value.ndim - 2)) if leaf.layer is not None else unit_and_places(leaf)[1]


def spread_axes(leaf: Leaf) -> list[int]:
    """Return the axes of the whole batch along which neighbors are alike: pixels, voxels, frames, steps.

    Empty for token ids and for tables, whose places have no order.
    """
    if leaf.layer is not None or leaf.value.ndim < 3:
        return []
    return [axis + 1 for axis in unit_and_places(leaf)[1]]
