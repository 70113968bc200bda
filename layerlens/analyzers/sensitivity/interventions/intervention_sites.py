"""The values of a run that can be exchanged part by part, and how each is laid out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import GUESSES, seen, watch
from layerlens.analyzers.common.calls.call_sites import MEMORY, copied_rows, floating, grown, main_index, survey
from layerlens.axes.names import Axes
from layerlens.errors import LayerNotFound
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import Layers, Selection
from layerlens.model.trees import named_tensors

from .heads import Heads, find_heads
from .hook_points import Key, Kind, tapped
from .parts import Grid, grid

OTHER_POSITIONS = "has another number of positions than most layers"

AT_MOST = 64
"""Copies of the batch in one run, whatever the memory: more gain nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class Seam:
    """One value of a run: what a call of a layer returned, or was given.

    Attributes:
        key: where it is.
        name: of the layer, for names of parts: `path`, or `path #1` for the second call.
        axes: the batch axis of each of its floating-point tensors; None where there is none.
        grids: how each of them is cut into parts; None for those that stay as they are.
        main: which of them is the layer's value.
        alone: whether copies of the batch cannot be told apart in it.
        nbytes: of those tensors, for the batch.
    """

    key: Key
    name: str
    axes: tuple[int | None, ...]
    grids: tuple[Grid | None, ...]
    main: int
    alone: bool
    nbytes: int

    @property
    def grid(self) -> Grid:
        """That of the main tensor."""
        found = self.grids[self.main]
        assert found is not None
        return found


@dataclasses.dataclass(frozen=True)
class Found:
    """What clean runs showed.

    Attributes:
        seams: what can be exchanged, in order of execution.
        left_out: name of a layer that cannot -> why.
        output: what the model returned.
        copies: of the batch that fit into memory at once.
        stays: names of layers with an output beside the main one that is left as it is.
    """

    seams: list[Seam]
    left_out: dict[str, str]
    output: Any
    copies: int
    stays: list[str]


