"""The chance mark: the same model with its weights in random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class _Carrier(nn.Module):
    """Runs a model by its own call or by the user's `forward`, so that both can be given other parameters."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model, self.run = model, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.model(*args, **kwargs) if self.run is None else self.run(self.model, *args, **kwargs)


def shuffled(model: nn.Module, forward: Callable[..., Any] | None, seed: int) -> Callable[..., Any]:
    """A `forward` that runs the model on copies of its parameters, each with its entries in random order.

    Every parameter tensor keeps its values and loses their arrangement, which is what training made (compare the
    randomization test of Adebayo et al. 2018, sec. 3). Buffers, such as running statistics, stay. The model holds the
    copies only while it runs, and gets its own parameters back also after an error.

    Args:
        model: any module.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        seed: of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, parameter in model.named_parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameters[f"model.{name}"] = parameter.detach().flatten()[order].reshape(parameter.shape)
    carrier = _Carrier(model, forward)

    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return functional_call(carrier, parameters, args, kwargs)

    return run
