"""Gradients: how the score responds to a small change of each input value."""

from __future__ import annotations

from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import gradients, scoring, warn_of_zeros
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec


@method(family="gradient", passes="1 gradient", source="Simonyan, Vedaldi & Zisserman 2014")
def gradient(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    magnitude: bool = False,
    forward: Forward | None = None,
) -> Attribution:
    """The gradient of the score with respect to the input.

    w = dS/dx at x (Simonyan, Vedaldi & Zisserman 2014, eq. 4).

    Args:
        magnitude: whether to take absolute values, |w|.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), in units of score per unit of input.

    Warns:
        UserWarning: when the gradient of a sample is zero everywhere, or the gradient of token ids cancels over the
            features of the embedding, as before a LayerNorm.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> gradient(net, torch.ones(1, 2)).tensor
        tensor([[ 3., -1.]])
    """
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        scorer.through = True
        score, values = gradients(scorer, scorer.start())
        warn_of_zeros(values, "gradient")
        if magnitude:
            values = {name: value.abs() for name, value in values.items()}
        return scorer.attribution(
            values,
            method="gradient",
            settings={"magnitude": magnitude},
            score=score,
            signed=not magnitude,
            units="score per unit of input",
        )


@method(family="gradient", passes="1 gradient", source="Shrikumar, Greenside & Kundaje 2017")
def input_x_gradient(
    model: nn.Module, x: Input, *, target: Spec = None, where: Selection = None, forward: Forward | None = None
) -> Attribution:
    """The input times the gradient of the score: the first-order Taylor term of each value.

    x_i dS/dx_i (Shrikumar, Greenside & Kundaje 2017, sec. 2.2). For a network that is linear around x the values of a
    sample and the contribution of the biases sum to the score.

    Returns:
        An `Attribution` shaped like the input (`(batch, token)` for token ids), in units of the score.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> input_x_gradient(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[ 6., -5.]])
    """
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        scorer.through = True
        score, slopes = gradients(scorer, scorer.start())
        values = {name: slope * scorer.leaves[name].value for name, slope in slopes.items()}
        warn_of_zeros(values, "input_x_gradient")
        return scorer.attribution(values, method="input_x_gradient", settings={}, score=score)
