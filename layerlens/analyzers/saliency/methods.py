"""One door to all saliency methods, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import OptionError, choose, suggestion
from ...results import Attribution
from ...target import Spec
from .deeplift import deep_lift
from .gradients import gradient, input_x_gradient
from .integrated import integrated_gradients
from .rectified import deconvnet, guided_backprop
from .smooth import smooth_grad

METHODS: dict[str, Callable[..., Attribution]] = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "deep_lift": deep_lift,
}
"""Name of a method -> its function, which takes `(model, x, *, target, forward, **options)`."""

_COMMON = ("model", "x", "target", "forward")


def saliency(
    model: nn.Module,
    x: Any,
    *,
    target: Spec = None,
    method: str = "integrated_gradients",
    forward: Callable[..., Any] | None = None,
    **options: Any,
) -> Attribution:
    """How much each input value contributed to the score, by a method of choice.

    Args:
        model: any module.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments.
        target: what to score, as in `layerlens.target.as_target`; None is the predicted class.
        method: a key of `METHODS`; the function of that name says what it computes.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        **options: those of the method's function.

    Returns:
        An `Attribution` shaped like the input, `(batch, token)` for token ids.

    Raises:
        OptionError: when the method is unknown or has no such option.
        InputError: when the input holds nothing to differentiate.
        TargetError: when the target does not fit the output, or no gradient reaches the input.

    Example:
        >>> import torch
        >>> saliency(nn.Linear(3, 2), torch.ones(1, 3), target=0, method="gradient").tensor.shape
        torch.Size([1, 3])
    """
    function = METHODS[choose("saliency method", method, METHODS)]
    known = [name for name in inspect.signature(function).parameters if name not in _COMMON]
    for name in options:
        if name not in known:
            raise OptionError(
                f"method {method!r} has no option {name!r}.{suggestion(name, known)} "
                f"Known: {', '.join(known) or 'none'}."
            )
    return function(model, x, target=target, forward=forward, **options)
