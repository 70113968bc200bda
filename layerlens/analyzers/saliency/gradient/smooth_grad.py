"""SmoothGrad: the gradient averaged over noisy copies of the input."""

from __future__ import annotations

from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.registry import method
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .noisy import noisy_gradients


@method(family="gradient", passes="25 gradients (samples)", source="Smilkov et al. 2017")
def smooth_grad(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    magnitude: bool = False,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """Average the gradient of the score over noisy copies of the input.

    1/n sum over k of dS/dx at x + e_k, e_k ~ N(0, s^2), s = noise (max x - min x) (Smilkov et al. 2017, sec. 3).
    The noise is drawn here and not by `captum.attr.NoiseTunnel`, which takes one s for the whole batch and draws other
    numbers when samples are batched differently: every sample gets the same standard normal draws, scaled by its own
    range, so that a batch gives what its samples give alone.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments. For token ids the
            noise is added to their embeddings, and values are summed over their features.
        target: what to score, as in `layerlens.as_target`; None is the class predicted at x.
        where: None for the input, or a layer, or a call of one (`"rnn#1"`), whose output is attributed to.
        samples: noisy copies n of each sample.
        noise: standard deviation s, as a part of the range (max - min) of each sample's input.
        seed: of the noise.
        magnitude: whether to average absolute values, |dS/dx|.
        batch_size: copies in one pass; `"auto"` bounds it by memory.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), in units of score per unit of input;
        its check is the `"relative standard error"` of each sample: the norm of the standard error over that of the
        mean. `standard_error` holds that of every value (not for token ids, whose values are sums).

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
        >>> smooth_grad(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[ 3., -1.]])
    """
    return noisy_gradients(
        model, x, "smooth_grad", target=target, where=where, samples=samples, noise=noise, seed=seed,
        statistic="magnitude" if magnitude else "mean", batch_size=batch_size, forward=forward,
        settings={"magnitude": magnitude},
    )  # fmt: skip
