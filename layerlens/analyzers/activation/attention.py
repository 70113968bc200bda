"""Attention weights of any model, also where the kernel that is used never writes them down."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ...borrow import borrowed
from ...errors import InputError
from ...functions import function_name
from ...inputs import as_inputs
from ...layers import Layers, Selection
from ...results import AttentionWeights
from ...spans import Running

_PASSES = {"dropout", "to", "type", "type_as", "half", "float", "bfloat16", "contiguous", "view", "reshape", "expand"}
"""Functions after which attention weights are still attention weights."""


def attention_weights(
    model: nn.Module, x: Any, layers: Selection = None, *, forward: Callable[..., Any] | None = None
) -> AttentionWeights:
    """The weights of every attention in a model: softmax(q k^T / sqrt(d) + mask), one matrix per head and query.

    The model runs once as it is, in eval mode and without gradients. Where it calls
    `F.scaled_dot_product_attention` (whichever kernel answers), the weights are computed from the same arguments;
    where it writes attention out, they are the softmax over the last axis that values are multiplied with; those of
    `nn.MultiheadAttention` are asked for beside its output. Memory: batch x heads x queries x keys for each.

    Args:
        model: any module.
        x: its input.
        layers: attention inside of which layers; None for all.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Raises:
        InputError: when no attention was found.
        LayerNotFound: when the selection matches no layer.

    Source: Vaswani et al. 2017, eq. 1.

    Example:
        >>> layer = nn.MultiheadAttention(4, 2, batch_first=True)
        >>> class Self(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.attention = layer
        ...     def forward(self, x):
        ...         return self.attention(x, x, x)[0]
        >>> attention_weights(Self(), torch.ones(1, 3, 4))["attention"].shape
        torch.Size([1, 2, 3, 3])
    """
    inside = None if layers is None else set(Layers(model).select(layers))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which would hide an encoder layer in one kernel
    try:
        with borrowed(model, grad=False), Running(model) as running, _Watch(running, inside) as watch:
            as_inputs(x).run(model, forward)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if not watch.found:
        raise InputError(
            f"no attention was found in {type(model).__name__}: neither F.scaled_dot_product_attention, nor "
            "nn.MultiheadAttention, nor a softmax over the last axis that is multiplied with values."
        )
    return AttentionWeights(type(model).__name__, watch.found, watch.how)


class _Watch(TorchFunctionMode):
    def __init__(self, running: Running, inside: set[str] | None) -> None:
        super().__init__()
        self.found: dict[str, torch.Tensor] = {}
        self.how: dict[str, str] = {}
        self._running, self._inside = running, inside
        self._softmax: dict[int, tuple[torch.Tensor, torch.Tensor, str]] = {}  # what may be weights, by identity
        self._counts: Counter[str] = Counter()

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            self._add(self._running.layer, fused_weights(*args, **kwargs), "scaled_dot_product_attention")
        elif function is F.multi_head_attention_forward:
            asked = kwargs | {"need_weights": True, "average_attn_weights": False}
            weights = function(*args, **asked)[1]
            self._add(self._running.layer, weights if weights.ndim == 4 else weights.unsqueeze(0), "MultiheadAttention")
        else:
            self._follow(function, args, result)
        return result

    def _follow(self, function: Callable[..., Any], args: tuple[Any, ...], result: Any) -> None:
        """Find attention that is written out: a softmax over the last axis, and a product with values."""
        name = function_name(function)
        if name == "softmax" and isinstance(result, torch.Tensor) and result.ndim >= 3:
            rows = result.sum(dim=-1)
            if torch.allclose(rows[rows != 0], torch.ones((), dtype=rows.dtype, device=rows.device), atol=0.02):
                self._softmax[id(result)] = (result, result.detach().clone(), self._running.layer)
        elif args and id(args[0]) in self._softmax:
            held = self._softmax[id(args[0])]
            if name in ("matmul", "bmm", "baddbmm"):
                self._add(held[2], held[1], "softmax and product")
                self._softmax.clear()
            elif name in _PASSES and isinstance(result, torch.Tensor) and result.shape[-2:] == held[1].shape[-2:]:
                self._softmax[id(result)] = (result, *held[1:])

    def _add(self, layer: str, weights: torch.Tensor, how: str) -> None:
        if self._inside is not None and not any(
            layer == chosen or layer.startswith(f"{chosen}.") for chosen in self._inside
        ):
            return
        index = self._counts[layer]
        self._counts[layer] += 1
        name = f"{layer or '(model)'}#{index}" if index else layer or "(model)"
        self.found[name], self.how[name] = weights.detach(), how


def fused_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The weights that `F.scaled_dot_product_attention` uses and does not return, `(batch, head, query, key)`.

    Rows of which every key is masked are 0, as the kernel's output is.
    """
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = (query @ key.transpose(-1, -2)).float() * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if query.dtype == torch.float64:
        scores = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, dim=-1).nan_to_num(nan=0.0).to(query.dtype)


def attention_rollout(weights: AttentionWeights, *, residual: float = 0.5) -> torch.Tensor:
    """How much each input token reaches each output token through all layers, `(batch, query, key)`.

    The product over layers of (1 - residual) A + residual I, with A the mean over heads; rows sum to 1.

    Args:
        weights: of a stack of self-attention layers, in their order.
        residual: share of the skip connection.

    Raises:
        InputError: when the layers do not attend from and to the same tokens.

    Source: Abnar & Zuidema 2020, ACL, eq. 1.
    """
    shapes = {(tensor.shape[0], *tensor.shape[-2:]) for tensor in weights.weights.values()}
    if len(shapes) != 1 or len({size for shape in shapes for size in shape[1:]}) != 1:
        raise InputError(
            "attention rollout needs a stack of self-attention layers over the same tokens; these are of sizes "
            f"{', '.join(str(shape[1:]) for shape in sorted(shapes))}. Take a part: attention_weights(..., layers)."
        )
    total: torch.Tensor | None = None
    for tensor in weights.weights.values():
        mean = tensor.float().mean(dim=1) if tensor.ndim == 4 else tensor.float()
        step = (1 - residual) * mean + residual * torch.eye(mean.shape[-1], device=mean.device)
        step = step / step.sum(dim=-1, keepdim=True)
        total = step if total is None else step @ total
    assert total is not None
    return total
