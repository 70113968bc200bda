"""SmoothGrad squared: the mean square of the gradient over noisy copies of the input."""

from __future__ import annotations

from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.registry import method
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .noisy import noisy_gradients


@method(family="gradient", passes="25 gradients (samples)", source="Hooker et al. 2019")
def smooth_grad_squared(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """The mean of the squared gradient of the score over noisy copies of the input.

    1/n sum over k of g_k^2, g_k = dS/dx at x + e_k, e_k ~ N(0, s^2) (Hooker et al. 2019, sec. 4.1).

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments. For token ids the
            noise is added to their embeddings, and values are summed over their features.
        target: what to score, as in `layerlens.as_target`; None is the class predicted at x.
        where: None for the input, or a layer, or a call of one (`"rnn#1"`), whose output is attributed to.
        samples: noisy copies of each sample.
        noise: standard deviation, as a part of the range (max - min) of each sample's input.
        seed: of the noise.
        batch_size: copies in one pass; `"auto"` bounds it by memory.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), not negative, in squared units of score
        per unit of input.

    Raises:
        InputError: when the input holds nothing to differentiate.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output, or no gradient reaches the input.

    Warns:
        UserWarning: when a sample is constant, so that it gets no noise, or its values are zero everywhere.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> smooth_grad_squared(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[9., 1.]])
    """
    return noisy_gradients(
        model, x, "smooth_grad_squared", target=target, where=where, samples=samples, noise=noise, seed=seed,
        statistic="square", batch_size=batch_size, forward=forward, settings={},
    )  # fmt: skip
