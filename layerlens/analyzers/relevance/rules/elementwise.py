"""Elementwise functions: relevance passes by the ratio (f(x) - f(0)) / x, and g f(0) is absorbed.

The ratio is what the slope would be if the function were linear from 0 to x (the identity rule of activations,
R_x = R_y, of Bach et al. 2015). For f(0) = 0 it is f(x) / x.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F

from layerlens.analyzers.graph.operation import Fused, Gradients, Kind, Node, Role, Row, operation

from .structure import DIVIDES

Ratio: TypeAlias = tuple[torch.Tensor, "float | torch.Tensor"]
"""(f(x) - f(0)) / x, and f(0)."""
PART_SIZE = 1 << 19
"""Elements per part of a large tensor."""

_A = torch.ops.aten

Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Bound: TypeAlias = torch.Tensor | float | None


def quotient(numerator: torch.Tensor, x: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    """`numerator / x`, with `limit` where x is 0."""
    if isinstance(limit, torch.Tensor) and limit.ndim:
        return torch.where(x == 0, limit, numerator / x)
    return (numerator / x).masked_fill_(x == 0, limit)


def finite(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Replace by 0 what is not finite, as masked elements are: no relevance passes them."""
    return tuple(value.nan_to_num(0.0, 0.0, 0.0) for value in values)


def gelu(node: Node, gradients: Gradients, gradient: torch.Tensor, _: object) -> Fused:
    """The normal distribution function of x; its tanh form when that was used (Hendrycks and Gimpel 2016)."""
    tanh_form, out = node._saved_approximate == "tanh", torch.empty_like(gradient)
    for x, g, part in cache_sized_parts(node._saved_self, gradient, out):
        if tanh_form:
            torch.mul(x, x, out=part)
            part.mul_(0.044715).add_(1).mul_(x).mul_(math.sqrt(2 / math.pi)).tanh_()
        else:
            torch.mul(x, math.sqrt(0.5), out=part).erf_()
        torch.addcmul(g, g, part, out=part).mul_(0.5)
    return (out,), ()


def silu(node: Node, gradients: Gradients, gradient: torch.Tensor, _: object) -> Fused:
    """The sigmoid of x."""
    out = torch.empty_like(gradient)
    for x, g, part in cache_sized_parts(node._saved_self, gradient, out):
        torch.mul(g, torch.sigmoid(x).conj(), out=part)
    return (out,), ()


def mish(node: Node, _: torch.Tensor | None) -> Ratio:
    """tanh(softplus(x))."""
    return torch.tanh(F.softplus(node._saved_self)), 0.0


def hardswish(node: Node, _: torch.Tensor | None) -> Ratio:
    """clamp(x + 3, 0, 6) / 6."""
    return (node._saved_self + 3).clamp(0, 6) / 6, 0.0


def elu(node: Node, _: torch.Tensor | None) -> Ratio:
    """ELU, SELU: `scale` above 0 and scale alpha (exp(input_scale x) - 1) / x below; also of the in-place form."""
    alpha, scale = float(node._saved_alpha), float(node._saved_scale)
    input_scale = float(node._saved_input_scale)
    if hasattr(node, "_saved_self"):
        x = node._saved_self
    else:
        y = node._saved_result
        x = torch.where(y > 0, y / scale, torch.log1p((y / (scale * alpha)).clamp(max=0)) / input_scale)
    below = quotient(torch.expm1(input_scale * x.clamp(max=0)), x, input_scale) * scale * alpha
    return torch.where(x > 0, torch.full_like(x, scale), below), 0.0


def celu(node: Node, _: torch.Tensor | None) -> Ratio:
    """CELU: 1 above 0 and alpha (exp(x / alpha) - 1) / x below; also of the in-place form."""
    alpha = float(node._saved_alpha)
    if hasattr(node, "_saved_self"):
        x = node._saved_self
    else:
        y = node._saved_result
        x = torch.where(y > 0, y, alpha * torch.log1p((y / alpha).clamp(max=0)))
    below = alpha * quotient(torch.expm1(x.clamp(max=0) / alpha), x, 1 / alpha)
    return torch.where(x > 0, torch.ones_like(x), below), 0.0


