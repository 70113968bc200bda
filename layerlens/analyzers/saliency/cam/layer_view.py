"""Where a class activation map is made: the layer, what it returned, and the gradient of the score there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import Seen, call_index, seen, watch
from layerlens.analyzers.common.scorer import Scorer, backward_pass
from layerlens.errors import OptionError, RecordError
from layerlens.model.layers import LayerPath, Layers
from layerlens.model.trees import map_tensors
from layerlens.probes.edits import Change, Site
from layerlens.probes.probe import Probe

from .grid import Grid
from .input_extent import Extent
from .input_of_layer import belongs, sources
from .layer_choice import Candidate, Options, candidates_over, grid_at, places_of, refuse_without_places

Place = tuple[LayerPath, int]

GROUP = 8
"""Layers whose gradient is taken in one run when the layer is chosen automatically."""


@dataclasses.dataclass(frozen=True)
class LayerView:
    """A layer in one run.

    Attributes:
        scorer: scorer of the run.
        score: score of each sample, `(batch,)`.
        where: the call.
        grid: layout of its output.
        extent: places that the map covers.
        activation: what the layer returned, before any operation that later writes into it.
        gradient: gradient of the score; None where it was not asked for, or there is none.
    """

    scorer: Scorer
    score: torch.Tensor
    where: Seen
    grid: Grid
    extent: Extent
    activation: torch.Tensor
    gradient: torch.Tensor | None

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
        return self.grid.view(tensor.detach()).to(torch.promote_types(tensor.dtype, torch.float32))


def view_of(
    scorer: Scorer, name: str, path: LayerPath, options: Options, *, call: int | None, gradient: bool = True
) -> LayerView:
    """Return the view of a layer of the caller's choice, from one run.

    Raises:
        InputError: when the input has no places.
        RecordError: when the layer did not run, has no such call, or ran several times and none was chosen.
        OptionError: when its output has no places, or the score does not depend on it.
    """
    hold = _Hold("hold", _unchanged)
    with contextlib.nullcontext() if gradient else torch.no_grad(), watch(scorer.model, {path: hold}) as shapes:
        score, held = scorer({}), hold.held
    every = seen(scorer.model, shapes)
    calls = [one for one in every if one.path == path]
    if call is None and len(calls) > 1:
        raise RecordError(f"layer {path!r} ran {len(calls)} times; say which: call=0 to {len(calls) - 1} (-1: last).")
    where = calls[call_index(path, len(calls), 0 if call is None else call)]
    over = places_of(scorer, every, name)
    place, origins = (path, where.index), sources(scorer, over)
    over = [extent for extent in over if belongs(where, extent, over, origins)] or over
    for extent in over:
        grid = grid_at(where, extent, every, scorer, options, held.get(place))
        if grid is None or place not in held:
            continue
        slope = _gradients(scorer.model, score, [held[place]])[0] if gradient else None
        if gradient and slope is None:
            raise OptionError(
                f"the score {scorer.target.label!r} does not depend on layer {path!r}, call {where.index}."
            )
        return LayerView(scorer, score.detach(), where, grid, extent, held[place].detach(), slope)
    returned = "no tensor" if where.shape is None else f"shape {where.shape}"
    if options.grid is not None:
        raise OptionError(f"layer {path!r} returned {returned}, which cannot be laid on grid={options.grid}.")
    size = " x ".join(map(str, over[0].size))
    raise OptionError(
        f"layer {path!r} returned {returned}, which is not a grid of places over the {size} of input {over[0].name!r}: "
        f"{name} needs (batch, channel, *places), or (batch, token, feature) whose tokens, but for leading class "
        "tokens, are patches of the image, steps of the series or tokens of the text. layer=None finds one; "
        "lens.layers(x) lists the shapes; grid=(height, width) or reshape= say how tokens lie."
    )


def choose_view(scorer: Scorer, name: str, options: Options, *, gradient: bool = True) -> LayerView:
    """Return the view of the last layer with places on which the score depends, if possible at several of them.

    Without `gradient` a score that cannot be differentiated is accepted: the last layer with places is taken then.

    Raises:
        InputError: when the input has no places.
        OptionError: when no layer has places, or the score depends on none.
    """
    if options.reshape is not None:
        raise OptionError("reshape= lays out the output of one layer; say which: layer=...")
    hold = _Hold("hold", _unchanged, wanted=_Late(scorer.model))
    with watch(scorer.model, {_is_not_root: hold}) as shapes:
        score, held = scorer({}), hold.held
    every = seen(scorer.model, shapes)
    over = places_of(scorer, every, name)
    extent, candidates, origins = over[0], list[Candidate](), sources(scorer, over)
    for extent in over:
        own = [one for one in every if belongs(one, extent, over, origins)]
        candidates = candidates_over(scorer, own, every, extent, options)
        if candidates:
            break
    if not candidates:
        if scorer.leaves[over[0].name].value.ndim == 2:
            refuse_without_places(scorer, name)
        raise OptionError(
            f"no layer of {type(scorer.model).__name__} returns (batch, channel, *places), steps, or patch tokens with "
            f"more than one place, which {name} needs; grid= lays tokens out, and saliency(...) by a method of another "
            "family works on any model."
        )
    spare: dict[str, LayerView] = {}  # the score depends on it at one place only, or with a gradient of zero
    for group in _groups(candidates, held):
        places = [(where.path, where.index) for where, _ in group]
        if not held.keys() >= set(places):
            hold = _Hold("hold", _unchanged, wanted=set(places).__contains__)
            with Probe(scorer.model, (), edits={path: hold for path, _ in places}):
                score, held = scorer({}), hold.held
        if not (gradient or score.requires_grad or _differentiable(scorer)):
            where, grid = group[-1]
            return LayerView(scorer, score, where, grid, extent, held[places[-1]].detach(), None)
        slopes = _gradients(scorer.model, score, [held[place] for place in places])
        for (where, grid), place, slope in reversed(list(zip(group, places, slopes, strict=True))):
            if slope is None:
                continue
            view = LayerView(scorer, score.detach(), where, grid, extent, held[place].detach(), slope)
            counts = grid.view(slope).ne(0).any(dim=1).flatten(1).sum(dim=1)
            if bool((counts > 1).any()):
                return view
            spare.setdefault("one" if bool(counts.any()) else "flat", view)
    for kind in ("one", "flat"):
        if kind in spare:
            return spare[kind]
    raise OptionError(
        f"the score {scorer.target.label!r} depends on no layer with places ({len(candidates)} tried), or cannot be "
        "differentiated. Try another target."
    )


def _groups(candidates: list[Candidate], held: Mapping[Place, torch.Tensor]) -> Iterator[list[Candidate]]:
    """Group the candidates from the last on: those that were held already, then `GROUP` at a time.

    Yields:
        Some candidates.
    """
    start = len(candidates)
    while start and (candidates[start - 1][0].path, candidates[start - 1][0].index) in held:
        start -= 1
    if start < len(candidates):
        yield candidates[start:]
    for end in range(start, 0, -GROUP):
        yield candidates[max(0, end - GROUP) : end]


@dataclasses.dataclass(frozen=True)
class _Hold(Change):
    """Holds the first floating-point tensor of wanted calls as the layer returned it, inside the graph.

    The model continues with a copy, so that an in-place operation after the layer cannot change it.
    """

    wanted: Callable[[Place], bool] = lambda place: True
    held: dict[Place, torch.Tensor] = dataclasses.field(default_factory=dict)

    def apply(self, output: Any, site: Site) -> Any:
        """Return what the model continues with."""
        place = (site.path, site.call)
        return map_tensors(output, lambda tensor: self._hold(place, tensor)) if self.wanted(place) else output

    def _hold(self, place: Place, tensor: torch.Tensor) -> torch.Tensor:
        if place in self.held or not tensor.is_floating_point():
            return tensor
        self.held[place] = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
        return self.held[place].clone()


class _Late:
    """Whether a call is one of the last: seen, as it returns, by how many innermost layers have not returned yet.

    A guess, which spares a second run where it is right. A model that runs its layers again and again is not followed.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = Layers(model)
        self._left = {path for path in layers if not next(layers[path].children(), None)}
        self._few = max(GROUP, len(self._left) // 10)
        self._late = 0

    def __call__(self, place: Place) -> bool:
        self._left.discard(place[0])
        late = len(self._left) <= self._few and self._late < 2 * self._few
        self._late += late
        return late


def _is_not_root(path: LayerPath, module: nn.Module) -> bool:
    return bool(path)


def _unchanged(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    return tensor


def _differentiable(scorer: Scorer) -> bool:
    """Whether the score can be differentiated by the input: a layer without gradient then has nothing to do with it."""
    with torch.enable_grad():
        return scorer(scorer.start()).requires_grad


def _gradients(model: nn.Module, score: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    if not score.requires_grad:
        return (None,) * len(tensors)
    with backward_pass(model):
        return torch.autograd.grad(score.sum(), tensors, allow_unused=True)
