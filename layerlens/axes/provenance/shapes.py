"""Operations that move, cut, repeat and join entries."""

from __future__ import annotations

from .axis import Axes, Axis, Part, best, cut, fits, joined, new
from .reshaped import reshaped
from .table import Found, Operation, broadcast, constant, numbers, positive, replaced, row


@row("aten.view", "aten._unsafe_view", "aten.reshape", "aten._reshape_alias", "aten.flatten", "aten.unflatten",
     "aten.view_copy", "aten.reshape_copy", "aten._reshape_copy")  # fmt: skip
def reshape(operation: Operation) -> Found:
    """Merge and split axes in order."""
    axes = operation.own()
    return axes if "dtype" in operation else reshaped(axes, operation.shape, operation.before)


@row("aten.permute", "aten.permute_copy")
def permute(operation: Operation) -> Found:
    """Reorder axes."""
    axes = operation.own()
    return tuple(axes[place] for place in operation["dims"])


@row("aten.transpose", "aten.swapaxes", "aten.transpose_copy")
def transpose(operation: Operation) -> Found:
    """Exchange two axes."""
    axes = list(operation.own())
    if axes:
        first, second = operation["dim0"], operation["dim1"]
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@row("aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint")
def turn(operation: Operation) -> Found:
    """Exchange the two axes of a matrix."""
    return operation.own()[::-1]


@row("aten.unsqueeze")
def unsqueeze(operation: Operation) -> Found:
    """Add an axis of size 1."""
    axes = operation.own()
    place = positive(operation["dim"], len(axes) + 1)
    return (*axes[:place], Axis(), *axes[place:])


@row("aten.squeeze")
def squeeze(operation: Operation) -> Found:
    """Drop axes of size 1."""
    axes = operation.own()
    dims = operation["dim"] if "dim" in operation else range(len(axes))
    places = {positive(place, len(axes)) for place in ([dims] if isinstance(dims, int) else dims)}
    return tuple(axis for place, axis in enumerate(axes) if place not in places or axis.size != 1)


@row("aten.expand", "aten.broadcast_to", "aten.expand_copy")
def expand(operation: Operation) -> Found:
    """Repeat entries of axes of size 1."""
    axes, shape = operation.own(), operation.shape
    axes = (*(Axis() for _ in range(len(shape) - len(axes))), *axes)
    return tuple(axis if axis.size == size else new("copy", size) for axis, size in zip(axes, shape, strict=True))


@row("aten.repeat", "aten.tile")
def repeat(operation: Operation) -> Found:
    """Repeat whole axes."""
    times = operation["repeats" if "repeats" in operation else "dims"]
    axes = operation.own()
    axes = (*(Axis() for _ in range(len(times) - len(axes))), *axes)
    times = [1] * (len(axes) - len(times)) + list(times)
    return tuple(axis if count == 1 else Axis((*new("copy", count).factors, *axis.factors))
                 for axis, count in zip(axes, times, strict=True))  # fmt: skip


