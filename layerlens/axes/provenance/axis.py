"""What one axis of a tensor holds: entries of an axis of the input, units of a layer, or several of these together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch

Kind = Literal["input", "unit", "copy", "extra", "unknown"]

RANK: dict[Kind, int] = {"input": 0, "unit": 1, "copy": 2, "extra": 3, "unknown": 4}
"""Which of two axes that meet in one operation names the result: the one that says most."""


@dataclasses.dataclass(eq=False, slots=True)
class Source:
    """Where entries come from: one axis of an input, or the operation that made them.

    Attributes:
        kind: `"input"` for an axis of an input; `"unit"` for what a layer computed by summing over another axis;
            `"copy"` for repetitions; `"extra"` for entries that no input has, such as class tokens; `"unknown"`.
        size: number of entries where the source was made.
        name: name of the axis; `""` until it is known.
        origin: name of the input tensor and its axis, for the kind `"input"`.
        why: what made it unknown.
        chosen: the axis from which entries were chosen by their numbers, and these numbers, shape (size,).
        role: what an axis of an input counts: samples, places, or units.
        roles: what operations did to it, such as `"contracted"` or `"windowed"`, in order of their occurrence.
        heads: number of heads into which attention split it, and units from one head to the next -> layer that did.
        grids: number of entries, and units from one to the next, of an axis that a convolution slid over -> its name.
        assumed: whether the model shows nothing of what the axes of this input are.
    """

    kind: Kind
    size: int
    name: str = ""
    origin: tuple[str, int] | None = None
    why: str = ""
    chosen: tuple[Axis, torch.Tensor] | None = None
    role: Literal["batch", "place", "unit"] = "place"
    roles: dict[str, int] = dataclasses.field(default_factory=dict)
    heads: dict[tuple[int, float], str] = dataclasses.field(default_factory=dict)
    grids: dict[tuple[int, float], str] = dataclasses.field(default_factory=dict)
    assumed: bool = False

    def __repr__(self) -> str:
        return f"Source({self.name or self.kind}[{self.size}])"


class Part(NamedTuple):
    """Evenly spaced entries of a source.

    Entry `i` lies at `offset + i * stride`, in entries of the source; a merged entry lies at the center of what it
    covers.

    Attributes:
        source: where the entries come from.
        size: number of entries.
        stride: distance of neighbors.
        offset: position of the first.
        outer: whether it counts blocks, such as windows or heads, whose entries lie in another factor.
        inner: whether it counts the entries inside of such blocks; its offset is then relative to the block.
        rolled: by how much the entries were rolled.
        wrap: over which length they were rolled; what lies behind it is padding.
        key: whether these are the places that others are compared with: the last axis of attention weights.
    """

    source: Source
    size: int
    stride: float = 1.0
    offset: float = 0.0
    outer: bool = False
    inner: bool = False
    rolled: float = 0.0
    key: bool = False
    wrap: float = 0.0

    @property
    def name(self) -> str:
        """The name of the source, or `head` and `group` for blocks of units."""
        if self.source.kind == "unit":
            if self.on_grid:
                return self.source.grids[self.size, self.stride]
            if not self.outer:
                return "unit"
            return "head" if (self.size, self.stride) in self.source.heads else "group"
        if self.key:
            return "key"
        if not self.source.name and self.source.origin is not None:
            return f"axis {self.source.origin[1]} of {self.source.origin[0]!r}"
        return self.source.name or {"unknown": "?"}.get(self.source.kind, self.source.kind)

    @property
    def on_grid(self) -> bool:
        """Whether it counts places of a grid that the model makes of units, as a decoder does."""
        return (self.inner or self.outer) and (self.size, self.stride) in self.source.grids


class Axis:
    """One axis of a tensor: the product of its factors, outermost first.

    Args:
        factors: parts of sources, and joined axes; none for an axis of size 1 without a meaning.

    Attributes:
        factors: these.
        size: number of entries.
    """

    __slots__ = ("factors", "size")

    def __init__(self, factors: Iterable[Factor] = ()) -> None:
        own = tuple(factors)
        self.factors: tuple[Factor, ...] = own
        self.size: int = own[0].size if len(own) == 1 else math.prod([factor.size for factor in own])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.factors == other.factors

    def __hash__(self) -> int:
        return hash(self.factors)

    @property
    def part(self) -> Part | None:
        """The only factor, if it is a part of a source; else None."""
        first = self.factors[0] if len(self.factors) == 1 else None
        return first if isinstance(first, Part) else None

    @property
    def name(self) -> str:
        """The name: `height`, `height*width` for a product, `1+height*width` with one extra entry in front."""
        shown = [one for one in self.factors if one.size > 1 or one.name == "batch"] or list(self.factors)
        names = [f"({one.name})" if isinstance(one, Joined) and len(shown) > 1 else one.name for one in shown]
        return "*".join(dict.fromkeys(names)) or "1"

    @property
    def known(self) -> bool:
        """Whether every part of it has a known source."""
        return all(part.source.kind != "unknown" for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """Yield every part in it, also those of joined axes."""
        for factor in self.factors:
            if isinstance(factor, Part):
                yield factor
            else:
                for segment in factor.segments:
                    yield from segment.parts()

    def __repr__(self) -> str:
        return f"{self.name}[{self.size}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """Axes one after another, such as a class token and the patches of a picture.

    Attributes:
        segments: the axes, in order.
    """

    segments: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """The number of entries."""
        return sum(segment.size for segment in self.segments)

    @property
    def name(self) -> str:
        """The names of the segments, with the number of entries for extra ones."""
        return "+".join(
            str(one.size) if one.part is not None and one.part.source.kind == "extra" else one.name
            for one in self.segments
        )


Factor: TypeAlias = Part | Joined
Axes: TypeAlias = tuple[Axis, ...]


def new(kind: Kind, size: int, why: str = "") -> Axis:
    """Return an axis of a new source."""
    return Axis((Part(Source(kind, size, why=why), size),))


def merged(factors: Iterable[Factor]) -> Axis:
    """Return the axis of these factors, with blocks and the places inside them joined again."""
    found: list[Factor] = []
    for factor in factors:
        last = found[-1] if found else None
        if isinstance(last, Part) and isinstance(factor, Part) and fits(last, factor):
            size, offset = last.size * factor.size, last.offset + factor.offset
            found[-1] = factor._replace(size=size, offset=offset, inner=last.inner)
        else:
            found.append(factor)
    return Axis(found)


def fits(blocks: Part, places: Part) -> bool:
    """Whether `blocks` counts the blocks of which `places` are the entries."""
    return (
        blocks.source is places.source
        and blocks.outer
        and places.inner
        and abs(blocks.stride - places.stride * places.size) < 1e-6 * abs(blocks.stride)
        and (blocks.rolled, blocks.wrap) == (places.rolled, places.wrap)
    )


def split(part: Part, blocks: int) -> tuple[Part, Part]:
    """Split a part into `blocks` blocks and the entries inside each."""
    size = part.size // blocks
    outer = part._replace(size=blocks, stride=part.stride * size, outer=True)
    return outer, part._replace(size=size, offset=0.0, inner=True)


def without(axes: Iterable[Axis], gone: Axis) -> Axes:
    """Return `axes` after an operation summed over `gone`: blocks of which it held the places are now places."""
    lost = [part for part in gone.factors if isinstance(part, Part) and (part.inner or part.outer)]
    axes = tuple(axes)
    if not lost:
        return axes
    kept = [part for axis in axes for part in axis.parts() if part.inner]
    lost = [part for part in lost if not any(one.source is part.source and one.stride == part.stride for one in kept)]
    return tuple(Axis([_block_centers(factor, lost) for factor in axis.factors]) for axis in axes) if lost else axes


def _block_centers(factor: Factor, lost: list[Part]) -> Factor:
    if isinstance(factor, Part) and factor.outer and factor.source.kind == "input":
        for part in lost:
            if fits(factor, part):
                center = factor.offset + part.offset + (part.size - 1) / 2 * part.stride
                return factor._replace(offset=center, outer=False)
    return factor


def as_keys(axis: Axis) -> Axis:
    """Return an axis of places as that of what they are compared with."""
    if all(part.source.kind != "input" for part in axis.parts()):
        return axis
    factors = (
        factor._replace(key=factor.source.kind == "input")
        if isinstance(factor, Part)
        else Joined(tuple(map(as_keys, factor.segments)))
        for factor in axis.factors
    )
    return Axis(factors)


def best(candidates: list[Axis]) -> Axis:
    """Return the axis of entries that several tensors gave together, entry by entry."""
    first = candidates[0]
    if all(other is first for other in candidates):
        return first
    first = min(candidates, key=_rank)
    alone = first.part
    if not first.factors or (alone is not None and alone.source.kind != "input"):
        return first
    if all(other.factors == first.factors for other in candidates):
        return first
    sizes = [factor.size for factor in first.factors]
    alike = [other for other in candidates if [factor.size for factor in other.factors] == sizes]
    return Axis([_best_factor(factor, [other.factors[place] for other in alike])
                 for place, factor in enumerate(first.factors)])  # fmt: skip


def _best_factor(factor: Factor, candidates: list[Factor]) -> Factor:
    """Return a factor with what others know of the same entries."""
    if not isinstance(factor, Part) or factor.source.kind != "input":
        return factor
    found = [factor]
    for other in candidates:
        if not isinstance(other, Part) or other.source.kind != "input":
            continue
        if other.source is not factor.source:
            meet(factor.source, other.source)
        elif other.stride == factor.stride:
            found.append(other)
    found = [part for part in found if part.outer] or found  # blocks of which the places are known
    return min(found, key=_off_center)


def _off_center(part: Part) -> float:
    """By how much the middle of the entries misses that of the source: a shifted copy is added to one that is not."""
    return abs(part.offset + (part.size - 1) / 2 * part.stride - (part.source.size - 1) / 2)


def meet(first: Source, second: Source) -> None:
    """Note that entries of two axes of inputs were combined one by one, so that they have one name."""
    first.roles.setdefault(f"meets {id(second)}", 1)
    second.roles.setdefault(f"meets {id(first)}", 1)


def _rank(axis: Axis) -> tuple[float, float]:
    """The best of the parts, and among equal ones the sum."""
    alone = axis.part
    if alone is not None:
        rank = RANK[alone.source.kind] + 0.5 * alone.key
        return rank, rank
    ranks = [RANK[part.source.kind] + 0.5 * part.key for part in axis.parts()]
    return (min(ranks), sum(ranks)) if ranks else (9, 9)


def cut(axis: Axis, start: int, size: int, step: int = 1) -> Axis:
    """Return the entries `start`, `start + step`, ... of an axis, `size` of them."""
    if size == axis.size:
        return axis
    part = axis.part
    if part is not None:
        shift = start * part.stride
        if part.rolled and (start or size * step * part.stride < part.wrap):
            shift = (shift - part.rolled) % part.wrap
            if shift + (size - 1) * step * part.stride >= part.wrap:
                return new("unknown", size, f"entries {start} to {start + size * step} of a rolled {axis!r}")
            part = part._replace(rolled=0.0, wrap=0.0)
        offset = part.offset + shift
        return Axis((part._replace(size=size, stride=part.stride * step, offset=offset),))
    if len(axis.factors) == 1 and isinstance(axis.factors[0], Joined):
        return joined(_cut_segments(axis.factors[0].segments, start, size, step))
    kinds = {part.source.kind for part in axis.parts()}
    if kinds <= {"unit", "copy"}:
        return new("unit", size)
    return new("unknown", size, f"entries {start} to {start + size * step} of {axis!r}") if size != 1 else Axis()


def _cut_segments(segments: tuple[Axis, ...], start: int, size: int, step: int) -> Iterator[Axis]:
    position, end = 0, start + (size - 1) * step + 1
    for segment in segments:
        first = max(start - position, 0)
        if step > 1 and first:
            first = next(place for place in range(first, first + step) if (place + position - start) % step == 0)
        elif step > 1:
            first = (start - position) % step if position > start else start - position
        count = -(-(min(end - position, segment.size) - first) // step)
        if count > 0 and first < segment.size:
            yield cut(segment, first, count, step)
        position += segment.size


def joined(segments: Iterable[Axis]) -> Axis:
    """Return the axis of segments one after another; pieces of one axis that continue each other become one again."""
    found: list[Axis] = []
    for segment in segments:
        inside = segment.factors[0] if len(segment.factors) == 1 else None
        for piece in (
            inside.segments if isinstance(inside, Joined) else (segment if segment.factors else new("extra", 1),)
        ):
            last = found[-1] if found else None
            continued = None if last is None else _continued(last, piece)
            if continued is not None:
                found[-1] = continued
            else:
                found.append(piece)
    if len(found) == 1:
        return found[0]
    kinds = {part.source.kind for segment in found for part in segment.parts()}
    size = sum(segment.size for segment in found)
    if "unit" in kinds or "copy" in kinds:
        return new("unit", size)
    if kinds == {"extra"}:
        return new("extra", size)
    if "unknown" in kinds and not kinds & {"input"}:
        return new("unknown", size, next(p.source.why for s in found for p in s.parts() if p.source.why))
    return Axis((Joined(tuple(found)),))


def _continued(first: Axis, second: Axis) -> Axis | None:
    """The axis of two pieces of one source where the second begins one stride behind the first; else None."""
    one, two = first.part, second.part
    if one is None or two is None:
        return None
    if one.source.kind == "extra" and two.source.kind == "extra":
        return new("extra", one.size + two.size)
    if one.source is not two.source or one.outer != two.outer or one.rolled != two.rolled:
        return None
    gap = two.offset - (one.offset + (one.size - 1) * one.stride)
    stride = one.stride if one.size > 1 else two.stride if two.size > 1 else gap
    if gap == 0 or abs(gap - stride) > 1e-6 or (two.size > 1 and abs(two.stride - stride) > 1e-6):
        return None
    return Axis((one._replace(size=one.size + two.size, stride=stride),))
