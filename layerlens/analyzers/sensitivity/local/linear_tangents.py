"""Dual numbers through linear operations at the price of one more run of the operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class LinearTangents(TorchFunctionMode):
    """Pass tangents through convolutions, linear layers and batch norms in eval mode by the operation itself.

    Torch's formulas also run a convolution on a tangent of the weights, which is zero, and take batch norm apart into
    eight operations: a ResNet-18 over dual numbers took 3.8 forward passes, and takes 2.1.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        kinds: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `function`, on values and tangent apart if it is linear in its first argument and only that has one."""
        kwargs = kwargs or {}
        pass_on = _LINEAR.get(function)
        if pass_on is None or not args:
            return function(*args, **kwargs)
        value, tangent = _unpacked(args[0])
        constants = (*args[1:], *kwargs.values())
        if tangent is None or any(_unpacked(one)[1] is not None for one in constants):
            return function(*args, **kwargs)
        moved = pass_on(function, tangent, *args[1:], **kwargs)
        if moved is None:
            return function(*args, **kwargs)
        return forward_ad.make_dual(function(value, *args[1:], **kwargs), moved)  # type: ignore[no-untyped-call]


def _unpacked(value: object) -> tuple[Any, torch.Tensor | None]:
    """Return the value and the tangent of a tensor; of anything else itself and None."""
    if not isinstance(value, torch.Tensor):
        return value, None
    primal, tangent = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return primal, tangent


def _without_bias(
    function: Callable[..., torch.Tensor], tangent: torch.Tensor, weight: Any, bias: Any = None, *rest: Any, **more: Any
) -> torch.Tensor:
    return function(tangent, weight, None, *rest, **more)


def _batch_norm(
    function: Callable[..., torch.Tensor],
    tangent: torch.Tensor,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor | None:
    if training or variance is None:
        return None
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    return tangent * scale.to(tangent.dtype).reshape(-1, *[1] * (tangent.ndim - 2))


_LINEAR: Final[Mapping[Callable[..., Any], Callable[..., torch.Tensor | None]]] = {
    **dict.fromkeys([F.linear, F.conv1d, F.conv2d, F.conv3d], _without_bias),
    **dict.fromkeys([F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _without_bias),
    F.batch_norm: _batch_norm,
}
"""Operations that are linear in their first argument but for a constant -> what they make of a tangent; None if not."""
