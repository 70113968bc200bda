"""Attention: softmax weights, and attention fused into one node.

CP (conservative propagation, Ali et al. 2022) treats the attention weights as constants, so relevance flows through
the values only. Attn (AttnLRP, Achtibat et al. 2024) propagates through the softmax by its first-order Taylor rule and
halves the relevance at each of the two products.
"""

from __future__ import annotations

import torch

from layerlens.analyzers.graph.operation import Fused, Gradients, Kind, Node, Role, Row

from .elementwise import finite
from .rulebook import Rulebook


def fused_attention(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """Multipliers of (query, key, value): (0, 0, 1) of their gradients for CP; (1/4, 1/4, 1/2) for Attn.

    What carries no relevance leaves its share to the other factor of its product, as when the products are separate.
    """
    query, key, value, *_ = (passed is not None for passed in gradients)
    if rulebook.attention == "cp" and value:
        return tuple(passed if slot == 2 else None for slot, passed in enumerate(gradients)), ()
    weights = 0.5 if value else 1.0
    shares = (weights / 2 if key else weights, weights / 2 if query else weights, 0.5 if query or key else 1.0)
    shared = tuple(
        passed * shares[slot] if passed is not None and slot < 3 else None for slot, passed in enumerate(gradients)
    )
    # summed over a sample, value times its gradient is output times gradient, and that of key and query is the same
    rest = [(node._saved_output * gradient).mul_(1 - shares[2] * value)]
    if query or key:
        factor, multiplier = (node._saved_query, shared[0]) if query else (node._saved_key, shared[1])
        rest.append((factor * multiplier).mul_(-2 if query and key else -1))
    return shared, tuple(rest)


def softmax(node: Node) -> tuple[torch.Tensor, ...]:
    """(y, x) of the Taylor rule; log(y) serves as x because the multipliers sum to 0 over the axis."""
    y: torch.Tensor = node.saved_tensors[0] if hasattr(node, "saved_tensors") else node._saved_result
    return y, torch.where(y > 0, torch.log(y), torch.zeros_like(y))


def log_softmax(node: Node) -> tuple[torch.Tensor, ...]:
    """(y, x) of the Taylor rule; y serves as x because the multipliers sum to 0 over the axis."""
    return finite(node._saved_result) * 2


def logarithm(node: Node) -> tuple[torch.Tensor, ...]:
    """(y, x) of the Taylor rule: log has no value at 0 from which a ratio could start."""
    x = node._saved_self
    return finite(torch.log(x), x)


def log_sum_exp(node: Node) -> tuple[torch.Tensor, ...]:
    """(y, x) of the Taylor rule."""
    return finite(node._saved_result, node._saved_self)


_FUSED = """
ScaledDotProductFlashAttentionForCpu ScaledDotProductFlashAttention ScaledDotProductEfficientAttention
ScaledDotProductCudnnAttention ScaledDotProductFusedAttentionOverrideable
""".split()

ATTENTION: dict[str, Row] = {
    **{name: Row(Kind.FUSED, fused_attention, slots=(0, 1, 2), label="attention, {attention}") for name in _FUSED},
    "Softmax": Row(Kind.TAYLOR, softmax, role=Role.WEIGHT),
    "SafeSoftmax": Row(Kind.TAYLOR, softmax, role=Role.WEIGHT),
    "SparseSoftmax": Row(Kind.TAYLOR, softmax, role=Role.WEIGHT),
    "XSoftmax": Row(Kind.TAYLOR, softmax, role=Role.WEIGHT),  # of DeBERTa and SEW-D in transformers, with a mask
    "LogSoftmax": Row(Kind.TAYLOR, log_softmax),
    "Logsumexp": Row(Kind.TAYLOR, log_sum_exp),
    "Logcumsumexp": Row(Kind.TAYLOR, log_sum_exp),
    "Log": Row(Kind.TAYLOR, logarithm),
}
