"""Operations that keep every axis of their input, and those that sum over some."""

from __future__ import annotations

from .axis import Axes, Axis, new, without
from .table import Found, Operation, broadcast, positive, replaced, row

_SAME = """alias clone detach _to_copy to contiguous lift_fresh dropout native_dropout alpha_dropout feature_dropout
    _softmax _log_softmax softmax log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp tril triu
    fill zero masked_fill where renorm bernoulli bucketize searchsorted
    native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _batch_norm_no_update _batch_norm_with_update cudnn_batch_norm
    _fused_rms_norm rms_norm layer_norm batch_norm group_norm instance_norm _prelu_kernel prelu glu_jvp rrelu
    rrelu_with_noise gelu silu mish hardswish hardsigmoid hardtanh elu celu selu softplus softshrink hardshrink
    threshold relu relu6 leaky_relu log_sigmoid log_sigmoid_forward _conj conj resolve_conj resolve_neg nan_to_num
    addcmul addcdiv lerp fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
    _weight_norm_interface poisson normal uniform exponential random masked_scatter
    index_fill slice_scatter select_scatter diagonal_scatter as_strided_scatter put
    _fft_c2c fft_fftshift native_channel_shuffle
    channel_shuffle quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize _pin_memory
    view_as_complex_copy real imag flip_copy rot90 set_data requires_grad _local_scalar_dense _nested_tensor_size"""


@row(*(f"aten.{name}" for name in _SAME.split()))
def same(operation: Operation) -> Found:
    """Keep the axes, by broadcasting; further outputs are statistics without places."""
    if isinstance(operation.out, (tuple, list)):
        axes = broadcast(operation, operation.tensors(), operation.shape)
        return [
            axes,
            *(axes if part is not None and part.shape == operation.shape else None for part in operation.out[1:]),
        ]
    return broadcast(operation, operation.tensors(), operation.shape)


@row("aten.copy")
def copy(operation: Operation) -> Found:
    """Take the entries of another tensor."""
    own, other = operation.own(), operation.axes(operation["src"])
    given = other or ()
    shift = len(own) - len(given)
    return tuple(given[place - shift] if place >= shift and given[place - shift].size == axis.size else axis
                 for place, axis in enumerate(own))  # fmt: skip


@row("aten.glu")
def glu(operation: Operation) -> Found:
    """Multiply the first half of the units by a gate."""
    axes, place = operation.own(), positive(operation["dim"], len(operation.own()))
    return replaced(axes, place, new("unit", operation.shape[place]))


_REDUCTIONS = """mean sum amax amin std var std_mean var_mean max min median nanmedian mode logsumexp norm
    linalg_vector_norm prod any all argmax argmin nansum nanmean count_nonzero aminmax kthvalue _logsumexp
    softmax_backward"""


@row(*(f"aten.{name}" for name in _REDUCTIONS.split()))
def reduce(operation: Operation) -> Found:
    """Drop the axes that are summed over, or keep one entry at their center."""
    others = [tensor for tensor in operation.tensors()[1:] if operation.axes(tensor) is not None]
    if "other" in operation and others:  # max(a, b) of two tensors
        return broadcast(operation, operation.tensors(), operation.shape)
    axes = operation.own()
    dims = operation.get("dim", None)
    chosen = range(len(axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {positive(place, len(axes)) for place in chosen} if axes else set()
    keep = "keepdim" in operation and operation["keepdim"]
    found: Axes = tuple(pooled(axis) if place in gone else axis for place, axis in enumerate(axes))
    for place in gone:
        found = without(found, axes[place])
    if not keep:
        found = tuple(axis for place, axis in enumerate(found) if place not in gone)
    return found if hasattr(operation.out, "shape") else [found] * len(operation.out)


def pooled(axis: Axis) -> Axis:
    """Return the axis of the one entry that covers all entries of `axis`."""
    part = axis.part
    if part is None:
        return Axis()
    center = part.offset + (part.size - 1) / 2 * part.stride
    return Axis((part._replace(size=1, stride=part.stride * part.size, offset=center),))


@row("aten.topk", "aten.sort", "aten.argsort", "aten.unique_dim", "aten.multinomial", "aten.histc")
def sort(operation: Operation) -> Found:
    """Reorder entries by their values: what an entry of that axis is, depends on the numbers."""
    axes = operation.own()
    place = positive(operation.get("dim", -1), len(axes))
    out = operation.out if isinstance(operation.out, (tuple, list)) else (operation.out,)
    size = out[0].shape[place]
    axis = new("unknown", size, f"{operation.name} orders the entries by their values") if size != 1 else Axis()
    found = replaced(axes, place, axis)
    return [found] * len(out) if isinstance(operation.out, (tuple, list)) else found