def softplus(node: Node, _: torch.Tensor | None) -> Ratio:
    """Softplus, whose value at 0 is log(2) / beta."""
    x, beta = node._saved_self, float(node._saved_beta)
    at_zero = math.log(2) / beta
    return quotient(F.softplus(x, beta, float(node._saved_threshold)) - at_zero, x, 0.5), at_zero


def hardsigmoid(node: Node, _: torch.Tensor | None) -> Ratio:
    """Hardsigmoid, whose value at 0 is 1/2."""
    x = node._saved_self
    return quotient(F.hardsigmoid(x) - 0.5, x, 1 / 6), 0.5


def hardtanh(node: Node, gradients: Gradients, gradient: torch.Tensor, _: object) -> Fused:
    """ReLU6 and hardtanh keep their relevance where they saturate: the ratio there is bound / x, not 0.

    Elsewhere the ratio is the gradient, which autograd has just made: only parts with saturated elements are rewritten.
    """
    x, low, high = node._saved_self, float(node._saved_min_val), float(node._saved_max_val)
    (passed,) = gradients
    if low != 0 or high <= 0 or passed is None:
        ratio, at_zero = clamp_ratio(x, low, high)
        return (gradient * ratio,), (gradient * at_zero,)
    zero = x.new_zeros(())
    for x_part, g_part, out in cache_sized_parts(x, gradient, passed):
        if x_part.device.type != "cpu" or float(x_part.amax()) >= high:  # g high / max(x, high) above 0
            ratio = torch.clamp(x_part, min=high)
            torch.addcdiv(zero, g_part, ratio, value=high, out=ratio)
            torch.ops.aten.threshold_backward(ratio, x_part, 0.0, grad_input=out)
    return (passed,), ()


