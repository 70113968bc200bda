"""One door to all measures of sensitivity, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import OptionError, choose, suggestion
from ...layers import Selection
from ...results import LayerProfile
from .jacobian import jacobian
from .noise import noise_response

METHODS: dict[str, Callable[..., LayerProfile]] = {"jacobian": jacobian, "noise_response": noise_response}
"""Name of a method -> its function, which takes `(model, x, layers, *, forward, **options)`."""

_COMMON = ("model", "x", "layers", "forward")


def sensitivity(
    model: nn.Module,
    x: Any,
    layers: Selection = None,
    *,
    method: str = "jacobian",
    forward: Callable[..., Any] | None = None,
    **options: Any,
) -> LayerProfile:
    """One number per layer, by the question asked.

    - `"jacobian"`: which layer responds to the input (cheap: all layers at once).
    - `"noise_response"`: which layer the output depends on (one run per layer, level and draw).

    The two answer different questions and rank the layers of one model differently.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: which layers (see `layerlens.layers.Selection`); None for every distinct activation, see `jacobian`.
        method: a key of `METHODS`; the function of that name says what it computes.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        **options: those of the method's function.

    Returns:
        A `LayerProfile` in order of execution.

    Raises:
        OptionError: when the method is unknown or has no such option.
        LayerNotFound: when the selection matches no layer that ran.

    Example:
        >>> import torch
        >>> sensitivity(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(1, 2)).layers
        ('0', '1')
    """
    function = METHODS[choose("sensitivity method", method, METHODS)]
    known = [name for name in inspect.signature(function).parameters if name not in _COMMON]
    for name in options:
        if name not in known:
            raise OptionError(
                f"method {method!r} has no option {name!r}.{suggestion(name, known)} Known: {', '.join(known)}."
            )
    return function(model, x, layers, forward=forward, **options)
