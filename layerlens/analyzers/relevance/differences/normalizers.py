"""DeepLIFT's multipliers of softmax and of normalizations, composed of the exact ones of their steps.

The steps are sums, products (midpoint), squares (midpoint), exponentials, logarithms and powers (quotients). Written
out, the composition needs no quotient that could be 0 / 0. Throughout, D is the difference between the two runs and a
bar is their mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from layerlens.analyzers.graph.operation import Gradients

from .multipliers import quotient, weighted_products
from .operation_calls import OperationCall
from .pairs import Pair, Rule


def first_input(multiplier: Callable[[OperationCall, OperationCall, torch.Tensor], torch.Tensor]) -> Rule:
    """Make a rule from a function of both calls and the multiplier of the result."""

    @functools.wraps(multiplier)
    def rule(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
        g, native = outer[0], gradients[0]
        if pair.calls is None or g is None or native is None:
            return None
        return (multiplier(*pair.calls, g).to(native.dtype), *gradients[1:])

    return rule


def logarithmic_mean(y: torch.Tensor, y0: torch.Tensor, z: torch.Tensor, z0: torch.Tensor) -> torch.Tensor:
    """Dy / Dz for y = exp(z), the logarithmic mean of y and y'; 0 where both are 0.

    Of close values it is taken from their ratio, of others from their logarithms z, which do not underflow.
    """
    low, high = torch.minimum(y, y0), torch.maximum(y, y0)
    ratio = (high - low) / low
    near = ratio < 1
    t = torch.where(near, ratio, torch.ones_like(ratio))
    series = 1 - t / 2 + t**2 / 3  # log(1 + t) / t
    growth = torch.where(t < 1e-5, series, torch.log1p(t) / torch.where(t == 0, torch.ones_like(t), t))
    mean = torch.where(near, low / growth, (high - low) / (z - z0).abs())
    return torch.where(high > 0, mean, torch.zeros_like(mean))


@first_input
def softmax(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """y_i = exp(x_i - L), L = log sum exp x: Dy_i = l_i (Dx_i - DL) with the logarithmic means l_i of y_i and y'_i.

    As the y_i sum to 1, DL = sum_j l_j Dx_j / sum_j l_j, whatever constant is added to x.
    """
    axis = call.option("dim")
    z, z0 = (run.x.to(g.dtype) - run.x.to(g.dtype).logsumexp(dim=axis, keepdim=True) for run in (call, other))
    slope = logarithmic_mean(call.y, other.y, z, z0)
    passed = g * slope
    return passed - share(slope, axis) * passed.sum(dim=axis, keepdim=True)


@first_input
def log_softmax(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """Dy_i = Dx_i - DL, with DL as in `softmax`."""
    axis = call.option("dim")
    weight = share(logarithmic_mean(call.y.exp(), other.y.exp(), call.y, other.y), axis)
    return g - weight * g.sum(dim=axis, keepdim=True)


@first_input
def log_sum_exp(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """L = log sum exp x: DL as in `softmax`."""
    axes = _axes(call.option("dim"), call.x.ndim)
    shape = [1 if axis in axes else size for axis, size in enumerate(call.x.shape)]
    z, z0 = (run.x - run.y.reshape(shape) for run in (call, other))
    slope = logarithmic_mean(z.exp(), z0.exp(), z, z0)
    return g.reshape(shape) * share(slope, axes)


def share(values: torch.Tensor, axis: int | tuple[int, ...]) -> torch.Tensor:
    """Each value over their sum; 0 where all are 0, as in a row that is masked altogether."""
    total = values.sum(dim=axis, keepdim=True)
    return values / torch.where(total > 0, total, torch.ones_like(total))


def _scaled(
    g: torch.Tensor, c: torch.Tensor, c0: torch.Tensor, r: torch.Tensor, r0: torch.Tensor, axes: tuple[int, ...]
) -> torch.Tensor:
    """The multiplier of c in y = c / n with n = sqrt(mean(c^2) + eps) = 1 / r.

    Dy = (Dc - y_bar Dn) / n_bar, as the difference of y n = c is that of a product; Dn = D(n^2) / (n + n') =
    mean(c_bar Dc) / n_bar.
    """
    n = (1 / r + 1 / r0) / 2
    y = (c * r + c0 * r0) / 2
    return g / n - (c + c0) / 2 * (g * y).mean(dim=axes, keepdim=True) / n**2


def _centered(
    g: torch.Tensor, x: torch.Tensor, x0: torch.Tensor, r: torch.Tensor, r0: torch.Tensor, axes: tuple[int, ...]
) -> torch.Tensor:
    """The multiplier of x in y = (x - mean(x)) r, with r as in `_scaled`."""
    c, c0 = (value - value.mean(dim=axes, keepdim=True) for value in (x, x0))
    multiplier = _scaled(g, c, c0, r, r0, axes)
    return multiplier - multiplier.mean(dim=axes, keepdim=True)


@first_input
def layer_norm(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """Layer norm, with a constant weight."""
    axes = tuple(range(-len(call.args[1]), 0))
    weight = call.args[2]
    weighted = g if weight is None else g * weight
    return _centered(weighted, call.x, other.x, call.results[2], other.results[2], axes)


@first_input
def rms_norm(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """RMS norm, with a constant weight."""
    axes = tuple(range(-len(call.args[1]), 0))
    weight = call.args[2]
    weighted = g if weight is None else g * weight
    return _scaled(weighted, call.x, other.x, call.results[1], other.results[1], axes)


@first_input
def group_norm(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """Group norm, with a constant weight."""
    weight, samples, groups = call.args[1], int(call.args[3]), int(call.args[6])
    weighted = g if weight is None else g * weight.reshape(1, -1, *[1] * (g.ndim - 2))
    grouped, x, x0 = (value.reshape(samples, groups, -1) for value in (weighted, call.x, other.x))
    r, r0 = (run.results[2].reshape(samples, groups, 1) for run in (call, other))
    return _centered(grouped, x, x0, r, r0, (-1,)).reshape(g.shape)


@first_input
def batch_norm(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """Batch norm with the statistics of the batch, and instance norm."""
    shape = (1, -1, *[1] * (g.ndim - 2))
    weight = call.args[1]
    weighted = g if weight is None else g * weight.reshape(shape)
    r, r0 = (run.results[2].reshape(shape) for run in (call, other))
    return _centered(weighted, call.x, other.x, r, r0, (0, *range(2, g.ndim)))


def deviation(pair: Pair, gradients: Gradients, outer: Gradients) -> Gradients | None:
    """S = sqrt(v) of a variance v, or of a sum of squares: Ds = Dv / (s + s'), and v is of degree 2.

    The gradient is that of v over 2 s, so that the two gradients, weighted with s / (s + s') and s' / (s + s'), add up
    to it.
    """
    if pair.calls is None:
        return None
    s, s0 = pair.calls[0].y, pair.calls[1].y
    total = torch.where(s + s0 > 0, s + s0, torch.ones_like(s))
    mean = [0.5] * (len(outer) - 1)
    return weighted_products(pair, gradients, outer, [s / total, *mean], [s0 / total, *mean])


@first_input
def norm(call: OperationCall, other: OperationCall, g: torch.Tensor) -> torch.Tensor:
    """N = (sum |x|^p)^(1/p): a power of a sum of powers."""
    p = order(call)
    axes = _axes(call.option("dim") if has_axes(call) else None, call.x.ndim)
    shape = [1 if axis in axes else size for axis, size in enumerate(call.x.shape)]
    n, n0 = (run.y.reshape(shape) for run in (call, other))
    of_sum = quotient(n - n0, n**p, n0**p, torch.where(n > 0, n, torch.ones_like(n)) ** (1 - p) / p)
    slope = p * call.x.abs() ** (p - 1) * call.x.sign()
    of_parts = quotient(call.x.abs() ** p - other.x.abs() ** p, call.x, other.x, slope.nan_to_num(posinf=0, neginf=0))
    return g.reshape(shape) * of_sum * of_parts


def order(call: OperationCall) -> float:
    """The p of a norm."""
    names = {argument.name for argument in call.function._schema.arguments}
    given = call.option("p" if "p" in names else "ord")
    return 2.0 if given is None else float(given)


def has_axes(call: OperationCall) -> bool:
    """Whether a norm takes axes."""
    return any(argument.name == "dim" for argument in call.function._schema.arguments)


def _axes(given: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    listed = () if given is None else (given,) if isinstance(given, int) else given
    return tuple(axis % count for axis in listed) or tuple(range(count))