def cache_sized_parts(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield views of the tensors small enough to stay in a processor's cache while several operations pass over them.

    Yields:
        One part of each tensor.
    """
    if tensors[0].device.type != "cpu" or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    yield from zip(*(torch.split(tensor.view(-1), PART_SIZE) for tensor in tensors), strict=True)


def clamp(node: Node, _: torch.Tensor | None) -> Ratio:
    """A clamp of x to (min, max) with numbers or tensors as bounds."""
    return clamp_ratio(node._saved_self, getattr(node, "_saved_min", None), getattr(node, "_saved_max", None))


def clamp_between(node: Node) -> tuple[torch.Tensor | None, ...]:
    """(y, x, min, max): between bounds that carry relevance, a clamp chooses one of its inputs, like a maximum."""
    x, low, high = node._saved_self, getattr(node, "_saved_min", None), getattr(node, "_saved_max", None)
    bounds = (high,) if operation(node.name()) == "ClampMax" else (low, high)
    return torch.clamp(x, low, high), x, *bounds


def clamp_ratio(x: torch.Tensor, low: Bound, high: Bound) -> Ratio:
    """Return the ratio of a clamp between two numbers or tensors, and its value at 0."""

    def bounded(value: torch.Tensor) -> torch.Tensor:
        return torch.clamp(value, low, high)  # type: ignore[arg-type]

    at_zero = bounded(x.new_zeros(()))
    inside = bounded(x.new_full((), 1e-3)) != at_zero
    return quotient(bounded(x) - at_zero, x, inside.to(x.dtype)), at_zero


def softshrink(node: Node, _: torch.Tensor | None) -> Ratio:
    """Softshrink of x, over x."""
    x = node._saved_self
    return quotient(F.softshrink(x, float(node._saved_lambd)), x, 0.0), 0.0


def log_sigmoid(node: Node, _: torch.Tensor | None) -> Ratio:
    """log(sigmoid(x)), whose value at 0 is -log(2)."""
    x = node._saved_self
    return quotient(F.logsigmoid(x) + math.log(2), x, 0.5), -math.log(2)


def tanh(node: Node, x: torch.Tensor | None) -> Ratio:
    """The tanh of x, over x; x is recorded, because a saturated result does not determine it."""
    x = torch.atanh(node._saved_result.clamp(-1 + 1e-7, 1 - 1e-7)) if x is None else x
    return quotient(torch.tanh(x), x, 1.0), 0.0


def sigmoid(node: Node, x: torch.Tensor | None) -> Ratio:
    """The sigmoid of x less 1/2, over x; x is recorded, because a saturated result does not determine it."""
    x = torch.logit(node._saved_result, eps=1e-7) if x is None else x
    return quotient(torch.tanh(x / 2) / 2, x, 0.25), 0.5


def exp(node: Node, x: torch.Tensor | None) -> Ratio:
    """(exp(x) - 1) / x; a masked element, x = -inf, neither passes nor absorbs anything."""
    x = torch.log(node._saved_result) if x is None else x
    masked = x == -math.inf
    if not bool(masked.any()):
        return quotient(torch.expm1(x), x, 1.0), 1.0
    return quotient(torch.expm1(x), x, 1.0).masked_fill_(masked, 0.0), (~masked).to(x.dtype)


def expm1(node: Node, x: torch.Tensor | None) -> Ratio:
    """(exp(x) - 1) / x; x is recorded, because a saturated result does not determine it."""
    y = node._saved_result
    return quotient(y, torch.log1p(y.clamp_min(-1 + 1e-7)) if x is None else x, 1.0), 0.0


def exp2(node: Node, x: torch.Tensor | None) -> Ratio:
    """(2 ** x - 1) / x; x is recorded, as for `exp`."""
    y = node._saved_result
    x = torch.log2(y) if x is None else x
    return quotient(torch.expm1(x * math.log(2)), x, math.log(2)), 1.0


def tan(node: Node, x: torch.Tensor | None) -> Ratio:
    """The tangent of x, over x; x is recorded, because the result determines it only up to a multiple of pi."""
    y = node._saved_result
    return quotient(y, torch.atan(y) if x is None else x, 1.0), 0.0


def atan2(node: Node, _: torch.Tensor | None) -> Ratio:
    """The angle of (x, y) as atan(y / x), all to the numerator; the half turn that is added where x < 0 is absorbed."""
    y, x = node._saved_self, node._saved_other
    angle = torch.atan2(y, x)
    half_turn = torch.where(x < 0, torch.copysign(torch.full_like(angle, math.pi), y), torch.zeros_like(angle))
    return quotient(angle - half_turn, y, torch.where(x == 0, 0.0, 1 / x).expand_as(angle)), half_turn


def bloom_gelu(ctx: Node, _: torch.Tensor | None) -> Ratio:
    """BLOOM's own GELU, in tanh form (transformers' `GeLUFunction`)."""
    (x,) = ctx.saved_tensors
    return (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))) / 2, 0.0


def power(node: Node) -> Row:
    """The power p of x: x ** (p - 1) for p > 0; a negative power divides, so it stops relevance."""
    if node.name() == "PowBackward2":  # a number to the power x
        return Row(Kind.RATIO, exponential, role=Role.GATE)
    exponent = torch.as_tensor(node._saved_exponent)
    if bool((exponent.real < 0).any()):
        return Row(Kind.STOP, why=DIVIDES)
    return Row(Kind.RATIO, positive_power, slots=(0,), why="the result is not proportional to its exponent")


def square_root(node: Node, _: torch.Tensor | None) -> Ratio:
    """The root of x, over x."""
    root = node._saved_result
    return quotient(root, root.square(), 0.0), 0.0


def exponential(node: Node, _: torch.Tensor | None) -> Ratio:
    """(b ** x - 1) / x for a number b."""
    x, base = node._saved_exponent, torch.as_tensor(node._saved_self)
    return quotient(torch.pow(base, x) - 1, x, torch.log(base).item()), 1.0


def positive_power(node: Node, _: torch.Tensor | None) -> Ratio:
    """Return x ** p / x; where p is 0, 1 is absorbed."""
    x = node._saved_self
    exponent = torch.as_tensor(node._saved_exponent, device=x.device)
    at_zero = (exponent == 0).to(x.dtype)
    return quotient(torch.pow(x, exponent.to(x.dtype)) - at_zero, x, (exponent == 1).to(x.dtype)), at_zero


def _row(function: Function, slope: float, at_zero: float = 0.0, role: Role = Role.SIGNAL) -> Row:
    """The row of a function of `node._saved_self` with slope `slope` and value `at_zero` at 0."""

    def ratio(node: Node, _: torch.Tensor | None) -> Ratio:
        x = node._saved_self
        return quotient(function(x) - at_zero, x, slope), at_zero

    return Row(Kind.RATIO, ratio, role=role)


_FUSED_RATIO = functools.partial(Row, Kind.FUSED, label="ratio f(x) / x")
_CHOICE = Row(Kind.LINEAR, clamp_between, role=Role.SAME)

ELEMENTWISE: dict[str, Row] = {
    "Gelu": _FUSED_RATIO(gelu, backward=_A.gelu_backward.default),
    "Silu": _FUSED_RATIO(silu, backward=_A.silu_backward.default),
    "Mish": Row(Kind.RATIO, mish, backward=_A.mish_backward.default),
    "Hardswish": Row(Kind.RATIO, hardswish, backward=_A.hardswish_backward.default),
    "Elu": Row(Kind.RATIO, elu),
    "Celu": Row(Kind.RATIO, celu),
    "Softplus": Row(Kind.RATIO, softplus, role=Role.GATE),
    "Hardsigmoid": Row(Kind.RATIO, hardsigmoid, role=Role.GATE),
    "Hardtanh": _FUSED_RATIO(hardtanh),
    **{name: Row(Kind.RATIO, clamp, role=Role.SAME, several=_CHOICE) for name in ("Clamp", "ClampMin", "ClampMax")},
    "Softshrink": Row(Kind.RATIO, softshrink),
    "LogSigmoid": Row(Kind.RATIO, log_sigmoid),
    "Tanh": Row(Kind.RATIO, tanh, role=Role.SQUASH),
    "Sigmoid": Row(Kind.RATIO, sigmoid, role=Role.GATE),
    "Exp": Row(Kind.RATIO, exp, role=Role.GATE),
    "Pow": Row(Kind.RATIO, refine=power),
    "Sqrt": Row(Kind.RATIO, square_root, role=Role.SIZE),
    "Erf": _row(torch.erf, 2 / math.sqrt(math.pi), role=Role.SQUASH),
    "Sin": _row(torch.sin, 1.0),
    "Cos": _row(torch.cos, 0.0, 1.0),
    "Tan": Row(Kind.RATIO, tan),
    "Atan2": Row(Kind.RATIO, atan2, slots=(0,), why=DIVIDES),
    "Atan": _row(torch.atan, 1.0),
    "Asin": _row(torch.asin, 1.0),
    "Sinh": _row(torch.sinh, 1.0),
    "Asinh": _row(torch.asinh, 1.0),
    "Log1P": _row(torch.log1p, 1.0),
    "Expm1": Row(Kind.RATIO, expm1),
    "Exp2": Row(Kind.RATIO, exp2, role=Role.GATE),
    "GeLUFunction": Row(Kind.RATIO, bloom_gelu),
    "Atanh": _row(torch.atanh, 1.0),
    "Erfinv": _row(torch.erfinv, math.sqrt(math.pi) / 2),
    "SpecialErfcx": _row(torch.special.erfcx, -2 / math.sqrt(math.pi), 1.0),
    "SpecialLogNdtr": _row(torch.special.log_ndtr, math.sqrt(2 / math.pi), -math.log(2)),
    "SpecialI0E": _row(torch.special.i0e, 0.0, 1.0),
    "SpecialI1": _row(torch.special.i1, 0.5),
    "SpecialI1E": _row(torch.special.i1e, 0.5),
    "Erfc": _row(torch.erfc, -2 / math.sqrt(math.pi), 1.0),
    "Acos": _row(torch.acos, -1.0, math.pi / 2),
    "Cosh": _row(torch.cosh, 0.0, 1.0),
    "I0": _row(torch.special.i0, 0.0, 1.0),
    "Sinc": _row(torch.sinc, 0.0, 1.0),
}
