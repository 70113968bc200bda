"""Operations that read windows of places: convolutions, pooling, padding, resizing."""

from __future__ import annotations

from typing import Any

from .axis import Axes, Axis, Part, Source, joined, new, without
from .pointwise import pooled
from .roles import SPACE
from .table import Found, Operation, numbers, row


def moved(axis: Axis, size: int, stride: float, shift: float, why: str) -> Axis:
    """Return an axis whose entry `i` covers what lies around entry `shift + i * stride` of `axis`."""
    part = axis.part
    if part is not None:
        note(axis, "windowed")
        if size == axis.size and stride == 1 and not shift:
            return axis
        return Axis((part._replace(size=size, stride=part.stride * stride,
                                         offset=part.offset + shift * part.stride),))  # fmt: skip
    if not axis.factors:
        return axis if size == 1 else new("copy" if why == "resizing" else "unit", size)
    if size == axis.size and stride == 1:
        return axis
    return new("unknown", size, f"{why} over {axis.name}") if size > 1 else pooled(axis)


def note(axis: Axis, role: str) -> None:
    """Note what an operation did to the sources of an axis."""
    alone = axis.part
    for part in axis.parts() if alone is None else (alone,):
        if part.source.kind == "input" and (role != "contracted" or not part.inner):
            part.source.roles.setdefault(role, len(part.source.roles))


def _spatial(axes: Axes, count: int) -> None:
    """Note how many places a window spans."""
    for place, axis in enumerate(axes[-count:]):
        part = axis.part
        if part is not None and part.source.kind == "input" and not part.outer and not part.inner:
            part.source.roles.setdefault(f"window {place} of {count}", len(part.source.roles))


@row("aten.convolution", "aten._convolution", "aten.mkldnn_convolution", "aten.cudnn_convolution",
     "aten.convolution_overrideable", "aten.conv2d", "aten.conv1d", "aten.conv3d")  # fmt: skip
def convolution(operation: Operation) -> Found:
    """Sum over channels and windows; the unit axis is new."""
    signal = operation["input"] if "input" in operation else operation["self"]
    axes, weight = operation.axes(signal), operation["weight"]
    count = weight.ndim - 2
    if axes is None:  # a constant picture with computed weights
        return tuple(new("unit", size) if size != 1 else Axis() for size in operation.shape)
    batched = len(axes) == count + 2
    axes = axes if batched else (Axis(), *axes)
    shape = operation.shape if batched else (1, *operation.shape)
    transposed = "transposed" in operation and operation["transposed"]
    stride, padding, dilation = (numbers(operation[name], count) for name in ("stride", "padding", "dilation"))
    note(axes[1], "contracted")
    note(axes[1], "convolved")
    _spatial(axes, count)
    found = [axes[0], new("unit", shape[1])]
    for place, name in enumerate(SPACE.get(count, ())):
        if all(part.source.kind in ("unit", "copy") for part in axes[2 + place].parts()) and shape[2 + place] > 1:
            found.append(_made(axes[2 + place], shape[2 + place], name))
            continue
        kernel = (weight.shape[2 + place] - 1) * dilation[place] / 2 - padding[place]
        step, shift = (1 / stride[place], -kernel / stride[place]) if transposed else (stride[place], kernel)
        found.append(moved(axes[2 + place], shape[2 + place], step, shift, "a convolution"))
    whole = without(found, axes[1])
    return whole if batched else whole[1:]


def _made(axis: Axis, size: int, name: str) -> Axis:
    """Return the places of a grid that the model makes itself, of units that lie on it; notes where they do."""
    for part in axis.parts():
        if part.inner or part.outer:
            part.source.grids[part.size, part.stride] = name
    return Axis((Part(Source("extra", size, name), size),))


@row("torchvision.deform_conv2d")
def deformable(operation: Operation) -> Found:
    """Sum over channels and windows whose places are shifted by offsets."""
    axes, weight = operation.axes(operation["input"]), operation["weight"]
    if axes is None:
        return None
    found = [axes[0], new("unit", operation.shape[1])]
    for place, letter in enumerate("hw"):
        step = operation[f"stride_{letter}"]
        kernel = (weight.shape[2 + place] - 1) * operation[f"dilation_{letter}"] / 2 - operation[f"pad_{letter}"]
        found.append(moved(axes[2 + place], operation.shape[2 + place], step, kernel, "a convolution"))
    note(axes[1], "contracted")
    return tuple(found)


