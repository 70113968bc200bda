"""The calls at which layers are measured: what they return, and its batch axis."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.axes.batch_axis import check_batch_axis, refuse_lists
from layerlens.axes.followed import run_key
from layerlens.errors import LayerNotFound
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import seed_torch
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.selection import Matches
from layerlens.model.tensors import choices, documented, tensor_path
from layerlens.model.trees import describe, named_tensors, version
from layerlens.probes.made_edits import Edit
from layerlens.probes.probe import Probe
from layerlens.targets.outputs import MAIN_OUTPUTS

from ..samples import Known, or_none, warn_of_influence
from .used_tensors import used_tensors

Shape = tuple[int, ...]
Shapes = dict[tuple[LayerPath, int], dict[str, Shape]]
"""Path and index of a call -> the shapes of the floating-point tensors that it returned, by position."""

_OF_TWO: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, Shapes]] = weakref.WeakKeyDictionary()
"""What `survey` found last of a model in the run on its batch twice."""

_BY_SAMPLE = "returned a list with a tensor for each sample; name what has the samples as rows: {}"

MEMORY = 2**30
"""Bytes of layer outputs that one run may make when the number of copies is chosen automatically."""


@dataclasses.dataclass(frozen=True)
class MeasuredCall:
    """One call of one layer, as it is measured: which of its tensors count, and where their samples lie.

    Attributes:
        path: path of the layer.
        index: index of the call.
        axes: batch axis of each floating-point tensor that it returned; None where there is none.
        main: index of the tensor among these that is the layer's value.
        single: whether each of them holds one number per sample.
        names: name of each; `""` if it is the only one.
        read: indices of those that the model reads.
        tensor: name of the tensor, if it is one of several that are measured apart.
    """

    path: LayerPath
    index: int
    axes: tuple[int | None, ...]
    main: int
    single: bool
    names: tuple[str, ...] = ("",)
    read: tuple[int, ...] = (0,)
    tensor: str = ""

    @property
    def name(self) -> str:
        """`path`, `path #1` for the second call, `path/tensor` for one of several tensors."""
        return tensor_path((self.path or "(model)") + (f" #{self.index}" if self.index else ""), self.tensor)

    @property
    def key(self) -> str:
        """The layer, and the tensor if it is one of several, as a selection."""
        return tensor_path(self.path, self.tensor)

    def apart(self) -> list[MeasuredCall]:
        """Return a measured call for each tensor that the model reads, if there are several."""
        if len(self.read) < 2:
            return [self]
        return [
            dataclasses.replace(self, axes=(self.axes[one],), main=0, names=("",), read=(0,), tensor=self.names[one])
            for one in self.read
        ]


@dataclasses.dataclass(frozen=True)
class Survey:
    """The result of a run of the model as it is.

    Attributes:
        sites: what can be measured, in order of execution.
        left_out: name of a layer or call that cannot -> why.
        output: what the model returned.
        nbytes: bytes of the outputs of the sites.
        together: whether the model runs on several copies of the batch.
    """

    sites: list[MeasuredCall]
    left_out: dict[str, str]
    output: Any
    nbytes: int
    together: bool = True

    def copies(self, wanted: int) -> int:
        """Return how many copies of the batch to run at once."""
        if not self.together:
            return 1
        return max(1, min(wanted, MEMORY // max(1, 2 * self.nbytes)))


class _Seen:
    """A call as its hook saw it; it holds the tensor itself when duplicates are looked for."""

    def __init__(self, output: object, hold: bool) -> None:
        named = {name: tensor for name, tensor in named_tensors(output) if tensor.is_floating_point()}
        tensors = list(named.values())
        self.by_position = {name: tuple(tensor.shape) for name, tensor in named.items()}
        self.shapes = list(self.by_position.values())
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.main = main_index(output)
        self.what = describe(output)
        self.positions = list(named)
        self.held = tensors if hold else []
        self.keys = [(id(tensor), version(tensor)) for tensor in self.held]


def survey(
    model: nn.Module,
    inputs: Inputs,
    layers: Selection,
    forward: Forward | None,
    *,
    seed: int,
    apart: bool = False,
) -> Survey:
    """Run a borrowed model, as it is and on its batch twice, and find the calls that can be measured.

    For `layers=None` each distinct activation is listed once, under the first layer that returned it: a container that
    returns the output of its last child, an identity and dropout in eval mode are not. The second run shows the batch
    axis of every output: the one that grew. Of a model that takes a batch of one size alone it is the first.

    Args:
        model: borrowed model.
        inputs: its input.
        layers: which layers, or tensors of them; each tensor that is named is a site.
        forward: function to call instead of the model.
        seed: seed of the model's own random numbers.
        apart: whether each of several tensors that the model reads is a site.

    Raises:
        LayerNotFound: when none of the selected layers ran, or none can be measured.
        InputError: when the input lacks its batch axis, or holds samples in a list.
    """
    selected = Layers(model).select(layers, calls=True, tensors=True)
    refuse_lists(model, inputs, forward)
    seed_torch(seed)
    with Probe(model, selected, reduce=lambda output: _Seen(output, hold=layers is None)) as record:
        output = inputs.run(model, forward)
    check_batch_axis(model, inputs, forward, output)
    again = _shapes_of_two(model, inputs, selected, forward, seed, record.order)
    if again is None:
        warn_of_influence(inputs.batch, run=Known(model, inputs, forward))
    wider = again or {
        (call.layer, call.index): {
            name: doubled(shape, inputs.batch) for name, shape in call.output.by_position.items()
        }
        for call in record.order
    }
    several = [call.layer for call in record.order if len(call.output.shapes) > 1]
    used = used_tensors(model, inputs, forward, several) if several else {}
    sites: list[MeasuredCall] = []
    left_out = {path or "(model)": "did not run" for path in record.unrun if _has_forward(model, path)}
    known: set[tuple[int, int]] = set()
    nbytes = 0
    for call in record.order:
        seen: _Seen = call.output
        site = MeasuredCall(call.layer, call.index, (), seen.main, False)
        now = wider.get((call.layer, call.index), {})
        grown = {_holder(name) for name in now.keys() - seen.by_position}  # lists with a tensor per sample
        whole = [_holder(name) not in grown for name in seen.positions]
        keys = set(itertools.compress(seen.keys, whole))
        if keys and keys <= known:
            continue
        known |= keys
        if not seen.shapes:
            left_out[site.name] = f"returned no floating-point tensor ({seen.what})"
        elif not seen.by_position.keys() <= now.keys():
            left_out[site.name] = "did not run again when the batch was doubled: the route of this model changes"
        else:
            axes = tuple(grown_axis(was, now[name]) for name, was in seen.by_position.items())
            single = all(_count(shape) <= (1 if axis is None else inputs.batch)
                         for shape, axis in zip(seen.shapes, axes, strict=True))  # fmt: skip
            site = dataclasses.replace(site, axes=axes, single=single)
            site = _named(site, selected, model.get_submodule(call.layer), seen.positions, used, whole)
            if not all(all(whole[: one + 1]) for one in site.read):
                rows = list(itertools.compress(site.names, whole)) or ["a layer before it"]
                left_out[site.name] = _BY_SAMPLE.format(choices(call.layer, rows) if any(whole) else rows[0])
                continue
            sites += site.apart() if apart or selected.tensors[call.layer] is not None else [site]
            nbytes += seen.nbytes
    if not sites:
        reasons = "; ".join(f"{name} {why}" for name, why in list(left_out.items())[:4])
        raise LayerNotFound(f"none of the {len(selected)} selected layer(s) can be measured: {reasons}.")
    return Survey(sites, left_out, output, nbytes, again is not None)


def _named(
    site: MeasuredCall,
    selected: Matches,
    module: nn.Module,
    positions: Sequence[str],
    used: Mapping[tuple[LayerPath, int], list[str]],
    whole: Sequence[bool],
) -> MeasuredCall:
    """The site with the names of its tensors, and which of them the model reads, or are asked for."""
    wanted = selected.tensors[site.path]
    if len(positions) == 1:
        tensor = "" if wanted is None else min(wanted)
        return dataclasses.replace(site, tensor=tensor, names=(documented(module, positions[0]),))
    if wanted is not None:
        return dataclasses.replace(site, names=tuple(positions), read=tuple(range(len(positions))))
    names = tuple(documented(module, position) for position in positions)
    read = tuple(names.index(name) for name in used.get((site.path, site.index), ()) if name in names)
    read = read or tuple(range(len(names)))
    read = tuple(one for one in read if site.axes[one] is not None or not whole[one]) or read  # not what all share
    main = read[0] if len(read) == 1 else site.main
    return dataclasses.replace(site, main=main, names=names, read=read)


def _shapes_of_two(
    model: nn.Module, inputs: Inputs, selected: Matches, forward: Forward | None, seed: int, calls: Sequence[Any]
) -> Shapes | None:
    """The shapes that calls return for the batch twice; None if the model does not take it.

    They are measured once for a model, the shapes of its input, and these calls.
    """
    seen = tuple((call.layer, call.index, tuple(call.output.by_position.items())) for call in calls)
    key = run_key(model, inputs, None), seen
    if forward is None and (known := _OF_TWO.get(model)) and known[0] == key:
        return known[1]
    shapes: Shapes | None = or_none(lambda: _run_twice(model, inputs, selected, forward, seed))
    if forward is None and shapes is not None:
        _OF_TWO[model] = key, shapes
    return shapes


def _run_twice(model: nn.Module, inputs: Inputs, selected: Matches, forward: Forward | None, seed: int) -> Shapes:
    seed_torch(seed)
    with Probe(model, selected, reduce=lambda output: _Seen(output, hold=False)) as record:
        inputs.rows(copied_rows(inputs.batch, 2)).run(model, forward)
    return {(call.layer, call.index): call.output.by_position for call in record.order}


def _holder(position: str) -> str:
    """The list or mapping in which an output holds a tensor."""
    return position.replace("/", ".").rpartition(".")[0]


def _has_forward(model: nn.Module, path: LayerPath) -> bool:
    return type(model.get_submodule(path)).forward is not nn.Module.forward


def grown_axis(was: Shape, now: Shape) -> int | None:
    """Return the axis that doubled with the batch; None where none did."""
    if len(was) != len(now):
        return None
    return next((axis for axis in range(len(was)) if now[axis] == 2 * was[axis] > 0), None)


def doubled(shape: Shape, batch: int) -> Shape:
    """Return the shape with twice the samples on its first axis, if that has the size of the batch."""
    return (2 * batch, *shape[1:]) if shape and shape[0] == batch else shape


def _count(shape: Shape) -> int:
    return torch.Size(shape).numel()


def copied_rows(batch: int, copies: int) -> torch.Tensor:
    """Return the samples of `copies` copies of a batch, one copy after another: 0, 1, 0, 1, ..."""
    return torch.arange(batch).repeat(copies)


def floating(output: object) -> list[torch.Tensor]:
    """Return the floating-point tensors of a nested output, in order."""
    return [tensor for _, tensor in named_tensors(output) if tensor.is_floating_point()]


def main_index(output: object) -> int:
    """Return the index of the value of the layer: the tensor named as in `MAIN_OUTPUTS`, or else the first."""
    names = [name for name, tensor in named_tensors(output) if tensor.is_floating_point()]
    return next((names.index(name) for name in MAIN_OUTPUTS if name in names), 0)


def by_row(tensor: torch.Tensor, axis: int, rows: int) -> torch.Tensor:
    """Return all numbers of each row of the batch, `(rows, n)`."""
    return tensor.movedim(axis, 0).reshape(rows, -1)


def edits_at(sites: Sequence[MeasuredCall], function: Callable[[MeasuredCall, Any], Any]) -> dict[str, Edit]:
    """Return edits for a `Probe` that replace what each site returned by `function(site, output)`."""
    by_path: dict[str, dict[int, MeasuredCall]] = {}
    for site in sites:
        by_path.setdefault(site.key, {})[site.index] = site

    def edit(by_index: dict[int, MeasuredCall]) -> Edit:
        calls = iter(range(1 << 62))

        def tap(output: object) -> Any:
            site = by_index.get(next(calls))
            return output if site is None else function(site, output)

        return tap

    return {path: edit(by_index) for path, by_index in by_path.items()}


def row_norms(tensor: torch.Tensor, axis: int | None, rows: int) -> torch.Tensor:
    """Return the Euclidean norm of each row of the batch, `(rows,)`, float64 on the CPU."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    if axis is None:
        norms: torch.Tensor = torch.linalg.vector_norm(tensor, dtype=wide).expand(rows)
    else:
        norms = torch.linalg.vector_norm(by_row(tensor, axis, rows), dim=1, dtype=wide)
    return norms.double().cpu()
