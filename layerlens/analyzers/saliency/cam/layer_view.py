"""Where a class activation map is made: the layer, what it returned, and the gradient of the score there."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import call_index
from layerlens.analyzers.common.samples import slopes_by_sample
from layerlens.analyzers.common.scorer import Scorer, backward_pass
from layerlens.axes.call_site import CallSite
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.axes.layout import Grid, described
from layerlens.axes.placement import placed
from layerlens.errors import OptionError, RecordError
from layerlens.model.layers import LayerPath
from layerlens.model.selection import InputOf, Names
from layerlens.model.tensors import ByTensor, argument_key, exchanged, pick, refuse_several, tensors_of
from layerlens.probes.edit_site import Site
from layerlens.probes.edits import Change
from layerlens.probes.made_edits import Edited
from layerlens.probes.probe import Probe

from .layer_choice import Candidate, Options, Reshape, TensorKey, asked, candidates, inputs_with_places, named, reshaped

GROUP = 16
"""Number of tensors whose gradient is taken in one run when the layer is chosen automatically."""

_ENOUGH: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Of a model, how many tensors from the last one on the layer was among when it was chosen last: the first to try."""


@dataclasses.dataclass(frozen=True)
class LayerView:
    """A tensor that a layer returned in one run.

    Attributes:
        scorer: scorer of the run.
        score: score of each sample, `(batch,)`.
        place: layer, call and tensor.
        grid: its places over the input.
        view: makes `(batch, unit, *places)` of it, also for another number of samples.
        activation: the tensor, before any operation that later writes into it.
        gradient: gradient of the score; None where it was not asked for, or there is none.
        of_input: whether the layer took the tensor.
    """

    scorer: Scorer
    score: torch.Tensor
    place: TensorKey
    grid: Grid
    view: Reshape
    activation: torch.Tensor
    gradient: torch.Tensor | None
    of_input: bool = False

    @property
    def edited(self) -> Edited:
        """What an edit of the tensor is an edit of."""
        return InputOf(self.place[0]) if self.of_input else self.place[0]

    @property
    def path(self) -> LayerPath:
        """The path of the layer, or the name of its input."""
        return str(self.edited)

    @property
    def activations(self) -> torch.Tensor:
        """The activation `(batch, unit, *places)`, float32 or wider."""
        return self._on_grid(self.activation)

    @property
    def gradients(self) -> torch.Tensor:
        """The gradient `(batch, unit, *places)`, float32 or wider."""
        assert self.gradient is not None
        return self._on_grid(self.gradient)

    def _on_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        seen = self.view(tensor.detach()).to(torch.promote_types(tensor.dtype, torch.float32))
        padding = self.scorer.padding.get(self.grid.input)
        if padding is None or tuple(seen.shape[2:]) == self.grid.sizes:
            return seen
        return padding.take(seen.movedim(2, 1)).movedim(1, 2)

    def of_tokens(self) -> LayerView:
        """Return the view of the tokens of padded texts, where the layer has a place for each of their places."""
        grid, padding = self.grid, self.scorer.padding.get(self.grid.input)
        if padding is None or grid.sizes != grid.extents or grid.sizes != tuple(padding.padded.shape[1:2]):
            return self
        sizes = tuple(padding.places.shape[1:])
        return dataclasses.replace(self, grid=dataclasses.replace(grid, sizes=sizes, extents=sizes))

    def enlarged(self, maps: torch.Tensor) -> torch.Tensor:
        """Enlarge maps `(batch, *places)` to the input; 0 where the model does not read it, as outside of a crop."""
        values = placed(maps, self.grid)
        for axis, (first, end) in self._unread().items():
            at = torch.arange(values.shape[axis], device=values.device).reshape(-1, *[1] * (values.ndim - axis - 1))
            shape = (-1, *[1] * (values.ndim - 1))
            values = values * ((at >= first.reshape(shape)) & (at < end.reshape(shape)))
        return values

    def _unread(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Axis of a map -> first entry and end, `(batch,)`, of what the score depends on.

        Only axes whose places begin more than one stride from a border of the input are looked at.
        """
        grid, scorer = self.grid, self.scorer
        whole = enumerate(zip(grid.sizes, grid.strides, grid.offsets, grid.extents, strict=True), start=1)
        far = [axis for axis, (size, stride, offset, extent) in whole
               if min(offset, offset + (size - 1) * stride) > abs(stride)
               or max(offset, offset + (size - 1) * stride) + abs(stride) < extent - 1]  # fmt: skip
        leaf = scorer.leaves[grid.input]
        if not far or not leaf.is_input:
            return {}
        with torch.enable_grad():
            start = scorer.start()
            slope = _gradients(scorer, scorer(start), {grid.input: start[grid.input]})[0]
        if slope is None:
            return {}
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for axis in far:
            lines = slope.ne(0).movedim(grid.axes[axis - 1], 1).flatten(2).any(dim=2)  # (batch, entry)
            lines = lines | ~lines.any(dim=1, keepdim=True)
            count = lines.shape[1]
            found[axis] = lines.int().argmax(dim=1), count - lines.flip(1).int().argmax(dim=1)
        return found


def view_of(
    scorer: Scorer,
    name: str,
    edited: Edited,
    options: Options,
    *,
    call: int | None,
    tensors: Names = None,
    gradient: bool = True,
) -> LayerView:
    """Return the view of a layer of the caller's choice, from one run.

    Raises:
        InputError: when the input has no places.
        RecordError: when the layer did not run, has no such call, or ran several times and none was chosen.
        SelectionError: when it returned several tensors with places, and none was named.
        AxesUnknown: when the axes of what it returned are not known.
        OptionError: when its output has no places, or the score does not depend on it.
    """
    found = followed(scorer.model, scorer.inputs, scorer.forward)
    of_input, path = (True, str(edited.layer)) if isinstance(edited, InputOf) else (False, edited)
    hold = Hold("hold", unchanged, wanted=lambda place: True)
    with contextlib.nullcontext() if gradient else torch.no_grad(), Probe(scorer.model, (), edits={edited: hold}):
        score = scorer({})
    calls = [site for site in found.calls if site.path == path]
    if call is None and len(calls) > 1:
        raise RecordError(f"layer {path!r} ran {len(calls)} times; say which: call=0 to {len(calls) - 1} (-1: last).")
    site = calls[call_index(path, len(calls), 0 if call is None else call)]
    held = {place[2]: tensor for place, tensor in hold.held.items() if place[:2] == (path, site.index)}
    if of_input:
        keys = {name: argument_key(name) for name in held}
        site = dataclasses.replace(site, outputs={n: site.inputs[key] for n, key in keys.items() if key in site.inputs})
    one = _asked_for(site, held, found, inputs_with_places(scorer, found, name), name, options, tensors)
    kept = held[one.place[2]]
    own = {(path, site.index, tensor): value for tensor, value in held.items()}
    slopes = dict(zip(held, _gradients(scorer, score, own), strict=True)) if gradient else {}
    slope = slopes.get(one.place[2])
    if gradient and slope is None:
        layer = f"layer {path!r}" if not one.place[2] else f"{path}/{one.place[2]}"
        seen = _read_instead(f"{path}/{tensor}" for tensor, other in slopes.items() if other is not None)
        raise OptionError(f"the score {scorer.target.label!r} does not depend on {layer}, call {site.index}.{seen}")
    return LayerView(scorer, score.detach(), one.place, one.grid, one.view, kept.detach(), slope, of_input)


def _asked_for(
    site: CallSite,
    held: dict[str, torch.Tensor],
    found: Followed,
    names: Sequence[str],
    name: str,
    options: Options,
    tensors: Names,
) -> Candidate:
    """The one tensor of a call that has places.

    Raises:
        OptionError: when none has.
    """
    path, every = site.path, ByTensor(held)
    among = [one for one in held if one in site.outputs] if tensors is None else pick(every, tensors, path, held)
    if options.reshape is not None or options.grid is not None:
        if len(among) > 1:
            refuse_several(path, among, "of which one can be laid out")
        for tensor in among:
            if options.reshape is not None:
                return reshaped(site, tensor, held[tensor], found, names, options.reshape)
            laid = (asked(site, tensor, site.axes(tensor), found, over, options.grid or ()) for over in names)
            if (one := next((one for one in laid if one is not None), None)) is not None:
                return one
    shapes = " and ".join(f"shape {tuple(held[tensor].shape)}" for tensor in among) or "no floating-point tensor"
    if options.grid is not None:
        raise OptionError(f"layer {path!r} returned {shapes}, which cannot be laid on grid={options.grid}.")
    with_places = named(site, among, found, names)
    if len(with_places) > 1:
        refuse_several(path, [one.place[2] for one in with_places], "with places")
    if with_places:
        return with_places[0]
    axes = " and ".join(described(site.outputs[tensor]) for tensor in among) or "none"
    raise OptionError(
        f"layer {path!r} returned {shapes}, which is not a grid of places over the input {names[0]!r} (axes: "
        f"{axes}): {name} needs units at several places of an image, a series or a text. layer=None finds a "
        "layer; lens.layers(x) lists the shapes; grid=(height, width) or reshape= say how tokens lie, and "
        f"Lens(model, axes={{{path!r}: ('batch', 'unit', 'height', 'width')}}) names axes."
    )


def choose_view(scorer: Scorer, name: str, options: Options, *, gradient: bool = True) -> LayerView:
    """Return the view of the last tensor with places on which the score depends, if possible at several of them.

    Without `gradient` a score that cannot be differentiated is accepted: the last tensor with places is taken then.

    Raises:
        InputError: when the input has no places.
        OptionError: when no layer has places, or the score depends on none.
    """
    if options.reshape is not None:
        raise OptionError("reshape= lays out the output of one layer; say which: layer=...")
    found = followed(scorer.model, scorer.inputs, scorer.forward)
    names, tried = inputs_with_places(scorer, found, name), list[TensorKey]()
    spare: dict[str, LayerView] = {}  # the score depends on it at one place only, or with a gradient of zero
    for tensors in candidates(found, names, options):
        for group in _from_the_last(tensors, _ENOUGH.get(scorer.model, GROUP)):
            hold = Hold("hold", unchanged, wanted={one.place for one in group}.__contains__)
            with Probe(scorer.model, (), edits=dict.fromkeys((one.place[0] for one in group), hold)):
                score = scorer({})
            kept = [one for one in group if one.place in hold.held]
            tried.extend(one.place for one in kept)
            if kept and not (gradient or score.requires_grad or _differentiable(scorer)):
                one = kept[-1]
                return LayerView(scorer, score, one.place, one.grid, one.view, hold.held[one.place].detach(), None)
            slopes = _gradients(scorer, score, {one.place: hold.held[one.place] for one in kept})
            for one, slope in reversed(list(zip(kept, slopes, strict=True))):
                if slope is None:
                    continue
                activation = hold.held[one.place].detach()
                view = LayerView(scorer, score.detach(), one.place, one.grid, one.view, activation, slope)
                counts = one.view(slope).ne(0).any(dim=1).flatten(1).sum(dim=1)
                if bool((counts > 1).any()):
                    _ENOUGH[scorer.model] = len(tensors) - tensors.index(one)
                    return view
                spare.setdefault("one" if bool(counts.any()) else "flat", view)
    for kind in ("one", "flat"):
        if kind in spare:
            return spare[kind]
    if tried:
        several = {place[0] for place in tried if place[2]}
        hold = Hold("hold", unchanged)
        with Probe(scorer.model, (), edits=dict.fromkeys(several, hold)):
            slopes = _gradients(scorer, scorer({}), hold.held) if several else ()
        seen = [f"{place[0]}/{place[2]}" for place, slope in zip(hold.held, slopes, strict=True) if slope is not None]
        raise OptionError(
            f"the score {scorer.target.label!r} depends on no layer with places ({len(tried)} tried), or cannot be "
            f"differentiated.{_read_instead(seen) or ' Try another target.'}"
        )
    unknown = "".join(f" Not followed: {why}." for why in list(found.unknown.values())[:3])
    raise OptionError(
        f"no layer of {type(scorer.model).__name__} returns units at more than one place of {names[0]!r}, which "
        f"{name} needs.{unknown} Lens(model, axes={{'blocks.3': ('batch', 'unit', 'height', 'width')}}) names the axes "
        "of a layer, grid= lays tokens out, and saliency(...) by a method of another family works on any model."
    )


def _read_instead(tensors: Iterable[str]) -> str:
    """Say which tensors without places the score reads of a layer, such as the last state of a recurrent one."""
    read = ", ".join(map(repr, tensors))
    return read and (
        f" It reads {read}, which has no places. A layer before it may have them (layer=None looks for one); "
        "saliency(...) by a method of another family, such as method='integrated_gradients', maps the input."
    )


def _from_the_last(tensors: list[Candidate], first: int) -> Iterator[list[Candidate]]:
    yield tensors[-first:]
    for end in range(len(tensors) - first, 0, -GROUP):
        yield tensors[max(0, end - GROUP) : end]


@dataclasses.dataclass(frozen=True)
class Hold(Change):
    """Holds wanted floating-point tensors as layers returned them, inside the graph.

    The model continues with a copy, so that an in-place operation after the layer cannot change it.
    """

    wanted: Callable[[TensorKey], bool] = lambda place: True
    held: dict[TensorKey, torch.Tensor] = dataclasses.field(default_factory=dict)

    def apply(self, output: Any, site: Site) -> Any:
        """Return what the model continues with."""
        new: dict[str, torch.Tensor] = {}
        owner = None if site.arguments else site.module
        for name, tensor in tensors_of(owner, output).items():
            place = (site.path, site.call, name)
            if place in self.held or not tensor.is_floating_point() or tensor.is_nested or not self.wanted(place):
                continue
            self.held[place] = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
            new[name] = self.held[place].clone()
        return exchanged(owner, output, new) if new else output


def unchanged(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    """Return the tensor."""
    return tensor


def _differentiable(scorer: Scorer) -> bool:
    """Whether the score can be differentiated by the input: a layer without gradient then has nothing to do with it."""
    with torch.enable_grad():
        return scorer(scorer.start()).requires_grad


def _gradients(
    scorer: Scorer, score: torch.Tensor, tensors: Mapping[TensorKey, torch.Tensor] | Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    if not score.requires_grad:
        return (None,) * len(tensors)
    run = scorer.run
    if run.key is not None:
        run = run._replace(key=(run.key, tuple(tensors)))
    with backward_pass(scorer.model):
        return slopes_by_sample(score, list(tensors.values()), run=run)[0]
