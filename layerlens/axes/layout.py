"""What the axes of one tensor are for: samples, places of the input, units, heads; and tensors arranged by them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch

from .provenance.axis import Axes, Axis, Factor, Joined, Part, Source, fits

Role = Literal["batch", "place", "key", "unit", "head", "extra", "mixed", "unknown", "none"]


def role(axis: Axis) -> Role:
    """Return what an axis counts; `"mixed"` for a product of several, `"none"` for a single entry without a meaning."""
    roles = {_part_role(part) for part in axis.parts() if part.size > 1 or part.source.role == "batch"}
    if "unknown" in roles:
        return "unknown"
    if isinstance(axis.factors[0] if axis.factors else None, Joined) and len(axis.factors) == 1 and "place" in roles:
        roles.discard("extra")  # class tokens next to the places
    roles = roles or {_part_role(part) for part in axis.parts()}
    if len(roles) > 1:
        return "unit" if roles == {"head", "unit"} else "mixed"
    return next(iter(roles), "none")


def _part_role(part: Part) -> Role:
    source = part.source
    if part.key:
        return "key"
    if source.kind == "input":
        return source.role
    if source.kind == "unit":
        return "extra" if part.on_grid else "head" if part.name == "head" else "unit"
    return "unknown" if source.kind == "unknown" else "extra"


def roles(axes: Axes) -> tuple[Role, ...]:
    """Return what each axis of a tensor counts."""
    return tuple(role(axis) for axis in axes)


def only(axes: Axes, wanted: Role) -> int | None:
    """Return the number of the axis of this role; None when there is not exactly one."""
    found = [place for place, axis in enumerate(axes) if role(axis) == wanted]
    return found[0] if len(found) == 1 else None


def holding(axes: Axes, wanted: Role) -> list[int]:
    """Return the numbers of the axes of this role; without any, of those that count it together with others."""
    found = [place for place, axis in enumerate(axes) if role(axis) == wanted]
    return found or [
        place for place, axis in enumerate(axes) if any(_part_role(part) == wanted for part in axis.parts())
    ]


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of an attention in one axis of units, side by side.

    Attributes:
        count: number of heads.
        layer: path of the layer that keeps them apart.
    """

    count: int
    layer: str


def heads(axis: Axis) -> Heads | None:
    """Return the heads that lie side by side in an axis of units; None if attention did not split it."""
    factors = [factor for factor in axis.factors if isinstance(factor, Part)]
    if not factors or len(factors) != len(axis.factors):
        return None
    leading = [factor for factor in factors if factor.outer or factor.source.kind == "copy"]
    if 0 < len(leading) < len(factors):  # still a product of (head, unit of the head), perhaps of shared heads
        known = (one.source.heads.get((one.size, one.stride)) for one in leading)
        layer = next((one for one in known if one is not None), None)
        return None if layer is None else Heads(math.prod(factor.size for factor in leading), layer)
    part = axis.part
    if part is None or part.outer:
        return None
    whole = part.size * part.stride
    found = {Heads(count, layer) for (count, width), layer in part.source.heads.items() if count * width == whole}
    return next(iter(found)) if len(found) == 1 else None


