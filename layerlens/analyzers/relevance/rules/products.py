"""Products: linear in each factor. One factor that carries relevance takes all; two share by rule."""

from __future__ import annotations

import torch

from layerlens.analyzers.graph.operation import Fused, Gradients, Kind, Node, Role, Row

from .elementwise import quotient
from .rulebook import Rulebook


def glu(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """Two halves, a sigmoid(b), in one node: all to a, or half to each, b by the ratio (sigmoid(b) - 1/2) / b."""
    axis = int(node._saved_dim)
    axis = axis - (1 << 64) if axis >= 1 << 63 else axis  # saved without its sign
    signal, gate = node._saved_self.chunk(2, dim=axis)
    weight = torch.sigmoid(gate)
    if rulebook.product == "gate":
        return (torch.cat([gradient * weight, torch.zeros_like(gate)], dim=axis),), ()
    half = gradient / 2
    ratio = quotient(torch.tanh(gate / 2) / 2, gate, 0.25)
    return (torch.cat([half * weight, half * signal * ratio], dim=axis),), (half * signal / 2,)


def division(node: Node) -> Row:
    """All to the numerator; one that rounds has no useful slope."""
    if getattr(node, "_saved_rounding_mode", None):
        return Row(Kind.STOP)
    return Row(Kind.LINEAR, slots=(0,), role=Role.SAME)


def product(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """A product of n numbers: x_i dy/dx_i = y for each, so each takes an n-th."""
    (passed, *_) = gradients
    x = node._saved_self
    count = x.shape[node._saved_dim] if hasattr(node, "_saved_dim") else x.numel()
    return (None if passed is None else passed / count,), ()


# Factors by slot; every other slot adds. Relevance of added constants is the ledger's business.
PRODUCTS: dict[str, Row] = {
    "Mul": Row(Kind.PRODUCT, slots=(0, 1), role=Role.SAME),
    "Mm": Row(Kind.PRODUCT, slots=(0, 1)),
    "Bmm": Row(Kind.PRODUCT, slots=(0, 1)),
    "Dot": Row(Kind.PRODUCT, slots=(0, 1)),
    "Vdot": Row(Kind.PRODUCT, slots=(0, 1)),
    "Mv": Row(Kind.PRODUCT, slots=(0, 1)),
    "Linear": Row(Kind.PRODUCT, slots=(0, 1)),
    "GroupedMm": Row(Kind.PRODUCT, slots=(0, 1)),
    "Addmm": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    "Addmv": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    "Baddbmm": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    "Addbmm": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    "Addcmul": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    "Convolution": Row(Kind.PRODUCT, slots=(0, 1)),
    "ConvolutionOverrideable": Row(Kind.PRODUCT, slots=(0, 1)),
    "Trilinear": Row(Kind.PRODUCT, slots=(0, 1, 2)),
    "LinalgCross": Row(Kind.PRODUCT, slots=(0, 1)),
    "LinalgSolveEx": Row(Kind.LINEAR, slots=(1,)),
    "Prod": Row(Kind.FUSED, product, slots=(0,), label="equal shares"),
    "Div": Row(Kind.LINEAR, slots=(0,), role=Role.SAME, refine=division),
    "Addcdiv": Row(Kind.LINEAR, slots=(0, 1)),
    "Glu": Row(Kind.FUSED, glu, slots=(0,), label="product, {product}"),
}
