"""Slow, obvious truths. Nothing here uses layerlens.

`DetachTrick` is an independent way to layer-wise relevance: while the model runs, what a rule holds constant is
detached, so that plain gradient x input of the changed forward pass is the relevance. The engine changes the backward
pass of an unchanged forward pass; the two share no code and no idea but the rules themselves.
"""

import math

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def scaled(x, y):
    """y as x times a constant: f(x) = x (f(x) / x)."""
    return x * (y / x).detach()


def half(product, a, b):
    return (product(a, b.detach()) + product(a.detach(), b)) / 2


class DetachTrick(TorchFunctionMode):
    """Run a model under this, in float64 and with eager attention, and take gradient x input of its score."""

    def __init__(self, attention="cp"):
        super().__init__()
        self.attention = attention
        ratio = [F.gelu, F.silu, torch.tanh, torch.Tensor.tanh, F.hardswish, F.mish, F.elu, F.relu6, F.hardtanh]
        self.table = {
            **{function: self.elementwise(function) for function in ratio},
            F.softmax: self.softmax(F.softmax),
            torch.softmax: self.softmax(torch.softmax),
            torch.Tensor.softmax: self.softmax(torch.Tensor.softmax),
            F.layer_norm: self.layer_norm,
            F.group_norm: self.group_norm,
            torch.rsqrt: lambda x: torch.rsqrt(x).detach(),
            torch.sigmoid: lambda x: torch.sigmoid(x).detach(),
            torch.Tensor.sigmoid: lambda x: torch.sigmoid(x).detach(),
            F.scaled_dot_product_attention: self.sdpa,
            torch.matmul: self.product(torch.matmul),
            torch.Tensor.matmul: self.product(torch.matmul),
            torch.Tensor.__matmul__: self.product(torch.matmul),
            torch.Tensor.__mul__: self.product(torch.mul),
            torch.Tensor.mul: self.product(torch.mul),
            torch.mul: self.product(torch.mul),
        }

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        replacement = self.table.get(function, function)
        return replacement(*args, **(kwargs or {}))

    def elementwise(self, function):
        def run(x, *args, **kwargs):
            kwargs.pop("inplace", None)
            return scaled(x, function(x, *args, **kwargs))

        return run

    def softmax(self, function):
        def run(*args, **kwargs):
            y = function(*args, **kwargs)
            return y.detach() if self.attention == "cp" else y

        return run

    def layer_norm(self, x, shape, weight=None, bias=None, eps=1e-5):
        axes = tuple(range(-len(shape), 0))
        scale = torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + eps).detach()
        y = (x - x.mean(axes, keepdim=True)) * scale
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def group_norm(self, x, groups, weight=None, bias=None, eps=1e-5):
        grouped = x.reshape(len(x), groups, -1)
        y = self.layer_norm(grouped, grouped.shape[-1:], eps=eps).reshape(x.shape)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return y * weight.reshape(shape) + bias.reshape(shape)

    def sdpa(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if enable_gqa:
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
            v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
        product = half if self.attention == "attn" else lambda product, a, b: product(a, b)
        scores = product(torch.matmul, q, k.transpose(-1, -2)) * (scale or 1 / math.sqrt(q.shape[-1]))
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype).triu(1)
        if attn_mask is not None:
            fill = (
                torch.zeros_like(scores).masked_fill(~attn_mask, -math.inf)
                if attn_mask.dtype == torch.bool
                else attn_mask
            )
            scores = scores + fill
        weights = scores.softmax(-1)
        return weights.detach() @ v if self.attention == "cp" else half(torch.matmul, weights, v)

    def product(self, function):
        def run(a, b):
            both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.requires_grad and b.requires_grad
            return half(function, a, b) if both else function(a, b)

        return run


