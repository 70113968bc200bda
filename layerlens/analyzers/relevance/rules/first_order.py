"""Operations whose rule is the gradient, with inputs and output at hand: what the gradient leaves over is booked.

Functions without a value at 0 from which a ratio could start, such as logarithms, absorb the rest of the first-order
Taylor expansion, y g - x g_x. Functions of degree one, which scale with their inputs, such as distances, leave nothing
over but what their constants add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from layerlens.analyzers.graph.operation import Fused, Gradients, Kind, Node, Role, Row, relevance_of

from .elementwise import finite
from .rulebook import Rulebook
from .structure import STEP

_A = torch.ops.aten


def _saved(node: Node, names: str) -> list[Any]:
    return [getattr(node, f"_saved_{name}") for name in names.split()]


def _taylor(function: Callable[..., torch.Tensor], inputs: str = "self", options: str = "") -> Row:
    """The row of a function of saved inputs and options; an input that is a number has no slot."""

    def rule(node: Node) -> tuple[torch.Tensor, ...]:
        xs = _saved(node, inputs)
        return finite(function(*xs, *_saved(node, options)), *(x for x in xs if isinstance(x, torch.Tensor)))

    return Row(Kind.TAYLOR, rule)


def _degree_one(inputs: str) -> Row:
    """The row of a function of degree one that saves its inputs, by slot, and its result."""
    return Row(Kind.LINEAR, lambda node: finite(node._saved_result, *_saved(node, inputs)))


def _reduced(source: str) -> Callable[[Node], Row]:
    """For functions that reduce into a tensor: sums, means, choices are of degree one, products are shared equally."""

    def product(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
        into, read = gradients
        index, values = node._saved_index, getattr(node, f"_saved_{source}")
        axis = signed(node._saved_dim)
        if index.ndim < values.ndim or source == "source":
            index = index.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)])
            index = index.expand_as(values)
        hits = torch.zeros_like(gradient).scatter_add(axis, index, torch.ones_like(values))
        own = torch.ones_like(hits) if node._saved_include_self else (hits == 0).to(hits.dtype)
        factors = own * (into is not None) + hits * (read is not None)
        count = factors.clamp(min=1)
        shared = None if read is None else read / count.gather(axis, index)
        constant = relevance_of(node._saved_result, gradient) * (factors == 0)
        return (None if into is None else into / count, shared), (constant,)

    def refine(node: Node) -> Row:
        if node._saved_reduce == "prod":
            return Row(Kind.FUSED, product, label="equal shares")
        return _degree_one(f"self {source}")

    return refine


def _distance(inputs: str) -> Row:
    """The row of a p-norm of differences; the one of p = 0 counts those that are not 0."""
    row = _degree_one(inputs)
    return Row(Kind.LINEAR, refine=lambda node: row if node._saved_p else Row(Kind.STOP, why=STEP))


def _norm(order: str) -> Row:
    """The row of a norm of one tensor; the one of order 0 counts what is not 0."""
    row = Row(Kind.LINEAR, role=Role.SIZE)
    return dataclasses.replace(row, refine=lambda node: row if getattr(node, order) else Row(Kind.STOP, why=STEP))


def _variance(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """Of degree two: half of the gradient."""
    return (None if gradients[0] is None else gradients[0] / 2,), ()


def _hypot(node: Node, gradients: Gradients, gradient: torch.Tensor, rulebook: Rulebook) -> Fused:
    """Of degree one; nothing where both sides are 0, and torch's gradient is not a number."""
    return tuple(None if one is None else finite(one)[0] for one in gradients), ()


def signed(axis: int) -> int:
    """An axis that autograd saved without its sign."""
    return axis - (1 << 64) if axis >= 1 << 63 else axis


FIRST_ORDER: dict[str, Row] = {
    "Log2": _taylor(torch.log2),
    "Log10": _taylor(torch.log10),
    "Logit": _taylor(torch.logit, options="eps"),
    "Acosh": _taylor(torch.acosh),
    "Lgamma": _taylor(torch.lgamma),
    "Digamma": _taylor(torch.digamma),
    "Polygamma": _taylor(lambda x, n: torch.polygamma(n, x), options="n"),
    "Mvlgamma": _taylor(torch.mvlgamma, options="p"),
    "SpecialNdtri": Row(Kind.TAYLOR, lambda node: (node._saved_result, torch.special.ndtr(node._saved_result))),
    "SpecialEntr": _taylor(torch.special.entr),
    "Logaddexp": _taylor(torch.logaddexp, "self other"),
    "Logaddexp2": _taylor(torch.logaddexp2, "self other"),
    "Xlogy": _taylor(torch.xlogy, "self other"),
    "SpecialXlog1Py": _taylor(torch.special.xlog1py, "self other"),
    "BinaryCrossEntropy": _taylor(_A.binary_cross_entropy, "self target", "weight reduction"),
    "BinaryCrossEntropyWithLogits": _taylor(
        _A.binary_cross_entropy_with_logits, "self target", "weight pos_weight reduction"
    ),
    "SoftMarginLoss": _taylor(_A.soft_margin_loss, "self target", "reduction"),
    "MseLoss": _taylor(_A.mse_loss, "self target", "reduction"),
    "SmoothL1Loss": _taylor(_A.smooth_l1_loss, "self target", "reduction beta"),
    "HuberLoss": _taylor(_A.huber_loss, "self target", "reduction delta"),
    "CtcLoss": Row(Kind.TAYLOR, lambda node: finite(node._saved_result0, node._saved_log_probs)),
    "Cdist": _distance("x1 x2"),
    "EuclideanDist": _degree_one("x1 x2"),  # of `cdist` from more than 25 rows on
    "Pdist": _distance("self"),
    "Dist": _distance("self other"),
    "LinalgVectorNorm": _norm("_saved_ord"),
    "Norm": _norm("_saved_p"),
    "Std": Row(Kind.LINEAR, role=Role.SIZE),
    "Var": Row(Kind.FUSED, _variance, slots=(0,), role=Role.SIZE, label="half of the gradient"),
    "Hypot": Row(Kind.FUSED, _hypot, role=Role.SIZE, label="gradient (epsilon -> 0)"),
    "ScatterReduce": Row(Kind.LINEAR, refine=_reduced("src")),
    "IndexReduce": Row(Kind.LINEAR, refine=_reduced("source")),
}
