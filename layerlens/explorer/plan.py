"""Which layers an explorer shows, and how fine their maps are, so that the file stays small."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Final

from layerlens.axes.call_site import CallSite
from layerlens.axes.followed import followed
from layerlens.axes.layout import only, roles
from layerlens.errors import LayerNotFound
from layerlens.inputs.inputs import Inputs
from layerlens.model.layers import Layers, Selection
from layerlens.wrapped_model import WrappedModel

from .packing import BYTES, block_size, cells_of

LAYERS: Final = 0.7
"""Share of the numbers of a file that layers need at least: their units, and one map each."""

SPARE: Final = 0.1
"""Share of the numbers that is left for inputs and the ledger."""

NUMBERS: Final = 0.45
"""Share that the numbers of units have at most."""

MAPS: Final = 0.2
"""Share that one map of each layer has at most, if that is enough to see where it is."""

SHARES: Final = {"heads": 0.12, "attention": 0.06}
"""Share that heads and their attention have at most."""

LARGEST: Final = 20_000_000
"""Numbers in the output of a layer above which it is shown only if it is asked for."""

WIDEST: Final = 2048
"""Units of a layer whose numbers are kept at most."""

TEXTS: Final = 250_000
"""Bytes of the script, of names and of texts."""

PICTURE: Final = 12_000
"""Bytes of a picture, and of what describes a sample."""

OVERHEAD: Final = 45
"""Numbers that what describes a layer of a sample takes the room of."""

ENOUGH: Final = 196
"""Cells of a map over two axes that are enough to see where it is, 14 x 14."""

UNITS: Final = ((ENOUGH, 8), (100, 8), (49, 4))
"""Cells of a map of a unit, and how many units must fit then; else the next."""

STEPS: Final = (4096, 3136, 2304, 1600, 1024, 784, 576, 400, 256, ENOUGH, 144, 100, 64, 49, 25, 16)
"""Most cells of a map that are tried, the finest first."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is shown of layers, so that the file stays as small as was asked for.

    Attributes:
        paths: layers, in order of execution.
        units: most units of a layer whose numbers are kept.
        maps: most units of a layer whose maps are kept.
        cells: most cells of a map of a layer.
        unit_cells: most cells of a map of a unit.
        bytes: size of the file that was asked for.
        left_out: layer -> why it is not shown.
        deeper: number of layers inside those that are shown for which there is no room.
    """

    paths: tuple[str, ...]
    units: int
    maps: int
    cells: int
    unit_cells: int
    bytes: float
    left_out: dict[str, str]
    deeper: int

    def room(self, share: str) -> float:
        """Return how many numbers of heads, or of their attention, fit."""
        return SHARES[share] * self.bytes / BYTES


def make_plan(
    lens: WrappedModel,
    inputs: Inputs,
    layers: Selection,
    samples: int,
    targets: int,
    maps: int,
    size: float,
    heads: bool,
) -> Plan:
    """Choose layers and sizes by the shapes of one sample.

    Without a choice of layers it is as deep a level of the model as fits.

    Args:
        lens: the model.
        inputs: the first sample.
        layers: which layers; None for as many as fit.
        samples: number of samples.
        targets: number of targets.
        maps: most units of a layer whose maps are shown.
        size: bytes of the file.
        heads: whether there are heads to show.

    Raises:
        LayerNotFound: when none of the selected layers can be shown.
    """
    sites: dict[str, CallSite] = {}
    left_out: dict[str, str] = {}
    for site in followed(lens.model, inputs, lens.forward).calls:
        found = {role for axes in site.outputs.values() for role in roles(axes)}
        if not site.path:
            continue
        if "batch" not in found:
            left_out[site.path] = "it returned nothing with an axis of the batch"
        elif any(not axis.known for axes in site.outputs.values() for axis in axes):
            left_out[site.path] = "it is not known what the axes of its output are: Lens(model, axes=...) names them"
        else:
            sites.setdefault(site.path, site)
    left_out = {path: why for path, why in left_out.items() if path not in sites}
    if layers is None:
        large = [path for path, site in sites.items() if _size(_shape(site)) > LARGEST]
        more = f"its output has more than {LARGEST:,} numbers"
        left_out |= {path: f"{more}; layers=[{path!r}] shows it" for path in large}
        levels = _levels([path for path in sites if path not in large])
    else:
        wanted = Layers(lens.model).select(layers)
        levels = [[path for path in sites if path in wanted]]
        left_out = {path: why for path, why in left_out.items() if path in wanted}
        left_out |= {path: "it did not run on this input" for path in wanted if path not in {*sites, *left_out}}
        if not levels[0]:
            why = "; ".join(f"{path}: {text}" for path, text in left_out.items())
            raise LayerNotFound(f"none of the selected layers can be shown: {why}.")
    room = max(size - TEXTS - samples * PICTURE, 0.3 * size) / BYTES
    room *= 1 - sum(SHARES.values()) * heads
    shown = levels[0] if levels else []
    deepest = levels[-1] if levels else []
    for paths in levels[1:]:
        if _least([_shape(sites[path]) for path in paths], samples, targets) > LAYERS * room:
            break
        shown = paths
    shapes = [_shape(sites[path]) for path in shown]
    every = samples * (targets + 1) * sum(min(units, WIDEST) for units, _ in shapes)
    most = min(max((units for units, _ in shapes), default=1), WIDEST)
    if every > NUMBERS * room:
        most = max(int(most * NUMBERS * room / every), 1)
    used = min(every, NUMBERS * room) + samples * OVERHEAD * len(shown)

    def of_layers(cells: int) -> float:
        return samples * targets * sum(_count(places, cells) for _, places in shapes)

    enough_cells = samples * targets * sum(_enough(places) for _, places in shapes)
    cells = _cells(of_layers, max(MAPS * room, min(enough_cells, LAYERS * room - used)))
    rest = max((1 - SPARE) * room - used - of_layers(cells), room / 10)

    def of_units(kept: int, cells: int) -> float:
        maps = sum(min(kept, units) * _count(places, cells) for units, places in shapes if places)
        return samples * (targets + 1) * maps

    kept, unit_cells = min(maps, 2), STEPS[-1]
    for enough, fewest in UNITS:
        counts = [count for count in range(maps, min(maps, fewest) - 1, -1) if of_units(count, enough) <= rest]
        if counts:
            kept, unit_cells = counts[0], _cells(functools.partial(of_units, counts[0]), rest)
            break
    return Plan(tuple(shown), most, kept, cells, unit_cells, size, left_out, len(deepest) - len(shown))


def _least(shapes: Sequence[tuple[int, list[int]]], samples: int, targets: int) -> float:
    """How many numbers layers need at least."""
    units = sum(min(units, WIDEST) for units, _ in shapes)
    places = sum(_enough(sizes) for _, sizes in shapes)
    return samples * ((targets + 1) * units + targets * places + OVERHEAD * len(shapes))


def _enough(sizes: Sequence[int]) -> int:
    """How many cells are enough to see where it is: every token or step, and blocks of pixels."""
    return math.prod(sizes) if len(sizes) == 1 else _count(sizes, ENOUGH)


def _size(shape: tuple[int, list[int]]) -> int:
    return shape[0] * math.prod(shape[1])


def _count(sizes: Sequence[int], cells: int) -> int:
    """The number of cells of a map."""
    return math.prod(cells_of(sizes, block_size(sizes, cells))) if sizes else 0


def _cells(numbers: Callable[[int], float], room: float) -> int:
    """The finest map for which there is room."""
    return next((cells for cells in STEPS if numbers(cells) <= room), STEPS[-1])


def _shape(site: CallSite) -> tuple[int, list[int]]:
    """Number of units, and sizes of the other axes but the batch, of the largest output of a call."""
    best: tuple[int, list[int]] = (1, [])
    for axes in site.outputs.values():
        unit = only(axes, "unit")
        kinds = roles(axes)
        places = [axis.size for k, axis in enumerate(axes) if k != unit and kinds[k] != "batch"]
        found = (1 if unit is None else axes[unit].size, places)
        best = max(found, best, key=_size)
    return best


def _levels(ran: Sequence[str]) -> list[list[str]]:
    """Layers down to each depth; containers that do not run do not count as depth."""
    depth = {path: sum(path.startswith(f"{other}.") for other in ran) for path in ran}
    return [[path for path in ran if depth[path] <= level] for level in range(max(depth.values(), default=-1) + 1)]
