"""Products of matrices, attention and embeddings: sums over one axis make a new one."""

from __future__ import annotations

from .axis import Axes, Axis, Part, as_keys, best, new, without
from .table import Found, Operation, constant, row
from .windows import note


def product(operation: Operation, left: Axes | None, right: Axes | None) -> Axes:
    """Return the axes of `left @ right`; None for a constant one."""
    shape = operation.shape
    if left is None and right is None:
        return constant(shape)
    if (left is not None and len(left) == 1) or (right is not None and len(right) == 1):
        return _vector(left, right, len(shape))
    rows = left[-2] if left is not None else new("unit", shape[-2])
    columns = right[-1] if right is not None else new("unit", shape[-1])
    compared = left is not None and right is not None and not any(part.key for part in left[-1].parts())
    if compared and any(part.source.kind == "input" for part in rows.parts()):
        if len(shape) > 2:
            note(columns, "attended")
        columns = as_keys(columns)
    if left is None:
        columns_of = right[-2] if right is not None else None
        note_sum(columns_of, with_constant=True)
    elif right is None:
        note_sum(left[-1], with_constant=True)
    lead: list[Axis] = []
    for place in range(len(shape) - 2):
        back = place - len(shape)
        here = [axes[back] for axes in (right, left) if axes is not None and len(axes) >= -back]
        here = [axis for axis in here if axis.size == shape[place]]
        lead.append(best(here) if here else new("extra", shape[place]) if shape[place] > 1 else Axis())
        if left is not None and right is not None:
            for axis in here:
                heads(axis, operation.layer)
    found: Axes = (*lead, rows, columns)
    for axes, place in ((left, -1), (right, -2)):
        if axes is not None and len(axes) >= 2:
            found = without(found, axes[place])
    return found


def _vector(left: Axes | None, right: Axes | None, rank: int) -> Axes:
    if left is not None and len(left) == 1:
        return (
            (*(right[:-2] if right is not None else ()), *(right[-1:] if right is not None else (new("unit", 1),)))[
                -rank:
            ]
            if rank
            else ()
        )
    return left[:-1] if left is not None else tuple(new("unit", 1) for _ in range(rank))


def note_sum(axis: Axis | None, *, with_constant: bool) -> None:
    """Note that a layer summed over an axis of an input."""
    if axis is None or not with_constant:
        return
    note(axis, "contracted" if axis.part is not None else "contracted with others")
    patch = [part for part in axis.parts() if part.inner and part.source.kind == "input"]
    if len(patch) > 1 and all(isinstance(factor, Part) for factor in axis.factors):  # windows that do not overlap
        patch.sort(key=lambda part: part.source.origin or ("", 0))
        for place, part in enumerate(patch):
            part.source.roles.setdefault(f"window {place} of {len(patch)}", len(part.source.roles))
        for part in axis.parts():
            if part not in patch and not part.outer:
                note(Axis((part,)), "contracted")


def heads(axis: Axis, layer: str) -> None:
    """Note the blocks of units that attention in a layer keeps apart."""
    for part in axis.parts():
        if part.source.kind == "unit" and part.outer:
            part.source.heads[part.size, part.stride] = layer


@row("aten.mm", "aten.bmm", "aten.matmul", "aten.mv", "aten.dot", "aten._int_mm", "aten._scaled_mm")
def multiply(operation: Operation) -> Found:
    """Multiply two matrices."""
    left, right = operation.tensors()[:2]
    return product(operation, operation.axes(left), operation.axes(right))


@row("aten.addmm", "aten.baddbmm", "aten._addmm_activation", "aten.addmv", "aten.addbmm")
def multiply_add(operation: Operation) -> Found:
    """Multiply two matrices and add a third."""
    added, left, right = operation.tensors()[:3]
    found = product(operation, operation.axes(left), operation.axes(right))
    own = operation.axes(added)
    if own is None:
        return found
    shift = len(found) - len(own)
    return tuple(best([axis, own[place - shift]]) if place >= shift and own[place - shift].size == axis.size else axis
                 for place, axis in enumerate(found))  # fmt: skip


@row("aten._grouped_mm", "aten._scaled_grouped_mm")
def multiply_groups(operation: Operation) -> Found:
    """Multiply groups of rows, each by the weights of its own expert; the unit axis is new."""
    axes = operation.own()
    if len(axes) != 2 or len(operation.shape) != 2:
        return None
    note_sum(axes[1], with_constant=True)
    return without((axes[0], new("unit", operation.shape[1])), axes[1])


