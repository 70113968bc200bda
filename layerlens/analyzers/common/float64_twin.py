"""A copy of a model in float64, where rounding is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.errors import LayerLensError
from layerlens.model.borrowed import generator_states, restore_generators

from .directional_slope import replica
from .scorer import Scorer


def double_twin(scorer: Scorer) -> tuple[Scorer | None, str]:
    """Return the scorer of a copy of the model in float64, or None and the reason why there is none.

    Args:
        scorer: scores a borrowed model, and has its target.
    """
    generators = generator_states()

    def forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with InFloat64():
            return model(*args, **kwargs) if scorer.forward is None else scorer.forward(model, *args, **kwargs)

    try:
        model: nn.Module = copy.deepcopy(scorer.model).double()
        twin = Scorer(model, scorer.inputs.map(as_double), scorer.target, where=scorer.where, forward=forward)
        scores = []
        for one in (twin, scorer):
            restore_generators(generators)
            with torch.no_grad():
                scores.append(one(one.values()))
    except (LayerLensError, RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        return None, f"the model does not run in float64 ({' '.join(str(error).split())[:120]})"
    exact, own = scores
    if exact.dtype is not torch.float64:
        return (
            None,
            f"the model computes in {str(exact.dtype).removeprefix('torch.')} even when its weights are float64",
        )
    if bool(((exact - own.double()).abs() > 0.1 * exact.abs().clamp_min(1e-3)).any()):
        return None, "the model computes another score in float64, such as one of random numbers"
    return twin, ""


class InFloat64(TorchFunctionMode):
    """Have conversions to shorter floating-point types, as some norms make them, end in float64."""

    _SHORT = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_function__(
        self, function: Callable[..., Any], kinds: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `function` with float64 for every shorter type among its arguments."""
        if function in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            function = torch.Tensor.double
        longer = [torch.float64 if any(value is one for one in self._SHORT) else value for value in args]
        named = {
            name: torch.float64 if any(value is one for one in self._SHORT) else value
            for name, value in (kwargs or {}).items()
        }
        return function(*longer, **named)


def as_double(value: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor, in float64 if it holds floating-point numbers."""
    return replica(value, torch.float64 if value.is_floating_point() else None)
