"""Normalizations: the scale is a constant, the centering stays (Ali et al. 2022, Achtibat et al. 2024)."""

from __future__ import annotations

import torch

from layerlens.analyzers.graph.operation import Kind, Node, Row

_A = torch.ops.aten


def layer_norm(node: Node, gradient: torch.Tensor) -> torch.Tensor:
    """g_x = rstd (w g - mean(w g)) over the normalized axes."""
    rstd, zeros = node._saved_result2, torch.zeros_like(gradient)
    # torch's own kernel at x = 0 with a mean of 0, where the scale has no slope: one pass instead of four
    about = (node._saved_normalized_shape, torch.zeros_like(rstd), rstd, node._saved_weight, None)
    passed: torch.Tensor = _A.native_layer_norm_backward(gradient, zeros, *about, (True, False, False))[0]
    return passed


def group_norm(node: Node, gradient: torch.Tensor) -> torch.Tensor:
    """g_x = rstd (w g - mean(w g)) over each group of channels and all places."""
    samples, groups = int(node._saved_N), int(node._saved_group)
    weighted: torch.Tensor = gradient
    if node._saved_weight is not None:
        weighted = gradient * node._saved_weight.reshape(1, -1, *[1] * (gradient.ndim - 2))
    grouped = weighted.reshape(samples, groups, -1)  # (batch, group, channels in it x places)
    rstd: torch.Tensor = node._saved_result2.reshape(samples, groups, 1).to(gradient.dtype)
    return ((grouped - grouped.mean(dim=-1, keepdim=True)) * rstd).reshape(gradient.shape)


def batch_norm(node: Node) -> Row:
    """With running statistics batch norm is affine, so its gradient is the rule; with batch statistics it is a norm."""
    return Row(Kind.NORM, batch_statistics, slots=(0, 2)) if node._saved_training else Row(Kind.LINEAR, slots=(0, 2))


def batch_statistics(node: Node, gradient: torch.Tensor) -> torch.Tensor:
    """g_x = rstd w (g - mean(g)) over the batch and all places; instance norm is this on reshaped input."""
    axes = (0, *range(2, gradient.ndim))
    shape = (1, -1, *[1] * (gradient.ndim - 2))
    scale: torch.Tensor = node._saved_result2.reshape(shape).to(gradient.dtype)
    if node._saved_weight is not None:
        scale = scale * node._saved_weight.reshape(shape)
    return (gradient - gradient.mean(dim=axes, keepdim=True)) * scale


def rms_norm(node: Node, gradient: torch.Tensor) -> torch.Tensor:
    """g_x = rrms w g; without centering."""
    weight = getattr(node, "_saved_weight", None)
    rrms: torch.Tensor = node._saved_result1.to(gradient.dtype)
    return (gradient if weight is None else gradient * weight) * rrms


NORMALIZATION: dict[str, Row] = {
    "NativeLayerNorm": Row(Kind.NORM, layer_norm, slots=(0, 2), backward=_A.native_layer_norm_backward.default),
    "NativeGroupNorm": Row(Kind.NORM, group_norm, slots=(0, 2), backward=_A.native_group_norm_backward.default),
    "NativeBatchNorm": Row(Kind.NORM, refine=batch_norm),
    "CudnnBatchNorm": Row(Kind.NORM, refine=batch_norm),
    "FusedRmsNorm": Row(Kind.NORM, rms_norm, slots=(0,)),
}
