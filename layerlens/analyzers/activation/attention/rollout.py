"""Attention rollout: how far attention carries each input token through a stack of layers."""

from __future__ import annotations

import torch

from layerlens.errors import InputError, OptionError
from layerlens.results import AttentionWeights
from layerlens.signatures import public


@public
def attention_rollout(weights: AttentionWeights, *, residual: float = 0.5) -> torch.Tensor:
    """Compute how much each input token reaches each output token through all layers, `(batch, query, key)`.

    The product over layers of (1 - residual) A + residual I, with A the mean over heads; rows sum to 1. It shows the
    routing alone: values, feed-forward parts and the target do not enter.

    Args:
        weights: weights of a stack of self-attention layers over the same tokens, in their order.
        residual: share of the skip connection, from 0 to below 1.

    Raises:
        InputError: when the layers do not attend from and to the same tokens, or hold only a part of them.
        OptionError: when `residual` is out of range.

    Source: Abnar & Zuidema 2020, ACL, eq. 1 and section 3.

    Example:
        >>> attention = torch.full((1, 2, 3, 3), 1 / 3)
        >>> attention_rollout(AttentionWeights("Net", {"a": attention}, {"a": "by hand"}))[0, 0]
        tensor([0.6667, 0.1667, 0.1667])
    """
    if not 0 <= residual < 1:
        raise OptionError(f"residual={residual!r} is the share of the skip connection; give 0 to below 1.")
    if weights.queries or weights.keys:
        raise InputError("attention rollout needs all queries and keys; these weights hold a part of them.")
    shapes = {(tensor.shape[0], *tensor.shape[-2:]) for tensor in weights.weights.values()}
    if len(shapes) != 1 or len({size for shape in shapes for size in shape[1:]}) != 1:
        sizes = {shape[1:] for shape in shapes}
        listed = ", ".join(map(str, sorted(sizes)))
        if len(sizes) == 1 and len({*next(iter(sizes))}) == 1:
            listed += f" for {' and '.join(str(shape[0]) for shape in sorted(shapes))} rows: attention within windows"
        raise InputError(
            "attention rollout needs a stack of self-attention layers over the same tokens; these are of sizes "
            f"{listed}. Take a part: attention(..., layers)."
        )
    first = next(iter(weights.weights.values()))
    wide = torch.promote_types(first.dtype, torch.float32)
    eye = torch.eye(first.shape[-1], dtype=wide, device=first.device)
    total = eye.expand(first.shape[0], -1, -1)
    for tensor in weights.weights.values():
        step = (1 - residual) * tensor.to(wide).mean(dim=1) + residual * eye  # (batch, query, key)
        total = step / step.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(wide).tiny) @ total
    return total
