"""The values of a run that can be replaced part by part, and their layout."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from layerlens.analyzers.common.calls.blocks import usual_layers
from layerlens.analyzers.common.calls.measured_calls import (
    MEMORY,
    MeasuredCall,
    copied_rows,
    doubled,
    floating,
    grown_axis,
    main_index,
    survey,
)
from layerlens.analyzers.common.features.basis import Basis
from layerlens.analyzers.common.features.basis_site import BasisSite, Sites, find_basis_sites, split_bases
from layerlens.analyzers.common.parts.grid import NO_POSITIONS, Grid, grid
from layerlens.analyzers.common.parts.heads import Heads, find_heads
from layerlens.analyzers.common.parts.hook_points import Key, Kind, Place, hooked
from layerlens.analyzers.common.samples import Known, or_none, warn_of_influence
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.axes.batch_axis import check_batch_axis
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.axes.layout import roles
from layerlens.axes.provenance.axis import Axes
from layerlens.errors import LayerNotFound, OptionError
from layerlens.model.borrowed import seed_torch
from layerlens.model.layers import Layers
from layerlens.model.tensors import choices
from layerlens.model.trees import named_tensors

from ..model_run import ModelRun

OTHER_POSITIONS = "has another number of positions than most layers"

FEATURES = ("layer", "channel", "unit")
"""Parts that a basis has: its features, and with `"unit"` its features at each place."""

PLACED = ("position", "layer_position")
"""Parts that lie along places."""

MOST_COPIES = 64
"""Largest number of copies of the batch in one run; more are no faster."""


@dataclasses.dataclass(frozen=True, eq=False)
class InterventionSite:
    """One value of a run: what a call of a layer returned, or was given.

    Attributes:
        key: kind, layer and call.
        name: name of the layer, for names of parts: `path`, or `path #1` for the second call.
        axes: batch axis of each of its floating-point tensors, or None.
        grids: how each tensor is cut into parts; None for tensors that stay unchanged.
        main: index of the tensor that is the layer's value.
        unsplittable: whether the copies of a batch cannot be separated in it.
        nbytes: bytes of those tensors, for the batch.
        silent: parts of the codes of a basis that are zero in all samples, `(parts,)`; None for other values.
    """

    key: Key
    name: str
    axes: tuple[int | None, ...]
    grids: tuple[Grid | None, ...]
    main: int
    unsplittable: bool
    nbytes: int
    silent: torch.Tensor | None = None

    @property
    def grid(self) -> Grid:
        """The grid of the main tensor."""
        grid = self.grids[self.main]
        assert grid is not None
        return grid

    @property
    def basis(self) -> Basis | None:
        """The basis whose codes, or error, it is."""
        return self.key[1].basis if isinstance(self.key[1], BasisSite) else None


@dataclasses.dataclass(frozen=True)
class SiteSurvey:
    """What clean runs showed.

    Attributes:
        sites: values that can be replaced, in order of execution.
        left_out: name of a layer whose value cannot be replaced -> why.
        output: output of the model.
        copies: number of copies of the batch that fit into memory at once.
    """

    sites: list[InterventionSite]
    left_out: dict[str, str]
    output: Any
    copies: int


def find_intervention_sites(run: ModelRun, layers: Sites, by: str, heads: int | None) -> SiteSurvey:
    """Run the model on its batch, and on two copies of it, and find the values that can be replaced.

    Raises:
        LayerNotFound: when no selected layer can be measured.
        SelectionError: when the layer of a basis, or its call, is not the only one.
        AxesUnknown: when the units of a basis are unknown.
        OptionError: when `heads` is not a count, or a basis is given with other parts than its features.
    """
    bases, layers = split_bases(layers)
    if bases and by not in FEATURES:
        raise OptionError(
            f"by={by!r} does not fit {bases[0]!r}: the parts of a basis are its features (leave by= out), or its "
            "features at each place (by='unit')."
        )
    places: list[tuple[Kind, Place]] = []
    for one in find_basis_sites(run.model, run.inputs, bases, run.forward):
        places += [("codes", one), ("error", one)]
    if by == "head":
        known = followed(run.model, run.inputs, run.forward)
        found = find_heads(run.model, known, layers, heads)
        attentions: dict[tuple[Kind, Place], Heads] = {(one.kind, one.place): one for one in found}
        outline = _outline(run, list(attentions))
        ran = {key[:2] for key in outline.first}
        left_out = {one.label: "did not run" for place, one in attentions.items() if place not in ran}
        named = {key: _name_and_heads(attentions[key[:2]], key[2]) for key in outline.first}
    elif bases and layers == ():
        outline, left_out = _outline(run, places), {}
        check_batch_axis(run.model, run.inputs, run.forward, outline.output)
        named = {key: (_of_basis(key), 0) for key in outline.first}
    else:
        if layers is None:
            layers = usual_layers(run.model, run.inputs, run.forward, run.seed)
        apart = by not in ("layer", "channel")
        clean = survey(run.model, run.inputs, layers, run.forward, seed=run.seed, apart=apart)
        outputs: dict[Key, MeasuredCall] = {("output", site.key, site.index): site for site in clean.sites}
        outline = _outline(run, [*(key[:2] for key in outputs), *places])
        outline.sites.update(outputs)
        left_out = dict(clean.left_out)
        named = {
            key: (outputs[key].name if key in outputs else _of_basis(key), 0)
            for key in outline.first
            if key in outputs or isinstance(key[1], BasisSite)
        }
    sites: list[InterventionSite] = []
    for key, (name, head_sizes) in named.items():
        site = outline.site(key, name, by, head_sizes)
        if isinstance(site, str):
            left_out[name] = site
            continue
        sites.append(site)
    if by == "layer_position" and sites:
        wanted = Counter(site.grid.counts for site in sites).most_common(1)[0][0]
        left_out |= {
            site.name: f"has other positions than most layers, {wanted}" for site in sites if site.grid.counts != wanted
        }
        sites = [site for site in sites if site.grid.counts == wanted]
    if not sites:
        reasons = "; ".join(f"{name} {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"none of the selected layers can be measured by {by}: {reasons}.")
    copies = max(1, min(MOST_COPIES, MEMORY // max(1, outline.nbytes))) if outline.together else 1
    return SiteSurvey(sites, left_out, outline.output, copies)


def _of_basis(key: Key) -> str:
    """Return the name of the layer of a basis."""
    assert isinstance(key[1], BasisSite)
    return key[1].name


def _name_and_heads(one: Heads, index: int) -> tuple[str, int]:
    """Return the name of a call of an attention, and the number of its heads."""
    return (one.label or "(model)") + (f" #{index}" if index else ""), one.count


@dataclasses.dataclass
class _Form:
    """The floating-point tensors of a value."""

    shapes: list[tuple[int, ...]]
    ids: list[int]
    nbytes: int
    main: int
    codes: torch.Tensor | None = None


@dataclasses.dataclass
class _Outline:
    """What two runs showed, on the batch and on two copies of it."""

    layers: Layers
    batch: int
    first: dict[Key, _Form]
    second: dict[Key, _Form]
    equal: dict[Key, bool]
    followed: Followed
    output: Any
    nbytes: int
    together: bool
    sites: dict[Key, MeasuredCall] = dataclasses.field(default_factory=dict)

    def site(self, key: Key, name: str, by: str, heads: int) -> InterventionSite | str:
        """Return the site of a value, or why there is none."""
        form, wider = self.first[key], self.second.get(key)
        if not form.shapes:
            return "holds no floating-point tensor"
        if wider is None or len(wider.shapes) != len(form.shapes):
            return "did not run when the batch was doubled: the route of this model changes"
        axes = tuple(grown_axis(was, now) for was, now in zip(form.shapes, wider.shapes, strict=True))
        site = self.sites.get(key)
        place = form.main if site is None else site.main
        parts = self._grid(key, by, form.shapes[place], axes[place], place, heads)
        if isinstance(parts, str):
            return parts
        grids: list[Grid | None] = []
        for one, (tensor, shape) in enumerate(zip(form.ids, form.shapes, strict=True)):
            other: Grid | str | None = parts
            if tensor != form.ids[place] and parts.axes:
                other = self._grid(key, by, shape, axes[one], one) if by == "channel" else None
                if isinstance(other, str) or other is None or other.counts != parts.counts:
                    if site is None or one in site.read:
                        return _other_units(key[1], site)
                    other = None  # the model does not read it
            assert not isinstance(other, str)
            grids.append(other)
        unsplittable = None in axes or not self.equal.get(key, False)
        silent = None if form.codes is None else parts.sums((form.codes != 0).double()) == 0
        return InterventionSite(key, name, axes, tuple(grids), place, unsplittable, form.nbytes, silent)

    def _grid(
        self, key: Key, by: str, shape: tuple[int, ...], batch: int | None, place: int, heads: int = 0
    ) -> Grid | str:
        """Return the parts of a tensor, whose axis `batch` grows with the batch; or why it has none."""
        if key[0] in ("codes", "error"):
            return _basis_grid(key[0], by, shape)
        found = self._roles(key, shape, place)
        if by == "layer" or isinstance(found, str):
            return grid(by, shape, found, heads)
        unknown = [one for one, kind in zip(shape, found, strict=True) if kind == "unknown" and one > 1]
        if unknown and (by in PLACED or "unit" not in found):
            return "has axes that are not known (name them: Lens(model, axes=...); lens.layers(x) shows why)"
        if batch is not None and "batch" not in found and found[batch] in ("extra", "none"):
            found[batch] = "batch"  # made for as many samples as there are, of no input
        parts = grid(by, shape, found, heads)
        if not isinstance(parts, str) and batch in parts.axes:
            return (
                f"holds places along axis {batch}, which grows with the first axis of the input: that is not the "
                "batch. Give x with the batch first and forward=, such as lambda model, x: model(x.transpose(0, 1))"
            )
        return parts

    def _roles(self, key: Key, shape: tuple[int, ...], place: int) -> list[str] | str:
        """Return what the followed axes of a tensor count; or why that is unknown."""
        if key[0] == "attention":
            return ["batch"] + ["place"] * (len(shape) - 2) + ["unit"]
        axes = self._axes(key, shape, place)
        return axes if isinstance(axes, str) else list(roles(axes))

    def _axes(self, key: Key, shape: tuple[int, ...], place: int) -> Axes | str:
        """Return the axes of a tensor of a call, by its name; or why they are unknown."""
        kind, path, index = key
        site = self.sites.get(key)
        assert not isinstance(path, BasisSite)
        path, tensor = (path, "") if site is None else (site.path, site.tensor)
        if kind == "input":
            path, _, tensor = path.rpartition("/")
        calls = [one for one in self.followed.calls if one.path == path]
        if index >= len(calls):
            return "took another route when its axes were followed"
        among = calls[index].inputs if kind == "input" else calls[index].outputs
        name = tensor if tensor in among or site is None else site.names[place]
        if name not in among or len(among[name]) != len(shape):
            return "has a tensor that was not followed"
        return among[name]


def _basis_grid(kind: Kind, by: str, shape: tuple[int, ...]) -> Grid | str:
    """Return the parts of codes `(batch, *places, feature)`, or of an error, of a basis."""
    roles = ["batch", *["place"] * (len(shape) - 2), "unit"]
    if kind == "codes":
        return grid("unit" if by == "unit" else "channel", shape, roles)
    places = grid("position", shape, roles) if by == "unit" else NO_POSITIONS
    return Grid() if isinstance(places, str) else places


def _other_units(layer: Place, site: MeasuredCall | None) -> str:
    """Say why a layer that returned several tensors has no units."""
    named = choices(str(layer), () if site is None else [site.names[one] for one in site.read])
    return f"returned several tensors that the model reads, not all with the same units; name one: {named}"


def _outline(run: ModelRun, places: Sequence[tuple[Kind, Place]]) -> _Outline:
    """Run on the batch, and on two copies of it, and note the values at some places."""
    model, inputs = run.model, run.inputs
    first, second, equal = dict[Key, _Form](), dict[Key, _Form](), dict[Key, bool]()

    def noting(into: dict[Key, _Form]) -> Callable[[Key, Any], Any]:
        def note(key: Key, value: Any) -> Any:
            tensors = floating(value)
            nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            shapes, ids = [tuple(tensor.shape) for tensor in tensors], [id(tensor) for tensor in tensors]
            codes = value if key[0] == "codes" and into is first else None
            into[key] = _Form(shapes, ids, nbytes, main_index(value) if tensors else 0, codes)
            if into is second and key in first:
                equal[key] = all(
                    _halves_equal(tensor, grown_axis(was, tuple(tensor.shape)))
                    for tensor, was in zip(tensors, first[key].shapes, strict=False)
                )
            return value

        return note

    def once(copies: int, into: dict[Key, _Form]) -> Any:
        seed_torch(run.seed)
        with hooked(model, places, noting(into)) as running:
            rows = inputs.rows(copied_rows(inputs.batch, copies)) if copies > 1 else inputs
            return rows.run(model, run.forward if running is None else running.around(run.forward))

    known = followed(model, inputs, run.forward)
    output = once(1, first)
    together = or_none(lambda: (once(2, second),)) is not None
    if not together:  # the model takes a batch of one size alone, which is then the first axis
        warn_of_influence(inputs.batch, run=Known(model, inputs, run.forward))
        second = {
            key: dataclasses.replace(form, shapes=[doubled(shape, inputs.batch) for shape in form.shapes])
            for key, form in first.items()
        }
    nbytes = sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(output))
    every = (axes for site in known.calls for axes in site.outputs.values())
    nbytes += sum(4 * math.prod(axis.size for axis in axes) for axes in every)
    nbytes += sum(form.nbytes for key, form in first.items() if isinstance(key[1], BasisSite))
    return _Outline(Layers(model), inputs.batch, first, second, equal, known, output, nbytes, together)


def _halves_equal(tensor: torch.Tensor, axis: int | None) -> bool:
    """Return whether the copies of the batch follow each other along an axis."""
    if axis is None:
        return False
    first, second = tensor.chunk(2, dim=axis)
    return nearly_equal(first, second)
