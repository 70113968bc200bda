"""Operations that take or write entries by their numbers, by a mask, or by their values."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .axis import Axes, Axis, Part, Source, best, cut, new
from .reshaped import reshaped
from .table import Found, Operation, broadcast, constant, positive, replaced, row, unknown


@row("aten.index_select")
def pick(operation: Operation) -> Found:
    """Take entries of an axis by their numbers."""
    axes = operation.axes(operation["self"])
    if axes is None:
        other = operation.axes(operation["index"])
        own = constant(operation["self"].shape)
        place = positive(operation["dim"], len(own))
        return replaced(own, place, other[0]) if other else None
    place = positive(operation["dim"], len(axes))
    return replaced(axes, place, picked(axes[place], operation["index"], operation.axes(operation["index"])))


def picked(axis: Axis, index: torch.Tensor, by: Axes | None) -> Axis:
    """Return the axis of the entries `index`, shape (n,), of an axis; `by` are the axes of `index`."""
    if by and by[0].factors and by[0].known and by[0].size == index.numel():
        return by[0]
    if not index.numel():
        return numbered(axis, index)
    before = None if axis.part is None else axis.part.source.chosen
    if before is not None and len(before[1]) == axis.size:  # chosen among what was chosen, or put back in order
        axis, index = before[0], before[1][index]
    if index.numel() == 1:
        return cut(axis, int(index), 1) if axis.part is not None else Axis()
    if torch.equal(index, torch.arange(axis.size, device=index.device)):
        return axis
    steps = index[1:] - index[:-1]
    if axis.part is not None and bool((steps == steps[0]).all()) and int(steps[0]):
        part, first, step = axis.part, int(index[0]), int(steps[0])
        offset, stride = part.offset + first * part.stride, part.stride * step
        return Axis((part._replace(size=index.numel(), stride=stride, offset=offset),))
    if by is None and all(part.source.kind == "unit" for part in axis.parts()) and axis.factors:
        return new("unit", index.numel())  # the same units for every input
    times = max(index.numel() // max(axis.size, 1), 1)
    every = torch.arange(axis.size, device=index.device)
    if torch.equal(index, every.repeat_interleave(times)):
        return Axis((*axis.factors, *new("copy", times).factors))
    return numbered(axis, index)


def numbered(axis: Axis, index: torch.Tensor) -> Axis:
    """Return the unknown axis of entries of `axis` that were chosen by their numbers, and can be put back by them."""
    why = f"entries of {axis.name} were chosen by their numbers"
    return Axis((Part(Source("unknown", index.numel(), why=why, chosen=(axis, index.clone())), index.numel()),))


@row("aten.index_add", "aten.index_copy", "aten.scatter_add", "aten.scatter_reduce", "aten.index_reduce",
     "aten.scatter", "aten.index_put", "aten._index_put_impl", "aten._unsafe_index_put")  # fmt: skip
def put(operation: Operation) -> Found:
    """Write entries by their numbers; in a constant tensor, they are what they were chosen from."""
    given = operation["self"]
    axes, shape = operation.axes(given), operation.shape
    values = operation.get("values", None)
    values = operation.get("source", operation.get("src", None)) if values is None else values
    written = operation.axes(values) if isinstance(values, torch.Tensor) else None
    if axes is not None:
        adds = "add" in operation.name or "reduce" in operation.name or operation.get("accumulate", False)
        moved = set() if written is None or adds else set(_misplaced(operation, axes, written))
        why = f"{operation.name} writes entries to other places than their own"
        return tuple(new("unknown", axis.size, why) if place in moved else axis for place, axis in enumerate(axes))
    if written is None:
        by = operation.axes(operation.get("index", None)) or ()
        place = positive(operation["dim"], len(shape)) if by else 0
        if len(by) != len(shape) or isinstance(values, torch.Tensor):
            return unknown(shape, f"{operation.name} writes entries by their numbers")
        return replaced(broadcast(operation, [operation["index"]], shape), place, new("unit", shape[place]))
    if "indices" in operation:
        place = next(number for number, part in enumerate(operation["indices"]) if part is not None)
        index = operation["indices"][place]
    else:
        place, index = positive(operation["dim"], len(shape)), operation["index"]
    back = len(written) - (len(shape) - (index.ndim - 1 if index.dtype == torch.bool else 0))
    found = [written[here + back] if here < place and here + back >= 0 else Axis() for here in range(place)]
    axis = written[place + back] if 0 <= place + back < len(written) else Axis()
    before = None if axis.part is None else axis.part.source.chosen
    numbers_ = index.flatten().nonzero()[:, 0] if index.dtype == torch.bool else index.flatten()
    spanned = shape[place : place + (index.ndim if index.dtype == torch.bool else 1)]
    if before is not None and before[0].size == spanned.numel() and torch.equal(before[1], numbers_):
        found.extend(reshaped((before[0],), spanned))
    else:
        why = f"{operation.name} writes entries by their numbers"
        found.extend(unknown(spanned, why))
    rest = written[place + back + 1 :]
    found.extend(rest[len(rest) - (len(shape) - len(found)) :] if len(shape) > len(found) else ())
    return tuple(found)


def _misplaced(operation: Operation, axes: Axes, written: Axes) -> Iterator[int]:
    """Yield the indexed axes of a tensor whose own entries are written elsewhere along them."""
    several = "indices" in operation
    indices = operation["indices"] if several else [operation["index"]]
    first = 0 if several else positive(operation["dim"], len(axes))
    used = {first + place: part for place, part in enumerate(indices) if part is not None}
    block = max(part.ndim for part in used.values())
    start = min(used) + len(written) - len(axes) - block + len(used) if several or block == 1 else 0
    for place, part in used.items():
        if part.dtype == torch.bool:  # what a mask chose goes back where it came from, or is something else
            continue
        own = axes[place].part
        for number, axis in enumerate(written):
            if own is None or not any(one.source is own.source for one in axis.parts()):
                continue
            it, behind = axis.part, block - 1 - (number - start)
            if it is None or behind < 0 or behind >= block:
                yield place
                continue
            numbers_ = (it.offset - own.offset + it.stride * torch.arange(it.size, device=part.device)) / own.stride
            if not bool((part == numbers_.view(-1, *[1] * behind)).all()):
                yield place


@row("aten.index", "aten._unsafe_index")
def index(operation: Operation) -> Found:
    """Take entries by tensors of numbers, or of a mask."""
    given = operation["self"]
    axes, indices = operation.axes(given) or constant(given.shape), operation["indices"]
    if any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in indices):
        return _masked(operation, axes, indices)
    used = [place for place, part in enumerate(indices) if part is not None]
    kept = [axis for place, axis in enumerate(axes) if place not in used]
    parts = [indices[place] for place in used]
    shape = torch.broadcast_shapes(*(part.shape for part in parts))  # type: ignore[no-untyped-call]
    known = [part for part in parts if operation.axes(part) is not None]
    if len(parts) == 1 and parts[0].ndim == 1:
        new_axes: Axes = (picked(axes[used[0]], parts[0], operation.axes(parts[0])),)
    elif known:
        new_axes = broadcast(operation, known, shape)
    else:
        new_axes = _grid(axes, used, parts, shape)
    together = used == list(range(used[0], used[-1] + 1))
    first = used[0] if together else 0
    return (*kept[:first], *new_axes, *kept[first:])


def _grid(axes: Axes, used: list[int], parts: list[torch.Tensor], shape: torch.Size) -> Axes:
    """Return the axes of an open grid of indices, such as `x[rows[:, None], columns]`."""
    found: list[Axis] = []
    for place, size in enumerate(shape):
        along = [(which, part) for which, part in zip(used, parts, strict=True)
                 if part.numel() == size and part.ndim >= len(shape) - place
                 and part.shape[place - len(shape)] == size]  # fmt: skip
        if size > 1 and len(along) == 1:
            which, part = along[0]
            found.append(picked(axes[which], part.flatten(), None))
        else:
            found.append(Axis() if size == 1 else new("unknown", size, "entries chosen by a table of indices"))
    return tuple(found)


def _masked(operation: Operation, axes: Axes, indices: list[torch.Tensor | None]) -> Axes:
    """Return the axes of the entries where a mask is true."""
    place = next(number for number, part in enumerate(indices) if part is not None)
    part = indices[place]
    assert part is not None
    base = Axis(factor for axis in axes[place : place + part.ndim] for factor in axis.factors)
    chosen = new("unknown", operation.shape[place], "a mask chooses its entries")
    if part.dtype == torch.bool and base.size == part.numel() and base.known:
        chosen = numbered(base, part.flatten().nonzero()[:, 0])
    return (*axes[:place], chosen, *axes[place + part.ndim :])[: len(operation.shape)]


@row("aten.gather", "aten.take_along_dim")
def gather(operation: Operation) -> Found:
    """Take entries along one axis by numbers for every place."""
    place = positive(operation["dim"], len(operation.shape))
    own, other = operation.axes(operation["self"]), operation.axes(operation["index"])
    found: list[Axis] = []
    for axis, size in enumerate(operation.shape):
        here = [axes[axis] for axes in (own, other) if axes is not None and axes[axis].size == size]
        if axis == place:
            here = [axes[axis] for axes in (other,) if axes is not None and axes[axis].size == size]
        found.append(best(here) if here else Axis() if size == 1 else new("unknown", size, "gathered entries"))
    return tuple(found)


@row("aten.masked_select", "aten.nonzero", "aten.take", "torchvision.nms", "aten.where.self")
def chosen(operation: Operation) -> Found:
    """Choose entries by their values."""
    if operation.name == "aten.where":
        return broadcast(operation, operation.tensors(), operation.shape)
    return unknown(operation.shape, f"{operation.name} chooses entries by their values")
