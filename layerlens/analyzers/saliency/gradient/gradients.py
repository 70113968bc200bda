"""Gradients: how the score responds to a small change of each input value."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring, warn_of_zeros
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
        return of_slopes(scorer, "gradient", *gradients(scorer, scorer.start()), magnitude=magnitude)


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
        return of_slopes(scorer, "input_x_gradient", *gradients(scorer, scorer.start()))


def of_slopes(
    scorer: Scorer, name: str, score: torch.Tensor, slopes: Leaves, *, magnitude: bool = False
) -> Attribution:
    """Return the result of `gradient` or `input_x_gradient` from the scores and their gradients.

    Args:
        scorer: the scorer.
        name: name of the method.
        score: the scores, `(batch,)`.
        slopes: the gradients by leaf.
        magnitude: whether to take absolute values.
    """
    times = name == "input_x_gradient"
    values = {leaf: slope * scorer.leaves[leaf].value for leaf, slope in slopes.items()} if times else slopes
    warn_of_zeros(values, name)
    if magnitude:
        values = {leaf: value.abs() for leaf, value in values.items()}
    return scorer.attribution(
        values,
        method=name,
        settings={} if times else {"magnitude": magnitude},
        score=score,
        signed=not magnitude,
        units="score" if times else "score per unit of input",
    )