def lstm_relevance(rnn, head, x, index):
    """Relevance of a one-layer, one-direction LSTM and a linear head on its last state, written out by hand.

    Arras et al. 2017: signals take all, gates none; tanh and biases as in LRP with epsilon -> 0. Returns (batch, time,
    feature), float64.
    """
    w_ih, w_hh, b = rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0
    batch, time, _ = x.shape
    h = c = x.new_zeros(batch, rnn.hidden_size)
    steps = []
    for t in range(time):
        i, f, z, o = (x[:, t] @ w_ih.T + h @ w_hh.T + b).chunk(4, dim=1)
        before = h
        kept, new = torch.sigmoid(f) * c, torch.sigmoid(i) * torch.tanh(z)
        c = kept + new
        h = torch.sigmoid(o) * torch.tanh(c)
        steps.append((before, z, kept, new, c))
    size = rnn.hidden_size
    w_z, u_z = w_ih[2 * size : 3 * size], w_hh[2 * size : 3 * size]
    relevance_h = h * head.weight[index]  # (batch, hidden)
    relevance_c = torch.zeros_like(c)
    found = torch.zeros_like(x)
    for t in reversed(range(time)):
        before, z, kept, new, c = steps[t]
        relevance_c = relevance_c + relevance_h  # h = o tanh(c): the gate takes none, tanh passes all
        relevance_z = relevance_c * new / c
        relevance_c = relevance_c * kept / c
        per_unit = relevance_z / z
        found[:, t] = x[:, t] * (per_unit @ w_z)
        relevance_h = before * (per_unit @ u_z)
    return found.detach()


def gradient_times_input(score, leaf):
    """x dscore/dx: LRP-0 of a network that is piecewise linear."""
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    return (leaf * gradient).detach()


def dense_lrp_zero(layers, x, index):
    """LRP-0 (Bach et al. 2015, eq. 56) of linear layers with activations between, unit by unit.

    R_j = sum over k of a_j w_jk / z_k R_k. `layers` are (weight, bias, activation or None); x is (features,).
    """
    activations, sums = [x], []
    for weight, bias, activation in layers:
        z = weight @ activations[-1] + bias
        sums.append(z)
        activations.append(z if activation is None else activation(z))
    relevance = torch.zeros_like(activations[-1])
    relevance[index] = activations[-1][index]
    for (weight, _, _), a, z in zip(reversed(layers), reversed(activations[:-1]), reversed(sums), strict=True):
        lower = torch.zeros_like(a)
        for k in range(len(z)):
            for j in range(len(a)):
                lower[j] += a[j] * weight[k, j] / z[k] * relevance[k]
        relevance = lower
    return relevance


def dense_rule(rule, w, b, x, relevance):
    """R_i of one linear operation z_j = sum_i w_ji x_i + b_j, contribution by contribution, as the papers write it.

    `rule` is (name, *parameters); w is (out, in), b and relevance (out,), x (in,). Nothing is vectorised by sign of x.
    """
    name, *parameters = rule
    z = w @ x + b
    contributions = w * x  # (out, in)
    lower = torch.zeros_like(x)
    for j in range(len(z)):
        c, bias = contributions[j], b[j]
        if name == "epsilon":
            lower += c / (z[j] + parameters[0] * z[j].sign()) * relevance[j]
        elif name == "gamma":
            chosen = (lambda v: v.clamp(min=0)) if z[j] > 0 else (lambda v: v.clamp(max=0))
            parts, total = c + parameters[0] * chosen(c), bias + parameters[0] * chosen(bias)
            lower += parts / (parts.sum() + total) * relevance[j]
        elif name == "alpha_beta":
            alpha, beta = parameters
            for factor, sign in ((alpha, 1), (-beta, -1)):
                parts, total = (sign * c).clamp(min=0), (sign * bias).clamp(min=0)
                if parts.sum() + total > 0:
                    lower += factor * parts / (parts.sum() + total) * relevance[j]
        else:
            parts = {
                "flat": lambda j=j: (w[j] != 0).to(w.dtype),
                "w_square": lambda j=j: w[j] ** 2,
                "z_box": lambda j=j, c=c: c - parameters[0] * w[j].clamp(min=0) - parameters[1] * w[j].clamp(max=0),
            }[name]()
            lower += parts / parts.sum() * relevance[j] if parts.any() else 0  # an output may have no inputs
    return lower


def dense_map(function, x):
    """(weight (out, in), bias (out,)) of an affine function of one sample, by its Jacobian."""
    weight = torch.autograd.functional.jacobian(function, x)
    weight = weight.reshape(-1, x.numel())
    return weight, function(torch.zeros_like(x)).reshape(-1)
