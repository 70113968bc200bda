"""Linear maps as autograd's nodes keep them: how to apply one with other weights, and how to pull back through it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A node that computes z = weight applied to x, plus a bias that the rules treat by itself.

    Z = x weight, or weight x.

    Attributes:
        node: of autograd's graph.
        slot: position of x in `next_functions`.
        x_name: the saved tensor that holds x.
        weight_name: the saved tensor that holds the weight.
        axis: axis of z along which its channels lie.
    """

    node: Any
    slot: int
    x_name: str
    weight_name: str
    axis: int = -1

    @property
    def x(self) -> torch.Tensor | None:
        """The input; None when autograd did not save it, for the weight needs no gradient."""
        saved = getattr(self.node, f"_saved_{self.x_name}", None)
        return saved.detach() if isinstance(saved, torch.Tensor) else None

    @property
    def weight(self) -> torch.Tensor:
        """The weight, as the node uses it."""
        weight: torch.Tensor = getattr(self.node, f"_saved_{self.weight_name}")
        return weight.detach()

    @property
    def weight_slot(self) -> int:
        """Position of the weight in `next_functions`."""
        return {0: 1, 1: 0}[self.slot] if len(self.node.next_functions) == 2 else {0: 1, 1: 2, 2: 1}[self.slot]

    @property
    def raw_weight(self) -> Any:
        """The place where the node saved its weight; hooks on it let the native backward use another one."""
        return getattr(self.node, f"_raw_saved_{self.weight_name}")

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Z without bias."""
        return x @ weight if self.axis == -1 else weight @ x

    def pull(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The transposed map on s, shaped like x."""
        transposed = weight.transpose(-1, -2)
        return s @ transposed if self.axis == -1 else transposed @ s

    def pull_weight(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The derivative of <s, z> by the weight, shaped like it."""
        with torch.enable_grad():
            start = weight.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(self.apply(x, start), start, s)
        return pulled

    def scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The weight whose outputs are `scale`, one number per channel, times as large."""
        return weight * scale

    def per_channel(self, value: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """A value per channel, shaped to fit z."""
        return value.reshape(-1) if self.axis == -1 else value.reshape(-1, *[1] * (z.ndim - 2))


class DenseMap(LinearMap):
    """The node of `F.linear`: weight (out, in)."""

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Z without bias."""
        return F.linear(x, weight)

    def pull(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The transposed map on s, shaped like x."""
        return s @ weight

    def scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The weight whose outputs are `scale` times as large."""
        return weight * scale.unsqueeze(1)


class ConvolutionMap(LinearMap):
    """A convolution of any rank, transposed or not, grouped, dilated."""

    def _options(self) -> tuple[Any, ...]:
        node = self.node
        return (
            node._saved_stride,
            _signed(node._saved_padding),
            node._saved_dilation,
            node._saved_transposed,
            node._saved_output_padding,
            node._saved_groups,
        )

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Z without bias."""
        return torch.convolution(x, weight, None, *self._options())

    def pull(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The transposed map on s, shaped like x."""
        options = (None, *self._options(), (True, False, False))
        pulled: torch.Tensor = torch.ops.aten.convolution_backward(s, x, weight, *options)[0]
        return pulled

    def scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The weight whose outputs are `scale` times as large; a transposed one holds (in, out / groups, ...)."""
        if not self.node._saved_transposed:
            return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        groups = int(self.node._saved_groups)
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _signed(sizes: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)


_LEFT = {"self", "mat1", "batch1"}
"""Saved tensors that are the left factor."""

_FORMS: dict[str, tuple[tuple[int, str, str], ...]] = {  # operation -> (slot of x, x, weight), for either factor
    "Mm": ((0, "self", "mat2"), (1, "mat2", "self")),
    "Bmm": ((0, "self", "mat2"), (1, "mat2", "self")),
    "Addmm": ((1, "mat1", "mat2"), (2, "mat2", "mat1")),
    "Baddbmm": ((1, "batch1", "batch2"), (2, "batch2", "batch1")),
    "Linear": ((0, "input", "weight"),),
    "Convolution": ((0, "input", "weight"),),
}


def linear_map(op: str, node: Any, slot: int) -> LinearMap | None:
    """The linear map of a node whose input in `slot` is the signal; None when it is none that rules know."""
    if op in ("Addmm", "Baddbmm") and float(node._saved_alpha) != 1:
        return None
    for place, x_name, weight_name in _FORMS.get(op, ()):
        if place == slot:
            if op == "Convolution":
                return ConvolutionMap(node, slot, x_name, weight_name, axis=1)
            if op == "Linear":
                return DenseMap(node, slot, x_name, weight_name)
            return LinearMap(node, slot, x_name, weight_name, axis=-1 if x_name in _LEFT else -2)
    return None
