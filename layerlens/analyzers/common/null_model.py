"""The same model with other weights: given ones, or its own in random order, which shows what chance gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from layerlens.inputs.inputs import Forward
from layerlens.model.placement import need_weights


class _Carrier(nn.Module):
    """A model run by its own call or by the user's `forward`, so that both can be given other parameters."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model, self.run = model, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.model(*args, **kwargs) if self.run is None else self.run(self.model, *args, **kwargs)


def with_parameters(
    model: nn.Module, forward: Forward | None, parameters: Mapping[str, torch.Tensor]
) -> Callable[..., Any]:
    """Return a `forward` that runs the model with other tensors instead of some of its parameters.

    A parameter that the model shares between layers is exchanged in all of them. The model holds the others only while
    it runs, and has its own again also after an error.

    Args:
        model: any module.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        parameters: tensors by name, as in `model.named_parameters()`.
    """
    carrier = _Carrier(model, forward)
    given = {f"model.{name}": tensor for name, tensor in parameters.items()}

    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return functional_call(carrier, given, args, kwargs)

    return run


def shuffled_parameters(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Copy all parameters by name, each with its entries in random order."""
    need_weights(model, "the null, a model with its weights in random order,")
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    with torch.inference_mode(False):  # so that autograd can use the copies
        for name, parameter in model.named_parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameters[name] = parameter.detach().flatten()[order].reshape(parameter.shape)
    return parameters


def shuffled(model: nn.Module, forward: Forward | None, seed: int) -> Callable[..., Any]:
    """Return a `forward` that runs the model on copies of its parameters, each with its entries in random order.

    Every parameter tensor keeps its values and loses their arrangement, which is what training made (compare the
    randomization test of Adebayo et al. 2018, sec. 3). Buffers, such as running statistics, stay. The model holds the
    copies only while it runs, and gets its own parameters back also after an error.

    Args:
        model: any module.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        seed: seed of the permutations.
    """
    return with_parameters(model, forward, shuffled_parameters(model, seed))
