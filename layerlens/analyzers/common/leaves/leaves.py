"""Leaves, where gradients start: the floating-point inputs, or the embeddings of token ids; and their layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.axes.followed import followed
from layerlens.axes.layout import assumed, layer_names
from layerlens.axes.provenance.axis import Axes
from layerlens.errors import AxesUnknown, InputError, choose, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import LayerPath
from layerlens.model.trees import named_tensors
from layerlens.probes.made_edits import Edit, Edited

from ..features.basis_site import BasisSite, FeatureCall, Kind
from ..samples import or_none
from .indices import indices
from .layer_leaf import LeafCall
from .token_leaf import Use, token_uses

UNORDERED = ("axis 1", "axis 2", "axis 3", "axis 4")
"""Names of axes of an input along which the model neither slides nor steps."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor from which a score is differentiated.

    Attributes:
        value: the tensor, detached; for token ids their embeddings (batch, token, feature), those of several tables
            side by side; for a layer its output with the batch first.
        uses: the calls of embedding layers whose output it is; none for other leaves.
        place: the call of the layer whose output it is, where one was asked for.
        follow: returns the axes of an input, for which the model may run once more.
    """

    value: torch.Tensor
    uses: tuple[Use, ...] = ()
    place: LeafCall | None = None
    follow: Callable[[], Axes] | None = dataclasses.field(default=None, repr=False)

    @functools.cached_property
    def axes(self) -> tuple[str, ...] | None:
        """Names of the axes of an input, or of a layer's output with the batch first; None where nothing shows them."""
        if self.place is not None:
            return self.place.axes
        axes = None if self.follow is None or self.value.ndim < 3 else self.follow()
        return None if axes is None or assumed(axes) else layer_names(axes)

    @property
    def is_picture(self) -> bool:
        """Whether it is an input with a height and a width; where nothing shows the axes, one of 1 or 3 colors."""
        if not self.is_input or self.value.ndim != 4:
            return False
        return self.value.shape[1] in (1, 3) if self.axes is None else {"height", "width"} <= set(self.axes)

    @property
    def layer(self) -> LayerPath | None:
        """The (first) embedding layer; None where the leaf is not an embedding of token ids."""
        return self.uses[0].layer if self.uses else None

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the model itself."""
        return not self.uses and self.place is None


Whole = Literal["never", "alone", "always"]
"""Whether inputs of whole numbers are leaves: never, for gradients; alone, where there is no other leaf; always."""


def find_leaves(
    model: nn.Module, inputs: Inputs, forward: Forward | None, *, whole: Whole = "never"
) -> dict[str, Leaf]:
    """Find the leaves of a run of `model` on `inputs`, by input name.

    Floating-point inputs are leaves, except single numbers `()`, and those whose name ends in `mask` when there are
    others. Token ids cannot carry a gradient: their leaf is what the embedding layers make of them, in every call that
    reads them, for which the model is run once. See `token_uses` for which integer inputs count. Other inputs of whole
    numbers or booleans with a number for each sample are leaves as `whole` says, but for masks, and for what comes with
    token ids. Inputs that are held fixed are none.

    Raises:
        InputError: when there is none.
    """
    free = {name: x for name, x in inputs.tensors().items() if name not in inputs.held}
    if not free:
        raise InputError(f"every input is held fixed ({', '.join(inputs.held)}), so there is nothing to attribute to.")
    floating = [name for name, x in free.items() if x.is_floating_point()]
    own = [name for name in floating if free[name].ndim and not name.endswith("mask")]  # a number has no samples
    leaves = {name: _input_leaf(model, inputs, forward, name) for name in own}
    ids = {name: x for name, x in free.items() if x.dtype in (torch.int64, torch.int32) and x.ndim}
    uses = token_uses(model, inputs, forward, ids) if ids else {}
    if not uses and (whole == "always" or (whole == "alone" and not leaves)):
        whole_numbers = {
            name: x for name, x in free.items()
            if not (x.is_floating_point() or x.is_complex()) and x.ndim and len(x) == inputs.batch
        }  # fmt: skip
        named = [name for name in whole_numbers if not name.endswith("mask")] or ([] if leaves else [*whole_numbers])
        leaves |= {name: _input_leaf(model, inputs, forward, name) for name in named}
    if not (leaves or uses):
        leaves = {name: _input_leaf(model, inputs, forward, name) for name in floating}
    if leaves or uses:
        return leaves | {name: Leaf(embedded(ids[name], calls), tuple(calls)) for name, calls in uses.items()}
    if any(isinstance(module, nn.Embedding) for module in model.modules()) and ids:
        raise InputError(
            f"gradients have no place to start: no nn.Embedding of {type(model).__name__} reads {', '.join(ids)} as "
            "they are, plus constants, transposed, flattened or step by step. Pass floating-point inputs, such as "
            "inputs_embeds=..."
        )
    inputs.run(model, forward)  # an input that the model does not take says so
    if any(x.is_complex() for x in free.values()):
        raise InputError(
            f"complex numbers cannot be attributed to; got {inputs}. Give their real and imaginary parts: "
            "Lens(model, forward=lambda model, x: model(torch.view_as_complex(x))), with torch.view_as_real(x)."
        )
    raise InputError(
        f"gradients need a floating-point input or token ids; got {inputs}. Try x.float(), or a method without "
        "gradients, such as feature_ablation, shapley_sampling or kernel_shap."
    )


def leaf_name(scored: Inputs, leaves: Mapping[str, Leaf], name: object, what: str) -> str:
    """Return the name of a leaf, given it, or the name of the parameter of a positional input.

    Raises:
        OptionError: when there is no such leaf; `what` names it.
    """
    known = {name: name for name in leaves}
    known |= {name: str(place) for place, name in enumerate(scored.names) if str(place) in leaves}
    return known[choose(what, name, known)]


def by_leaf(scored: Inputs, leaves: Mapping[str, Leaf], what: str, given: Any) -> dict[str, Any]:
    """Return an option for each leaf, from one for all or a dict by input name; None where that has none.

    Raises:
        OptionError: when the dict names another input; `what` names the option.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(leaves, given)
    named = {leaf_name(scored, leaves, name, f"input name in {what}="): one for name, one in given.items()}
    return {name: named.get(name) for name in leaves}