@dataclasses.dataclass(frozen=True)
class Grid:
    """The places of one input in a tensor.

    Attributes:
        input: name of the input tensor.
        axes: numbers of its axes that the grid spans.
        names: their names.
        sizes: number of places along each.
        strides: distance of neighbors, in entries of the input.
        offsets: position of the first place, in entries of the input.
        extents: sizes of these axes in the input.
    """

    input: str
    axes: tuple[int, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    strides: tuple[float, ...]
    offsets: tuple[float, ...]
    extents: tuple[int, ...]

    @property
    def places(self) -> int:
        """The number of places."""
        return math.prod(self.sizes)

    @property
    def covers(self) -> bool:
        """Whether the places span at least half of the input along each axis; without padding, the border has none."""
        spans = (size * abs(stride) for size, stride in zip(self.sizes, self.strides, strict=True))
        return all(2 * span >= extent for span, extent in zip(spans, self.extents, strict=True))

    def __str__(self) -> str:
        """Describe it, such as `height 14 x width 14`."""
        return " x ".join(f"{name} {size}" for name, size in zip(self.names, self.sizes, strict=True))


def grid(axes: Axes, name: str | None = None) -> Grid | None:
    """Return the places of an input in a tensor.

    Args:
        axes: axes of the tensor.
        name: name of the input tensor; None for the only one of which places are there.

    Returns:
        None when places are not there, are unknown, or are not evenly spaced.
    """
    if any(role(axis) == "unknown" for axis in axes):
        return None
    by_source: dict[int, list[Part]] = {}
    sources: dict[int, Source] = {}
    for factor in _opened(axes):
        if isinstance(factor, Part) and _part_role(factor) == "place":
            by_source.setdefault(id(factor.source), []).append(factor)
            sources[id(factor.source)] = factor.source
    inputs = {source.origin[0] for source in sources.values() if source.origin is not None}
    if name is None and len(inputs) != 1:
        return None
    chosen = name if name is not None else next(iter(inputs))
    found: list[tuple[int, str, int, float, float, int]] = []
    for key, source in sources.items():
        if source.origin is None or source.origin[0] != chosen:
            continue
        series = sorted(by_source[key], key=lambda part: -abs(part.stride))
        if len({part.rolled for part in series}) > 1:
            return None
        for blocks, inside in itertools.pairwise(series):
            if not fits(blocks, inside):
                return None
        last, count = series[-1], math.prod(part.size for part in series)
        if last.rolled and not _turns_back(last, count):
            return None
        offset = sum(part.offset for part in series)
        found.append((source.origin[1], source.name, count, last.stride, offset, source.size))
    if not found:
        return None
    found.sort()
    numbers, names, sizes, strides, offsets, extents = zip(*found, strict=True)
    return Grid(chosen, numbers, names, sizes, strides, offsets, extents)


def _turns_back(part: Part, count: int) -> bool:
    """Whether `count` rolled places, turned by some of them, are evenly spaced."""
    inside, turn = part.wrap / part.stride, part.rolled / part.stride
    return inside <= count and inside == round(inside) and turn == round(turn)


def arranged(tensor: torch.Tensor, axes: Axes, grid: Grid) -> torch.Tensor:
    """Return a tensor as `(samples, units, *places)`, without extra entries, windows put together.

    Args:
        tensor: the tensor; it may hold another number of samples.
        axes: its axes.
        grid: the places of it that are wanted.

    Returns:
        Shape `(samples, units, *grid.sizes)`; what is neither a sample nor a place counts as units.
    """
    for place, axis in enumerate(axes):
        start, segment = _segment(axis, grid.input)
        if segment is not axis:
            tensor, axes = tensor.narrow(place, start, segment.size), (*axes[:place], segment, *axes[place + 1 :])
    factors = [factor for axis in axes for factor in axis.factors]
    counts = [factor.size for factor in factors]
    samples = next((at for at, one in enumerate(factors) if isinstance(one, Part) and one.source.role == "batch"), None)
    if samples is not None:
        counts[samples] = tensor.numel() * counts[samples] // math.prod(counts)
    tensor = tensor.reshape(counts)
    groups: dict[str | int, list[int]] = {"batch": [], "unit": [], **{number: [] for number in grid.axes}}
    for place, factor in enumerate(factors):
        source = factor.source if isinstance(factor, Part) and not factor.key else None
        if source is not None and source.role == "batch":
            groups["batch"].append(place)
        elif (
            source is not None
            and source.origin is not None
            and source.origin[0] == grid.input
            and source.origin[1] in groups
        ):
            groups[source.origin[1]].append(place)
        else:
            groups["unit"].append(place)
    for number in grid.axes:
        groups[number].sort(key=lambda place: -abs(_stride(factors[place])))
    order = [place for group in groups.values() for place in group]
    sizes = [math.prod(counts[place] for place in group) for group in groups.values()]
    found = tensor.permute(order).reshape(sizes)
    for along, number in enumerate(grid.axes):
        first = factors[groups[number][0]] if groups[number] else None
        if isinstance(first, Part) and first.rolled:
            inside = round(first.wrap / grid.strides[along])
            turned = found.narrow(along + 2, 0, inside).roll(-round(first.rolled / grid.strides[along]), along + 2)
            padding = found.narrow(along + 2, inside, found.shape[along + 2] - inside)
            found = torch.cat([turned, padding], along + 2)
    return found


def _stride(factor: Factor) -> float:
    return factor.stride if isinstance(factor, Part) else 0.0


def _opened(axes: Axes) -> list[Factor]:
    """Return the factors of all axes; a joined axis gives only the segment with places."""
    return [factor for axis in axes for factor in _segment(axis, None)[1].factors]


def _segment(axis: Axis, name: str | None) -> tuple[int, Axis]:
    """Return start and axis of the segment that holds the places of an input, or of any for None."""
    inside = axis.factors[0] if len(axis.factors) == 1 else None
    if not isinstance(inside, Joined):
        return 0, axis
    start, found = 0, list[tuple[int, Axis]]()
    for segment in inside.segments:
        origins = [part.source.origin for part in segment.parts()
                   if _part_role(part) == "place"]  # fmt: skip
        if any(origin is not None and name in (None, origin[0]) for origin in origins):
            found.append((start, segment))
        start += segment.size
    return found[0] if len(found) == 1 else (0, axis)


def named(axes: Axes) -> tuple[str, ...]:
    """Return one name an axis, each different: `("batch", "token", "token_2")`."""
    counted: dict[str, int] = {}
    found: list[str] = []
    for axis in axes:
        counted[axis.name] = counted.get(axis.name, 0) + 1
        found.append(axis.name if counted[axis.name] == 1 else f"{axis.name}_{counted[axis.name]}")
    return tuple(found)


def plain_names(axes: Axes) -> tuple[str, ...] | None:
    """Return one name an axis, `"batch"` for samples and `"unit"` for units; None if an axis is unknown."""
    kinds = roles(axes)
    if "unknown" in kinds:
        return None
    alone = [kind for kind in ("batch", "unit") if kinds.count(kind) == 1]
    found = [kind if kind in alone else name for kind, name in zip(kinds, named(axes), strict=True)]
    for at in holding(axes, "unit"):
        if kinds[at] == "place":  # of a single unit, as in a flattened picture of one color
            found[at] = f"{next(part.name for part in axes[at].parts() if _part_role(part) == 'unit')}*{found[at]}"
    return tuple(found)


def unit_name(names: Sequence[str]) -> str | None:
    """Return the name, of those of `plain_names`, of the axis of units, perhaps counted together with places."""
    found = [name for name in names if not {"unit", "channel", "feature"}.isdisjoint(name.split("*"))]
    return "unit" if "unit" in found else found[0] if len(found) == 1 else None


def layer_names(axes: Axes) -> tuple[str, ...] | None:
    """Return one name an axis, with units called `"channel"` in front of places and `"feature"` behind them.

    Returns:
        None when an axis is unknown.
    """
    kinds, names = roles(axes), named(axes)
    if "unknown" in kinds:
        return None
    return tuple(
        ("channel" if "place" in kinds[at:] else "feature") if kinds.count("unit") == 1 and kind == "unit" else name
        for at, (kind, name) in enumerate(zip(kinds, names, strict=True))
    )


def assumed(axes: Axes) -> bool:
    """Whether the model shows nothing of what the axes of an input are: they have the names of torch's own layers."""
    return any(part.source.assumed for axis in axes for part in axis.parts())


def described(axes: Axes | None) -> str:
    """Describe axes: `batch | 1+height*width | unit`; `?` for unknown ones."""
    return "?" if axes is None else " | ".join(axis.name for axis in axes)


def positions(axis: Axis) -> list[float]:
    """Return the position of every entry of an axis of places, in entries of the input; empty for other axes."""
    part = axis.part
    if part is None or role(axis) != "place" or part.inner or part.outer or part.rolled:
        return []
    return [part.offset + place * part.stride for place in range(part.size)]
