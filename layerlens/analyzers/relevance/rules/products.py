"""Products: linear in each factor. One factor that carries relevance takes all; two share by rule."""

from __future__ import annotations

import torch

from layerlens.analyzers.graph.operation import Fused, Gradients, Kind, Node, Role, Row

from .elementwise import quotient
from .first_order import signed
from .rulebook import Rulebook
from .structure import DIVIDES, PLACES, STEP


def glu(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """Two halves, a sigmoid(b), in one node: all to a, or half to each, b by the ratio (sigmoid(b) - 1/2) / b."""
    axis = signed(node._saved_dim)
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
        return Row(Kind.STOP, why=STEP)
    return Row(Kind.LINEAR, slots=(0,), role=Role.SAME, why=DIVIDES)


def product(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """A product of n numbers: x_i dy/dx_i = y for each, so each takes an n-th."""
    (passed, *_) = gradients
    x = node._saved_self
    count = x.numel() if x.ndim == 0 or not hasattr(node, "_saved_dim") else x.shape[signed(node._saved_dim)]
    return (None if passed is None else passed / count,), ()


def running_product(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """The j-th output is a product of j numbers, each of which takes a j-th of it."""
    x, axis = node._saved_self, signed(node._saved_dim)
    if x.ndim:
        shape = [-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]
        gradient = gradient / torch.arange(1, x.shape[axis] + 1, device=x.device).reshape(shape)
    return (torch.ops.aten.cumprod_backward(gradient, x, axis, node._saved_result),), ()


def determinant(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """Of degree n in a matrix of n rows: an n-th of the gradient."""
    (passed, *_) = gradients
    return (None if passed is None else passed / node._saved_A.shape[-1],), ()


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
    "Addr": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    "Addcmul": Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(0,)),
    **{name: Row(Kind.PRODUCT, slots=(0, 1, 2), adding=(2,)) for name in ("Convolution", "ConvolutionOverrideable")},
    "torchvision_deform_conv2d": Row(Kind.PRODUCT, slots=(0, 1, 3, 4), adding=(4,), why=PLACES),
    "Trilinear": Row(Kind.PRODUCT, slots=(0, 1, 2)),
    "LinalgCross": Row(Kind.PRODUCT, slots=(0, 1)),
    "LinalgSolveEx": Row(Kind.LINEAR, slots=(1,), why=DIVIDES),
    "LinalgSolveTriangular": Row(Kind.LINEAR, slots=(1,), why=DIVIDES),
    "LinalgLuSolve": Row(Kind.LINEAR, slots=(1,), why=DIVIDES),
    "TriangularSolve": Row(Kind.LINEAR, slots=(0,), why=DIVIDES),
    "CholeskySolve": Row(Kind.LINEAR, slots=(0,), why=DIVIDES),
    "Ldexp": Row(Kind.LINEAR, slots=(0,), why="the result is not proportional to its exponent"),
    "Prod": Row(Kind.FUSED, product, slots=(0,), label="equal shares"),
    "Cumprod": Row(Kind.FUSED, running_product, slots=(0,), label="equal shares"),
    "LinalgDet": Row(Kind.FUSED, determinant, slots=(0,), label="equal shares"),
    "Div": Row(Kind.LINEAR, slots=(0,), role=Role.SAME, refine=division),
    "Addcdiv": Row(Kind.LINEAR, slots=(0, 1), why=DIVIDES),
    "Glu": Row(Kind.FUSED, glu, slots=(0,), backward=torch.ops.aten.glu_backward.default, label="product, {product}"),
}
