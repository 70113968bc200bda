"""Look on while a model is trained: gradients, updates, activations and drift of every layer, at a bounded price."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from layerlens.inputs.inputs import Forward
from layerlens.model.layers import Selection

from .watching import Watch


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    layers: Selection = None,
    *,
    every: int | Literal["auto"] = "auto",
    budget: float = 0.05,
    data: Any = None,
    forward: Forward | None = None,
) -> Watch:
    r"""Record what happens in every layer while the user's own loop trains the model.

    At the steps that are measured:

    - `"gradient norm"`: ||dL/dW|| of each layer's own parameters, before the optimizer's step;
    - `"update ratio"`: ||W' - W|| / ||W||, what the step changed (for plain SGD, lr ||dL/dW|| / ||W||), and
      `"weight norm"`: ||W||;
    - `"constant units"`: the share of units (channels, features) whose output is one number for all samples and places
      of the step, as that of a dead ReLU is; `"zeros"`: the share of values that are 0; `"activation mean"` and
      `"activation std"`;
    - `"drift"`, with `data`: 1 - CKA of what a layer makes of these samples now and at the start, both in eval mode
      (debiased linear CKA, Kornblith et al. 2019; Song et al. 2012): 0 is the same up to rotation and scale.

    Nothing stands on the model between measured steps, and nothing of the training changes: the loop's numbers are the
    same to the bit. Runs without gradients, such as a validation, are not counted. With gradient accumulation all
    forward passes of a step are taken together; of a closure that `step` calls several times, as LBFGS does, the first
    call counts.

    Args:
        model: any module.
        optimizer: whose `step` is watched; None only for `callback()`.
        layers: whose outputs are looked at; None for all layers that have no layers inside them.
        every: measure each so many steps; `"auto"` as often as `budget` allows, the first step always.
        budget: with `"auto"`, the share of the time, from the start of the watch on, that measuring may take.
        data: inputs, `(samples, ...)`, for the drift; 8 samples or more. Each measured step costs a forward pass on
            them, and the sums of products of all samples.
        forward: `forward(model, *args, **kwargs)` to run on `data` in place of calling the model.

    Returns:
        A `Watch`: a context in which the training runs. Its `history` is a `TrainingHistory`, at any time.

    Raises:
        InputError: when `data` cannot be read.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range, or the optimizer moves none of the model's parameters.

    Memory: at a measured step a copy of the parameters.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with watch(net, optimizer, every=1) as watching:
        ...     for _ in range(3):
        ...         loss = net(torch.randn(16, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         watching.log(loss=loss)
        >>> watching.history.of("update ratio").values.shape
        torch.Size([2, 3])
    """
    return Watch(model, optimizer, layers, every, budget, data, forward)