@row(*(f"aten.{name}" for name in """max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d avg_pool1d
    max_pool1d mkldnn_max_pool2d mkldnn_max_pool3d max_pool2d max_pool3d quantized_max_pool2d quantized_max_pool1d
    max_pool1d_with_indices""".split()))  # fmt: skip
def pool(operation: Operation) -> Found:
    """Pool windows of places."""
    count = next(int(digit) for digit in operation.name if digit.isdigit())
    axes = operation.own()
    kernel = numbers(operation["kernel_size"], count)
    stride = numbers(operation["stride"], count) or kernel
    padding = numbers(operation["padding"], count)
    dilation = numbers(operation["dilation"], count) if "dilation" in operation else [1] * count
    _spatial(axes, count)
    found = list(axes[:-count])
    for place in range(count):
        shift = (kernel[place] - 1) * dilation[place] / 2 - padding[place]
        found.append(moved(axes[place - count], operation.shape[place - count], stride[place], shift, "pooling"))
    return _repeated(operation, tuple(found))


def _repeated(operation: Operation, axes: Axes) -> Found:
    return axes if hasattr(operation.out, "shape") else [axes] * len(operation.out)


_RESIZES = """_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d
    adaptive_max_pool3d mkldnn_adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_lanczos2d_aa adaptive_max_pool1d"""


@row(*(f"aten.{name}" for name in _RESIZES.split()))
def resize(operation: Operation) -> Found:
    """Resize places: entries keep the extent of the whole."""
    count = next(int(digit) for digit in operation.name if digit.isdigit())
    axes = operation.own()
    corners = "align_corners" in operation and operation["align_corners"]
    _spatial(axes, count)
    found = list(axes[:-count])
    for place in range(count):
        before, after = axes[place - count], operation.shape[place - count]
        if corners:
            step, shift = (before.size - 1) / max(after - 1, 1), 0.0
        else:
            step = before.size / after
            shift = (step - 1) / 2
        found.append(moved(before, after, step, shift, "resizing"))
    return _repeated(operation, tuple(found))