def find(
    model: nn.Module,
    inputs: Inputs,
    layers: Selection,
    by: str,
    heads: int | None,
    forward: Forward | None,
    seed: int,
) -> Found:
    """Run a borrowed model, alone and on its batch twice, and find what can be exchanged.

    Raises:
        LayerNotFound: when no layer that is selected can be measured.
        OptionError: when `heads` is no count.
    """
    if by == "head":
        spans = {(one.kind, one.path): one for one in find_heads(model, layers, heads)}
        outline = _values(model, inputs, list(spans), forward, seed)
        left_out = {
            one.label: "did not run" for place, one in spans.items() if place not in {k[:2] for k in outline.first}
        }
        named = {key: (*_labelled(spans[key[:2]], key[2]), None) for key in outline.first}
    else:
        clean = survey(model, inputs, layers, forward, seed=seed)
        keys: dict[Key, Any] = {("output", site.path, site.index): (site.name, (0, 0), site) for site in clean.sites}
        outline = _values(model, inputs, [key[:2] for key in keys], forward, seed)
        left_out, named = dict(clean.left_out), {key: keys[key] for key in outline.first if key in keys}
    seams, stays = [], []
    for key, (name, count, site) in named.items():
        seam = outline.seam(key, name, by, count, site)
        if isinstance(seam, str):
            left_out[name] = seam
            continue
        seams.append(seam)
        stays += [name] * (by != "layer" and isinstance(outline.layers[key[1]], nn.RNNBase) and None in seam.grids)
    if by == "layer_position" and seams:
        wanted = Counter(seam.grid.counts for seam in seams).most_common(1)[0][0]
        left_out |= {
            seam.name: f"has other positions than most layers, {wanted}" for seam in seams if seam.grid.counts != wanted
        }
        seams = [seam for seam in seams if seam.grid.counts == wanted]
    if not seams:
        reasons = "; ".join(f"{name} {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"none of the selected layers can be measured by {by}: {reasons}.")
    copies = max(1, min(AT_MOST, MEMORY // max(1, outline.nbytes)))
    return Found(seams, left_out, outline.output, copies, stays)


def _labelled(one: Heads, index: int) -> tuple[str, tuple[int, int]]:
    return (one.label or "(model)") + (f" #{index}" if index else ""), (one.count, one.width)


@dataclasses.dataclass
class _Form:
    """The floating-point tensors of a value."""

    shapes: list[tuple[int, ...]]
    ids: list[int]
    nbytes: int
    main: int


@dataclasses.dataclass
class _Outline:
    """What two runs showed, on the batch and on two copies of it."""

    layers: Layers
    batch: int
    first: dict[Key, _Form]
    second: dict[Key, _Form]
    equal: dict[Key, bool]
    names: dict[tuple[str, int], Axes | None]
    output: Any
    nbytes: int

    def seam(self, key: Key, name: str, by: str, heads: tuple[int, int], site: Any) -> Seam | str:
        """The seam of a value, or why there is none."""
        form, wider = self.first[key], self.second.get(key)
        if not form.shapes:
            return "holds no floating-point tensor"
        if wider is None or len(wider.shapes) != len(form.shapes):
            return "did not run again when the batch was doubled: the route of this model changes"
        axes = tuple(grown(was, now) for was, now in zip(form.shapes, wider.shapes, strict=True))
        main = form.shapes[form.main]
        names = self._names(key, len(main), axes[form.main])
        parts = grid(by, main, names, heads)
        if isinstance(parts, str):
            return parts
        grids = [
            parts if one == form.ids[form.main] or not parts.axes else self._state(key, shape, main, parts)
            for one, shape in zip(form.ids, form.shapes, strict=True)
        ]
        alone = None in axes or not self.equal.get(key, False)
        return Seam(key, name, axes, tuple(grids), form.main, alone, form.nbytes)

    def _names(self, key: Key, ndim: int, batch: int | None) -> Axes:
        """Names of the axes of a main tensor, with the batch where it was seen to be."""
        if key[0] == "output":
            known = self.names.get((key[1], key[2]))
        else:  # what goes into a projection
            convolution = isinstance(self.layers[key[1]], nn.modules.conv._ConvNd)
            known = None if convolution else ("batch", *("token",) * (ndim - 2), "feature")
        names = known if known is not None and len(known) == ndim else GUESSES.get(ndim)
        if names is None:
            names = ("batch", *("place",) * (ndim - 2), "feature")
        rest = [name for name in names if name != "batch"] if "batch" in names else list(names)
        if batch is None:
            return tuple("place" if name == "batch" else name for name in names)
        rest = rest[-(ndim - 1) :] if ndim > 1 else []
        return (*rest[:batch], "batch", *rest[batch:])

    def _state(self, key: Key, shape: tuple[int, ...], main: tuple[int, ...], parts: Grid) -> Grid | None:
        """How a tensor beside the main one is cut: states of recurrent layers by unit; others stay as they are."""
        recurrent = isinstance(self.layers[key[1]], nn.RNNBase)
        if recurrent and parts.axes == (len(main) - 1,) and shape[-1] == main[-1]:
            return dataclasses.replace(parts, axes=(len(shape) - 1,))
        return None


def _values(
    model: nn.Module,
    inputs: Inputs,
    places: list[tuple[Kind, str]],
    forward: Forward | None,
    seed: int,
) -> _Outline:
    first, second, equal = dict[Key, _Form](), dict[Key, _Form](), dict[Key, bool]()

    def look(into: dict[Key, _Form]) -> Callable[[Key, Any], Any]:
        def note(key: Key, value: Any) -> Any:
            tensors = floating(value)
            nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            shapes, ids = [tuple(tensor.shape) for tensor in tensors], [id(tensor) for tensor in tensors]
            into[key] = _Form(shapes, ids, nbytes, main_index(value) if tensors else 0)
            if into is second and key in first:
                equal[key] = all(
                    _halves_equal(tensor, grown(was, tuple(tensor.shape)))
                    for tensor, was in zip(tensors, first[key].shapes, strict=False)
                )
            return value

        return note

    def once(copies: int, into: dict[Key, _Form]) -> Any:
        torch.manual_seed(seed)
        with tapped(model, places, look(into)) as running:
            run = inputs.rows(copied_rows(inputs.batch, copies)) if copies > 1 else inputs
            return run.run(model, forward if running is None else running.around(forward))

    with watch(model) as record:
        output = once(1, first)
    calls = seen(model, record)
    once(2, second)
    nbytes = sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(output))
    nbytes += sum(4 * torch.Size(call.shape).numel() for call in calls if call.shape is not None)
    names = {(call.path, call.index): call.axes for call in calls}
    return _Outline(Layers(model), inputs.batch, first, second, equal, names, output, nbytes)


def _halves_equal(tensor: torch.Tensor, axis: int | None) -> bool:
    """Whether the copies of the batch lie one after the other along an axis."""
    if axis is None:
        return False
    first, second = tensor.chunk(2, dim=axis)
    return tolerant(first, second)


def tolerant(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal up to what another size of the batch may make of rounding."""
    scale = float(first.abs().max()) if first.numel() else 0.0
    if not scale < float("inf"):
        return bool(torch.equal(first.nan_to_num(), second.nan_to_num()))
    return bool(((first - second).abs() <= min(0.05, torch.finfo(first.dtype).eps ** 0.5) * scale).all())