@row("aten.einsum")
def einsum(operation: Operation) -> Found:
    """Multiply entries with the same letters and sum over the letters that the result has not."""
    given, arrow, wanted = operation["equation"].replace(" ", "").partition("->")
    tensors, texts = operation["tensors"], given.split(",")
    letters = [_letters(text, tensor.ndim - len(text.replace("...", "")))
               for text, tensor in zip(texts, tensors, strict=True)]  # fmt: skip
    every = [letter for series in letters for letter in series]
    kept: list[str | int]
    if arrow:
        kept = _letters(wanted, -min((one for one in every if isinstance(one, int)), default=0))
    else:
        kept = sorted({one for one in every if isinstance(one, int) or every.count(one) == 1},
                      key=lambda one: (isinstance(one, str), one))  # fmt: skip
    known = [(series, axes) for series, axes in zip(letters, map(operation.axes, tensors), strict=True) if axes]
    found: list[Axis] = []
    for letter, size in zip(kept, operation.shape, strict=True):
        here = [axes[series.index(letter)] for series, axes in known if letter in series]
        here = [axis for axis in here if axis.size == size]
        if len(here) > 1:
            for axis in here:
                heads(axis, operation.layer)
        found.append(best(here) if here else new("unit", size) if size != 1 else Axis())
    summed = set(every) - set(kept)
    result: Axes = tuple(found)
    for series, axes in known:
        for letter, axis in zip(series, axes, strict=True):
            if letter in summed:
                with_constant = any(letter in other and operation.axes(tensor) is None
                                    for other, tensor in zip(letters, tensors, strict=True))  # fmt: skip
                note_sum(axis, with_constant=with_constant)
                result = without(result, axis)
    return result


def _letters(text: str, more: int) -> list[str | int]:
    """Return one letter an axis; the `more` axes of `...` have negative numbers, counted from the last of them."""
    front, dots, back = text.partition("...")
    return [*front, *range(-more if dots else 0, 0), *back]


@row("aten.linear", "aten.mkldnn_linear", "aten._trilinear", "quantized.linear", "quantized.linear_dynamic",
     "quantized.linear_relu", "quantized.linear_relu_dynamic", "aten._weight_int8pack_mm", "aten._weight_int4pack_mm",
     "aten._sparse_semi_structured_linear", "quantized.linear_dynamic_fp16", "onednn.qlinear_pointwise")  # fmt: skip
def linear(operation: Operation) -> Found:
    """Sum over the last axis; the unit axis is new."""
    axes = operation.axes(operation.first)
    if axes is None:
        others = [found for found in map(operation.axes, operation.tensors()) if found is not None]
        return (*others[0][:-1], new("unit", operation.shape[-1])) if len(others[0]) == len(operation.shape) else None
    note_sum(axes[-1], with_constant=True)
    return without((*axes[:-1], new("unit", operation.shape[-1])), axes[-1])


@row("flex_attention", *(f"aten.{name}" for name in """_scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math
    scaled_dot_product_attention _scaled_dot_product_fused_attention_overrideable""".split()))  # fmt: skip
def attention(operation: Operation) -> Found:
    """Sum the values over the places that are attended to."""
    query, key, value = (operation.axes(operation[name]) for name in ("query", "key", "value"))
    known = query or value
    if known is None:
        return None
    rank = len(operation.shape)
    if key is not None:
        note(key[-2], "attended")
    lead: list[Axis] = []
    for place in range(rank - 2):
        here = [
            axes[place] for axes in (value, query) if axes is not None and axes[place].size == operation.shape[place]
        ]
        for axis in (*here, *(key[place : place + 1] if key is not None else ())):
            heads(axis, operation.layer)
        lead.append(best(here) if here else new("extra", operation.shape[place]))
    rows = query[-2] if query is not None else new("extra", operation.shape[-2])
    columns = value[-1] if value is not None else new("unit", operation.shape[-1])
    if columns.size != operation.shape[-1]:
        columns = new("unit", operation.shape[-1])
    found = (*lead, rows, columns)
    return found if hasattr(operation.out, "shape") else [found, *(None for _ in operation.out[1:])]


@row("aten.embedding", "aten.embedding_renorm")
def embedding(operation: Operation) -> Found:
    """Look up a row of units for every id."""
    indices = operation["indices"]
    axes = operation.axes(indices)
    if axes is None:
        return (*constant(indices.shape), *(operation.axes(operation["weight"]) or constant(operation.shape))[-1:])
    for axis in axes:
        note(axis, "looked up")
    return (*axes, new("unit", operation.shape[-1]))


@row("aten._embedding_bag", "aten._embedding_bag_forward_only", "aten.embedding_bag")
def embedding_bag(operation: Operation) -> Found:
    """Sum the rows of bags of ids."""
    axes = operation.axes(operation["indices"])
    if axes is not None:
        for axis in axes:
            note(axis, "looked up")
    offsets = operation.axes(operation["offsets"])
    first = axes[0] if axes is not None and axes[0].size == operation.shape[0] else offsets[0] if offsets else None
    first = first or new("unknown", operation.shape[0], "bags of ids")
    return [(first, new("unit", operation.shape[-1])), *(None for _ in operation.out[1:])]


@row("aten._cdist_forward", "aten.cdist")
def distances(operation: Operation) -> Found:
    """Compare every row of one tensor with every row of another."""
    left, right = operation.axes(operation["x1"]), operation.axes(operation["x2"])
    known = left or right or ()
    rows = left[-2] if left else new("unit", operation.shape[-2])
    columns = right[-2] if right else new("unit", operation.shape[-1])
    for axes in (left, right):
        if axes is not None:
            note_sum(axes[-1], with_constant=left is None or right is None)
    return (*known[:-2], rows, columns)


@row("aten._fft_r2c", "aten._fft_c2r", "aten.fft_rfft", "aten.fft_irfft")
def transform(operation: Operation) -> Found:
    """Turn places into frequencies, or back, along some axes."""
    axes = list(operation.own())
    for place in operation["dim"]:
        axes[place] = new("unit", operation.shape[place]) if operation.shape[place] > 1 else Axis()
    return tuple(axes)