@row("aten.repeat_interleave")
def interleave(operation: Operation) -> Found:
    """Repeat every entry."""
    axes, shape = operation.own(), operation.shape
    return tuple(axis if axis.size == size
                 else Axis((*axis.factors, *new("copy", size // axis.size).factors)) if size % axis.size == 0
                 else new("unknown", size, "entries are repeated different numbers of times")
                 for axis, size in zip(axes, shape, strict=True)) if len(axes) == len(shape) else None  # fmt: skip


@row("aten.select", "aten.select_copy")
def select(operation: Operation) -> Found:
    """Take one entry of an axis, which is dropped."""
    axes = operation.own()
    place = positive(operation["dim"], len(axes))
    return taken(axes, place, positive(operation["index"], axes[place].size))


def taken(axes: Axes, place: int, entry: int) -> Axes:
    """Return the axes of one entry along an axis: blocks and the places inside them know which of them it is."""
    left, gone = (*axes[:place], *axes[place + 1 :]), axes[place].part
    if gone is None or not (gone.outer or gone.inner):
        return left
    shift = gone.offset + entry * gone.stride
    for number, axis in enumerate(left):
        for at, factor in enumerate(axis.factors):
            if isinstance(factor, Part) and factor.source is gone.source and (factor.outer or factor.inner):
                alone = fits(factor, gone) if gone.inner else fits(gone, factor) and gone.size == 1
                moved = factor._replace(offset=factor.offset + shift, outer=factor.outer and not alone)
                return replaced(left, number, Axis((*axis.factors[:at], moved, *axis.factors[at + 1 :])))
    return left


@row("aten.slice", "aten.narrow", "aten.slice_copy")
def narrow(operation: Operation) -> Found:
    """Take a range of an axis."""
    axes = operation.own()
    place = positive(operation["dim"], len(axes))
    start = operation["start"] or 0
    start = max(0, start + axes[place].size if start < 0 else start)
    step = operation.get("step", 1)
    return replaced(axes, place, cut(axes[place], start, operation.shape[place], step))


@row("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split", "aten.unsafe_chunk", "aten.tensor_split",
     "aten.unsafe_split_with_sizes", "aten.split_copy", "aten.split_with_sizes_copy")  # fmt: skip
def pieces(operation: Operation) -> Found:
    """Cut an axis into pieces."""
    axes = operation.own()
    place, start = positive(operation["dim"], len(axes)), 0
    found: list[Axes | None] = []
    for part in operation.out:
        found.append(replaced(axes, place, cut(axes[place], start, part.shape[place])))
        start += part.shape[place]
    return found


@row("aten.unbind", "aten.unbind_copy")
def unbind(operation: Operation) -> Found:
    """Take every entry of an axis, which is dropped."""
    axes = operation.own()
    place = positive(operation["dim"], len(axes))
    return [taken(axes, place, entry) for entry in range(len(operation.out))]


@row("aten.cat", "aten.concat")
def cat(operation: Operation) -> Found:
    """Join tensors along an axis; the others have the entries of all."""
    parts = [part for part in operation["tensors"] if part.ndim > 1 or part.numel()] or operation["tensors"]
    known = [operation.axes(part) or constant(part.shape) for part in parts]
    place = positive(operation["dim"], len(known[0]))
    found = []
    for axis in range(len(known[0])):
        here = [axes[axis] for axes in known]
        found.append(joined([one for one in here if one.size]) if axis == place else best(here))
    return tuple(found)


@row("aten.stack")
def stack(operation: Operation) -> Found:
    """Join tensors along a new axis."""
    parts = operation["tensors"]
    axes = broadcast(operation, parts, parts[0].shape)
    place = positive(operation["dim"], len(axes) + 1)
    return (*axes[:place], new("copy", len(parts)) if len(parts) > 1 else Axis(), *axes[place:])


@row("aten.flip")
def flip(operation: Operation) -> Found:
    """Reverse axes."""
    axes = operation.own()
    for dim in operation["dims"]:
        place = positive(dim, len(axes))
        part = axes[place].part
        if part is not None:
            back = part._replace(stride=-part.stride, offset=part.offset + (part.size - 1) * part.stride)
            axes = replaced(axes, place, Axis((back,)))
        elif axes[place].size > 1:
            axes = replaced(axes, place, new("unknown", axes[place].size, f"a flip of {axes[place].name}"))
    return axes


@row("aten.roll")
def roll(operation: Operation) -> Found:
    """Shift axes around."""
    axes = operation.own()
    shifts, dims = operation["shifts"], operation["dims"]
    if not dims:
        return None
    for shift, dim in zip(numbers(shifts, 1), numbers(dims, 1), strict=True):
        place = positive(dim, len(axes))
        part = axes[place].part
        length = 0.0 if part is None else abs(part.size * part.stride)
        if part is None or (part.rolled and part.wrap != length):
            axes = replaced(axes, place, new("unknown", axes[place].size, f"a roll of {axes[place].name}"))
        elif part.source.kind != "extra":
            rolled = (part.rolled + shift * part.stride) % length
            axes = replaced(axes, place, Axis((part._replace(rolled=rolled, wrap=length * bool(rolled)),)))
    return axes


@row("aten.diagonal", "aten.diag_embed", "aten.trace", "aten.diag")
def diagonal(operation: Operation) -> Found:
    """Take the diagonal of two axes as the last axis."""
    axes = operation.own()
    if len(operation.shape) != len(axes) - 1 or "dim1" not in operation:
        return None
    gone = {positive(operation["dim1"], len(axes)), positive(operation["dim2"], len(axes))}
    chosen = best([axes[place] for place in sorted(gone)])
    left = tuple(axis for place, axis in enumerate(axes) if place not in gone)
    size = operation.shape[-1]
    return (*left, chosen if chosen.size == size else cut(chosen, 0, size))


@row("aten.as_strided")
def strided(operation: Operation) -> Found:
    """View memory in another way: each axis of the view with the stride of an axis walks along it."""
    given = operation.first
    axes, strides, sizes = operation.own(), operation["stride"], operation["size"]
    if tuple(sizes) == tuple(given.shape):  # only the strides of axes of size 1 can differ
        return axes
    if not given.is_contiguous() or operation["storage_offset"]:
        return None
    found: list[Axis] = []
    for size, stride in zip(sizes, strides, strict=True):
        place = next((p for p, own in enumerate(given.stride()) if own <= stride and axes[p].size > 1), None)
        if size == 1 or place is None or stride % given.stride(place):
            same = axes[len(found)] if len(found) < len(axes) and axes[len(found)].size == 1 else Axis()
            found.append(same if size == 1 else new("unknown", size, "as_strided"))
        elif stride == given.stride(place) and size == axes[place].size:
            found.append(axes[place])
        elif stride == given.stride(place):
            found.append(new("copy", size))
        else:
            part, step = axes[place].part, stride // given.stride(place)
            window = next((n for n, s in zip(sizes, strides, strict=True) if s == given.stride(place)), 1)
            if part is None:
                found.append(new("unknown", size, "as_strided"))
                continue
            offset = part.offset + (window - 1) / 2 * part.stride
            found.append(Axis((part._replace(size=size, stride=part.stride * step, offset=offset),)))
    return tuple(found)


@row("aten.view_as_real", "aten.view_as_real_copy")
def as_real(operation: Operation) -> Found:
    """Add an axis of real and imaginary parts."""
    return (*operation.own(), new("unit", 2))


@row("aten.view_as_complex")
def as_complex(operation: Operation) -> Found:
    """Merge the last axis of real and imaginary parts."""
    return operation.own()[:-1]


@row("aten.meshgrid", "aten.block_diag", "aten.cartesian_prod")
def grids(operation: Operation) -> Found:
    """Combine vectors: not followed."""
    return None