@row(*(f"aten.{name}" for name in """constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d""".split()))  # fmt: skip
def pad(operation: Operation) -> Found:
    """Add places around those of the input."""
    found, padding = list(operation.own()), operation["pad" if "pad" in operation else "padding"]
    for pair in range(len(padding) // 2):
        place, before, after = len(found) - 1 - pair, padding[2 * pair], padding[2 * pair + 1]
        if before or after:
            found[place] = _padded(found[place], before, after)
    return tuple(found)


def _padded(axis: Axis, before: int, after: int) -> Axis:
    part, size = axis.part, axis.size + before + after
    if part is not None and part.source.kind == "input" and not (part.rolled and before):
        return Axis((part._replace(size=size, offset=part.offset - before * part.stride),))
    if part is not None and part.source.kind == "unit":
        return new("unit", size)
    if axis.factors and before >= 0 and after >= 0:
        extra = [new("extra", count) if count else None for count in (before, after)]
        return joined(one for one in (extra[0], axis, extra[1]) if one is not None)
    return new("unknown", size, f"padding of {axis.name}") if size != 1 else Axis()


@row("aten.unfold")
def unfold(operation: Operation) -> Found:
    """Read windows along one axis; the places inside a window are a last axis."""
    axes, place = operation.own(), operation["dimension"] % len(operation.own())
    size, step = operation["size"], operation["step"]
    part, inside = axes[place].part, new("copy", size)
    count = operation.shape[place]
    if part is not None and size == step:
        inside = Axis((part._replace(size=size, offset=0.0, inner=True),))
        blocks = Axis((part._replace(size=count, stride=part.stride * step, outer=True),))
    else:
        blocks = moved(axes[place], count, step, (size - 1) / 2, "windows")
    note(axes[place], "windowed")
    return (*axes[:place], blocks, *axes[place + 1 :], inside)


@row("aten.im2col")
def columns(operation: Operation) -> Found:
    """Read windows of a picture as columns of units."""
    axes, shape = operation.own(), operation.first.shape
    kernel, dilation, padding, stride = (numbers(operation[name], 2) for name in
                                         ("kernel_size", "dilation", "padding", "stride"))  # fmt: skip
    factors: list[Any] = []
    for place in range(2):
        extent = (kernel[place] - 1) * dilation[place]
        count = (shape[place - 2] + 2 * padding[place] - extent - 1) // stride[place] + 1
        axis = moved(axes[place - 2], count, stride[place], extent / 2 - padding[place], "windows")
        factors.extend(axis.factors)
    _spatial(axes, 2)
    note(axes[-3], "contracted")
    places = (
        Axis(factors) if Axis(factors).size == operation.shape[-1] else new("unknown", operation.shape[-1], "unfold")
    )
    return (*axes[:-3], new("unit", operation.shape[-2]), places)


@row("aten.col2im")
def from_columns(operation: Operation) -> Found:
    """Add up columns as overlapping windows of a picture."""
    axes, sizes = operation.own(), operation["output_size"]
    kernel, dilation, padding, stride = (numbers(operation[name], 2) for name in
                                         ("kernel_size", "dilation", "padding", "stride"))  # fmt: skip
    factors = [factor for factor in axes[-1].factors if factor.size > 1]
    places: list[Axis] = []
    for place in range(2):
        factor = factors[place] if len(factors) == 2 else None
        shift = -((kernel[place] - 1) * dilation[place] / 2 - padding[place]) / stride[place]
        places.append(moved(Axis((factor,)), sizes[place], 1 / stride[place], shift, "folding")
                      if isinstance(factor, Part) else new("unknown", sizes[place], "folding"))  # fmt: skip
    return (*axes[:-2], new("unit", operation.shape[-3]), *places)


@row("aten.pixel_shuffle")
def shuffle(operation: Operation) -> Found:
    """Spread units over places."""
    axes, factor = operation.own(), operation["upscale_factor"]
    shift = -(factor - 1) / 2 / factor
    places = [moved(axis, axis.size * factor, 1 / factor, shift, "pixel shuffling") for axis in axes[-2:]]
    return (*axes[:-3], new("unit", operation.shape[-3]), *places)


@row("aten.pixel_unshuffle")
def unshuffle(operation: Operation) -> Found:
    """Stack neighboring places as units."""
    axes, factor = operation.own(), operation["downscale_factor"]
    places = [moved(axis, axis.size // factor, factor, (factor - 1) / 2, "pixel unshuffling") for axis in axes[-2:]]
    note(axes[-3], "contracted")
    return (*axes[:-3], new("unit", operation.shape[-3]), *places)


@row("aten.grid_sampler_2d", "aten.grid_sampler_3d", "aten.cudnn_grid_sampler", "aten._grid_sampler_2d_cpu_fallback")
def sample(operation: Operation) -> Found:
    """Read a picture at computed places."""
    axes = operation.axes(operation["input"]) or operation.axes(operation["grid"])
    if axes is None:
        return None
    grid = operation.axes(operation["grid"])
    places = grid[1:-1] if grid is not None else tuple(
        new("unknown", size, "grid sampling reads computed places") for size in operation.shape[2:])  # fmt: skip
    return (axes[0], axes[1] if operation.axes(operation["input"]) else new("unit", operation.shape[1]), *places)


@row("torchvision.roi_align", "torchvision.roi_pool", "torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def regions(operation: Operation) -> Found:
    """Read a picture at computed boxes: the first axis counts boxes."""
    axes = operation.axes(operation["input"])
    if axes is None:
        return None
    boxes = new("unknown", operation.shape[0], "boxes")
    places = [new("unknown", size, "places inside of boxes") for size in operation.shape[2:]]
    found = (boxes, axes[1] if axes[1].size == operation.shape[1] else new("unit", operation.shape[1]), *places)
    return found if hasattr(operation.out, "shape") else [found, None]