def unchangeable(model: nn.Module, inputs: Inputs, leaves: Mapping[str, Leaf], forward: Forward | None) -> list[str]:
    """Return the leaves of whole numbers that cannot be changed: indices, and what the model does not run without.

    Indices are followed through a run, see `indices`; the others are found by an experiment: each is set to 0, next
    to other leaves as they are. Leaves that are all of whole numbers are not tried.
    """
    whole = [name for name, leaf in leaves.items() if leaf.is_input and not leaf.value.is_floating_point()]
    if not whole or len(whole) == len(leaves):
        return []
    used = or_none(lambda: indices(model, inputs, forward)) or set()
    found = [name for name in whole if name in used]
    for name in whole:
        if name in used:
            continue
        changed = inputs.replace({name: torch.zeros_like(leaves[name].value)})
        with torch.no_grad():
            output = or_none(functools.partial(changed.run, model, forward))
        tensors = [tensor for _, tensor in named_tensors(output) if tensor.is_floating_point()]
        if output is None or not all(bool(tensor.isfinite().all()) for tensor in tensors):
            found.append(name)
    return found


def _input_leaf(model: nn.Module, inputs: Inputs, forward: Forward | None, name: str) -> Leaf:
    return Leaf(inputs.tensors()[name].detach(), follow=lambda: followed(model, inputs, forward).inputs[name])


def _tables(uses: Sequence[Use]) -> dict[LayerPath, slice]:
    """The features of a leaf that are from each table."""
    places: dict[LayerPath, slice] = {}
    start = 0
    for use in uses:
        if use.layer not in places:
            places[use.layer] = slice(start, start + use.output.shape[-1])
            start += use.output.shape[-1]
    return places


def embedded(ids: torch.Tensor, uses: Sequence[Use]) -> torch.Tensor:
    """What the embeddings make of the ids, in the ids' own layout; 0 for ids that no call reads."""
    tables = _tables(uses)
    width = max(place.stop for place in tables.values())
    value = uses[0].output.new_zeros(ids.numel(), width)
    places = torch.arange(ids.numel(), device=value.device).reshape(ids.shape)
    for use in uses:
        table = tables[use.layer]
        value[use.arrange(places).flatten(), table] = use.output.detach().reshape(-1, table.stop - table.start)
    return value.reshape(*ids.shape, width)


def substitute(
    leaves: Mapping[str, Leaf], values: Mapping[str, torch.Tensor], *, through: bool = False
) -> dict[Edited, Edit]:
    """Return edits for a `Probe` that replace what layers returned, or took, by `values`.

    Args:
        leaves: the leaves.
        values: their values.
        through: whether gradients pass the layers that are replaced, see `LeafCall.exchange`.
    """
    replaced: dict[Edited, dict[int, Callable[[Any], Any]]] = {}
    parts: dict[BasisSite, dict[Kind, torch.Tensor]] = {}
    for name, leaf in leaves.items():
        if isinstance(leaf.place, FeatureCall):
            parts.setdefault(leaf.place.site, {})[leaf.place.kind] = values[name]
        elif leaf.place is not None:
            calls = replaced.setdefault(leaf.place.edited, {})
            exchange = leaf.place.exchange(values[name], through=through)
            calls[leaf.place.call] = _after(calls.get(leaf.place.call), exchange)
        tables = _tables(leaf.uses)
        for use in leaf.uses:
            replaced.setdefault(use.layer, {})[use.call] = _laid_out(use, values[name], tables[use.layer])
    for site, given in parts.items():
        calls = replaced.setdefault(site.call.edited, {})
        calls[site.call.call] = _after(calls.get(site.call.call), site.exchange(given, through=through))

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

    Of a series of which the model shows neither, time is the longer axis, with a warning.

    Raises:
        AxesUnknown: when the axes of a layer's output are not known.
    """
    sizes, axes = leaf.value.shape[1:], leaf.axes
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
        time = 1 if sizes[1] >= sizes[0] else 0
        if leaf.follow is not None and 1 not in sizes:
            other = ("batch", "time", "feature") if time else ("batch", "channel", "time")
            warn(
                f"no layer shows which axis of the input {tuple(leaf.value.shape)} is time: the longer one is taken, "
                f"axis {time + 1}. If it is not, name the axes: Lens(model, axes={{'0': {other}}})."
            )
        return 1 - time, [time]
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
    return [axis + 1 for axis in unit_and_places(leaf)[1] if leaf.axes is None or leaf.axes[axis + 1] not in UNORDERED]
