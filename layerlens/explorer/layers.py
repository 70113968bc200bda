"""The layers of an explorer: their relevance and activations, unit by unit, and the tree that shows them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from layerlens.analyzers.activation.activation_maps import layer_maps, units_second
from layerlens.axes.followed import followed_for
from layerlens.errors import LayerLensError
from layerlens.inputs.inputs import Inputs
from layerlens.model.layers import Layers
from layerlens.model.selection import split_tensor
from layerlens.model.trees import as_array
from layerlens.plotting.style import Array
from layerlens.results import ActivationMaps, Relevance
from layerlens.wrapped_model import WrappedModel

from .packing import Numbers, averaged, block_size, pooled
from .plan import Plan

NUMBERS: Final = (
    ("relevance", "sum of the relevance of the layer's output, in units of the score"),
    ("size of relevance", "sum of its magnitudes"),
    ("share of the strongest unit", "largest sum of relevance of a unit, by size, over the sum of all units' sizes"),
    ("activation", "mean size of the layer's output"),
    ("units off", "share of the units that are 0 at all places of this input"),
    (
        "difference of targets",
        "how far other units carry the score of this target than that of the nearest other one: half the sum of the "
        "differences between their shares of the size of relevance; 0 for the same units, 1 for others alone",
    ),
)
"""Numbers by layer: name, and what it is; the last is there with several targets."""


Key = tuple[str, int]
"""A tensor that a layer returned, and the call."""


@dataclasses.dataclass(frozen=True)
class LayerValues:
    """One tensor of one call of a layer, of one sample.

    Attributes:
        places: names of the axes of places.
        sizes: their sizes.
        relevance: sum over places of each unit, `(target, unit)`, float64; None if no relevance came by.
        activation: largest activation of each unit, `(unit,)`.
        map: relevance, sum over units, `(target, *cells)`.
        block: places of a cell of `map` along each axis.
        maps: relevance of every unit, `(target, unit, *cells)`.
        active: activation of every unit, `(unit, *cells)`, means.
        unit_block: places of a cell of `maps` along each axis.
        numbers: those of `NUMBERS`, `(number, target)`.
    """

    places: tuple[str, ...]
    sizes: tuple[int, ...]
    relevance: Array | None
    activation: Array
    map: Array | None
    block: int
    maps: Array | None
    active: Array
    unit_block: int
    numbers: Array


def read_layers(
    lens: WrappedModel, inputs: Inputs, plan: Plan, found: Sequence[Relevance], left_out: dict[str, str],
    notes: list[str],
) -> dict[Key, LayerValues]:  # fmt: skip
    """Return the values of the layers of one sample, by tensor and call.

    Args:
        lens: the model.
        inputs: the sample.
        plan: which layers, and how fine.
        found: relevance of each target.
        left_out: layer -> why it has no values, which is added to.
        notes: what cannot be shown, which is added to.
    """
    why: dict[Key, str] = {}
    by_key: list[dict[Key, Array]] = [_relevance(lens, inputs, one, why) for one in found]
    values: dict[Key, LayerValues] = {}
    for maps in _activations(lens, inputs, plan.paths, left_out):
        key = (maps.layer, maps.call)
        active = np.asarray(as_array(maps.values[0]), dtype=np.float64)  # (unit, *places)
        rows = [one[key] for one in by_key if key in one and one[key].shape == active.shape]
        if not np.isfinite(active).all():
            left_out[maps.layer] = "its output holds NaN or infinity"
            continue
        values[key] = _reduced(maps, active, np.stack(rows) if rows and len(rows) == len(found) else None, plan)
        if values[key].relevance is None:
            zero = "it is 0 everywhere, as at an embedding, where that of the tokens is taken"
            reason = why.get(key, zero if len(rows) == len(found) else "it has other places, or none")
            notes.append(f"Relevance of layer {name_of(key)} is not shown: {reason.rstrip('.')}.")
    return values


def name_of(key: Key) -> str:
    """Return the name of a tensor of a call on the page."""
    return f"{key[0]} #{key[1]}" if key[1] else key[0]


def _reduced(maps: ActivationMaps, active: Array, relevance: Array | None, plan: Plan) -> LayerValues:
    sizes, count = active.shape[1:], active.ndim - 1
    axes = tuple(range(1, active.ndim))
    block, unit_block = block_size(sizes, plan.cells), block_size(sizes, plan.unit_cells)
    off = float((np.abs(active).max(axis=axes, initial=0) == 0).mean())
    numbers = [[np.nan], [np.nan], [np.nan], [float(np.abs(active).mean())], [off], [np.nan]]
    sums = None
    if relevance is not None and not relevance.any():  # none came by, as at an embedding of tokens
        relevance = None
    if relevance is not None:
        sums = relevance.sum(axis=tuple(range(2, relevance.ndim)))  # (target, unit)
        total = np.abs(sums).sum(axis=1)
        largest = np.abs(sums).max(axis=1) / np.where(total > 0, total, 1)
        numbers[:3] = [sums.sum(axis=1), np.abs(relevance).sum(axis=tuple(range(1, relevance.ndim))), largest]
        shares = np.abs(sums) / np.where(total > 0, total, 1)[:, None]
        apart = 0.5 * np.abs(shares[:, None] - shares).sum(axis=2)  # (target, target)
        numbers[5] = np.where(np.eye(len(sums), dtype=bool), np.inf, apart).min(axis=1) if len(sums) > 1 else [np.nan]
    targets = 1 if sums is None else len(sums)
    return LayerValues(
        places=maps.axes[2:],
        sizes=sizes,
        relevance=sums,
        activation=active.max(axis=axes),
        map=None if relevance is None else pooled(relevance.sum(axis=1), count, block),
        block=block,
        maps=None if relevance is None else pooled(relevance, count, unit_block).astype(np.float32),
        active=averaged(active, count, unit_block).astype(np.float32),
        unit_block=unit_block,
        numbers=np.stack([np.broadcast_to(np.asarray(row, dtype=np.float64), (targets,)) for row in numbers]),
    )


def _activations(
    lens: WrappedModel, inputs: Inputs, paths: Sequence[str], left_out: dict[str, str]
) -> list[ActivationMaps]:
    wanted = [path for path in paths if path not in left_out]
    if not wanted:
        return []
    try:
        return layer_maps(lens.model, inputs, wanted, forward=lens.forward)
    except LayerLensError:
        found = []
        for path in wanted:
            try:
                found += layer_maps(lens.model, inputs, [path], forward=lens.forward)
            except LayerLensError as error:
                left_out[path] = str(error)
        return found


def _relevance(lens: WrappedModel, inputs: Inputs, found: Relevance, why: dict[Key, str]) -> dict[Key, Array]:
    """Relevance at the outputs of layers, `(unit, *places)` of one sample, float64; `why` gets what has none."""
    layers = Layers(lens.model)
    every = {name: calls for name, calls in found.layers.items() if not name.startswith("input of ")}
    ran = [(split_tensor(name, layers)[0], call) for name, calls in every.items() for call in range(len(calls))]
    known = followed_for(lens.model, inputs, lens.forward, ran)
    arranged: dict[Key, Array] = {}
    for name, calls in every.items():
        path, tensor = split_tensor(name, layers)
        for call, values in enumerate(calls):
            try:
                axes = known.site(path, call).names(tensor, values)
            except LayerLensError as error:  # the route changes from run to run
                why[name, call] = str(error)
                continue
            if axes is None:
                why[name, call] = "its axes are not known"
                continue
            units, _ = units_second(values.detach().double(), axes)
            arranged[name, call] = as_array(units[0])
    return arranged


def packed(
    samples: Sequence[dict[Key, LayerValues]],
    plan: Plan,
    types: dict[str, str],
    layers: Layers,
    numbers: Numbers,
    notes: list[str],
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any] | None]]]:
    """Return the layers, and the values of each sample in each of them, for the page.

    Args:
        samples: values of each sample.
        plan: how many units to keep.
        types: path -> class of the layer.
        layers: the layers of the model.
        numbers: where arrays go.
        notes: what cannot be shown, which is added to.
    """
    keys = list(dict.fromkeys(key for one in samples for key in one))
    heads, values = [], []
    for name, call in keys:
        own = [one.get((name, call)) for one in samples]
        there = [one for one in own if one is not None]
        path, tensor = split_tensor(name, layers)
        units = len(there[0].activation)
        if any(len(one.activation) != units for one in there):
            notes.append(f"Layer {name} is shown only of the samples in which it has {units} units, as in the first.")
        there = [one for one in there if len(one.activation) == units]
        own = [one if one is not None and len(one.activation) == units else None for one in own]
        by_relevance, by_activation = _order(there)
        known = list(range(units)) if units <= plan.units else sorted(_best(by_relevance, by_activation, plan.units))
        shared = _best(by_relevance, by_activation, math.ceil(plan.maps / 2))  # the others are the sample's own
        about = {"name": name_of((name, call)), "path": path, "tensor": tensor, "call": call}
        about |= {"type": types.get(path, ""), "units": units, "places": there[0].places}
        heads.append({**about, "known": None if len(known) == units else known})
        values.append([None if one is None else _values(one, known, shared, plan.maps, numbers) for one in own])
    return heads, [list(row) for row in zip(*values, strict=True)] if values else [[] for _ in samples]


def _values(one: LayerValues, known: list[int], shared: list[int], maps: int, numbers: Numbers) -> dict[str, Any]:
    """The values of a sample: of the known units, and maps of the shared ones and of its own best."""
    best, there = dict.fromkeys([*shared, *_best(*_order([one]), maps)]), set(known)
    kept = [unit for unit in best if unit in there][:maps]
    relevant, places = one.relevance is not None and one.maps is not None and one.map is not None, bool(one.sizes)
    found: dict[str, Any] = {
        "sizes": one.sizes,
        "block": one.block,
        "unitBlock": one.unit_block,
        "kept": kept,
        "numbers": numbers.add(one.numbers),
        "activation": numbers.add(one.activation[known]),
        "active": numbers.add(one.active[kept]) if places else None,
        "relevance": numbers.add(one.relevance[:, known]) if relevant else None,  # type: ignore[index]
        "map": numbers.add(one.map) if relevant and places else None,
        "maps": numbers.add(one.maps[:, kept]) if relevant and places else None,  # type: ignore[index]
    }
    return found


def _order(samples: Sequence[LayerValues]) -> tuple[list[int], list[int]]:
    """Units by relevance, the best of each sample and target in turn, and by their activation in any sample."""
    active = np.max([one.activation for one in samples], axis=0)
    rows = [row for one in samples if one.relevance is not None for row in one.relevance]
    ranks = np.argsort(-np.abs(np.stack(rows)), axis=1, kind="stable").T if rows else np.arange(len(active))
    units, first = np.unique(ranks.reshape(-1), return_index=True)
    return units[np.argsort(first)].tolist(), np.argsort(-active, kind="stable").tolist()


def _best(first: list[int], second: list[int], count: int) -> list[int]:
    """The best of two orders in turn."""
    pairs = [unit for pair in zip(first, second, strict=True) for unit in pair]
    return list(dict.fromkeys(pairs))[:count]


def tree(lens: WrappedModel, heads: Sequence[dict[str, Any]], rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the layers of the model as rows of a tree, each with the numbers of what is shown of it.

    Args:
        lens: the model.
        heads: layers that are shown.
        rows: rows of the layer table.
    """
    shown: dict[str, list[int]] = {}
    for number, one in enumerate(heads):
        shown.setdefault(one["path"], []).append(number)
    return [
        {
            "path": row.path, "name": row.path.rpartition(".")[2] or type(lens.model).__name__, "type": row.type,
            "parent": row.path.rpartition(".")[0] if row.path else None, "output": row.output,
            "parameters": row.parameters, "calls": row.calls, "layers": shown.get(row.path, []),
        }
        for row in rows
    ]  # fmt: skip
