"""Linear operations with constant weights: their maps, as autograd's nodes keep them, with bias and batch norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from .constant import Constant
from .graph import NodeInfo
from .operation import Kind, Node

CONVOLUTION, DENSE = "convolution", "dense"

VIEWS = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias"}
"""Operations that leave every number in its place."""

BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}

_SAVING_NOTHING = {
    "Clone", "View", "Alias", "Permute", "Transpose", "Squeeze", "Unsqueeze", "ConstantPadNd", "ToCopy",
    "RegisterPostBackwardFunction",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """The map of a node that computes z = x weight, or weight x, plus a bias that rules treat by itself.

    Attributes:
        node: node of autograd's graph.
        slot: position of x in `next_functions`.
        x_name: name of the saved tensor that holds x.
        weight_name: name of the saved tensor that holds the weight.
        axis: axis of z along which its channels lie.
    """

    node: Node
    slot: int
    x_name: str
    weight_name: str
    axis: int = -1

    @property
    def x(self) -> torch.Tensor | None:
        """The input; None if autograd did not save it because the weight needs no gradient."""
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
    def saved_weight(self) -> Any:
        """The `SavedTensor` of the weight; hooks on it let the native backward pass use another weight."""
        return getattr(self.node, f"_raw_saved_{self.weight_name}")

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return z, with a bias that broadcasts to it if one is given."""
        z = x @ weight if self.axis == -1 else weight @ x
        return z if bias is None else z.add_(bias)

    def apply_transposed(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Apply the transposed map to s; the result is shaped like x."""
        transposed = weight.transpose(-1, -2)
        return s @ transposed if self.axis == -1 else transposed @ s

    def weight_gradient(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the derivative of <s, z> by the weight, shaped like it."""
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.apply(x, leaf), leaf, s)
        return gradient

    def scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the weight whose outputs are `scale`, one number per channel, times as large."""
        return weight * scale

    def per_channel(self, value: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Shape a value per channel to fit z."""
        return value.reshape(-1) if self.axis == -1 else value.reshape(-1, *[1] * (z.ndim - 2))


class DenseMap(LinearMap):
    """The map of `F.linear`: weight (out, in)."""

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return z, with a bias that broadcasts to it if one is given."""
        z = F.linear(x, weight)
        return z if bias is None else z.add_(bias)

    def apply_transposed(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Apply the transposed map to s; the result is shaped like x."""
        return s @ weight

    def scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the weight whose outputs are `scale` times as large."""
        return weight * scale.unsqueeze(1)


class ConvolutionMap(LinearMap):
    """A convolution of any rank, transposed or not, grouped, dilated."""

    @property
    def plain(self) -> bool:
        """Whether every output channel reads all input channels, which are axis 1 of the weight."""
        return not self.node._saved_transposed and int(self.node._saved_groups) == 1

    def _options(self) -> tuple[Any, ...]:
        node = self.node
        return (
            node._saved_stride,
            tuple(int(size) for size in node._saved_padding),  # saved without its sign
            node._saved_dilation,
            node._saved_transposed,
            node._saved_output_padding,
            node._saved_groups,
        )

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return z, with a bias that broadcasts to it if one is given."""
        if bias is None:
            return torch.convolution(x, weight, None, *self._options())
        if bias.ndim == weight.ndim - 1 and bias.numel() == bias.shape[0] > 1:  # one number per channel
            return torch.convolution(x, weight, bias.reshape(-1), *self._options())
        return torch.convolution(x, weight, None, *self._options()).add_(bias)

    def apply_transposed(self, s: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Apply the transposed map to s; the result is shaped like x."""
        options = (None, *self._options(), (True, False, False))
        transposed: torch.Tensor = torch.ops.aten.convolution_backward(s, x, weight, *options)[0]
        return transposed

    def scaled(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the weight whose outputs are `scale` times as large; transposed: (in, out / groups, ...)."""
        if not self.node._saved_transposed:
            return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        groups = int(self.node._saved_groups)
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


_LEFT_FACTORS = {"self", "mat1", "batch1"}

_FORMS: dict[str, tuple[tuple[int, str, str], ...]] = {  # operation -> (slot of x, x, weight), for either factor
    "Mm": ((0, "self", "mat2"), (1, "mat2", "self")),
    "Bmm": ((0, "self", "mat2"), (1, "mat2", "self")),
    "Addmm": ((1, "mat1", "mat2"), (2, "mat2", "mat1")),
    "Baddbmm": ((1, "batch1", "batch2"), (2, "batch2", "batch1")),
    "Linear": ((0, "input", "weight"),),
    "Convolution": ((0, "input", "weight"),),
}


def linear_map(op: str, node: Node, slot: int) -> LinearMap | None:
    """Return the linear map of a node whose input in `slot` is the signal; None if rules do not know it."""
    if op in ("Addmm", "Baddbmm") and float(node._saved_alpha) != 1:
        return None
    for x_slot, x_name, weight_name in _FORMS.get(op, ()):
        if x_slot == slot:
            if op == "Convolution":
                return ConvolutionMap(node, slot, x_name, weight_name, axis=1)
            if op == "Linear":
                return DenseMap(node, slot, x_name, weight_name)
            return LinearMap(node, slot, x_name, weight_name, axis=-1 if x_name in _LEFT_FACTORS else -2)
    return None


@dataclasses.dataclass(eq=False)
class LinearOperation:
    """A linear operation with a constant weight, and what belongs to it.

    Attributes:
        info: its node.
        map: the linear map.
        kind: `CONVOLUTION` or `DENSE`.
        end: the node whose output is z with bias and norm: the linear node itself, or a batch norm.
        consumer: the only node that takes the output of `end`, views aside; None if there are several.
        constants: what is added on the way, as noted.
        first: whether no other linear operation lies between it and the input.
        last: whether no other linear operation lies between it and the score.
        nonnegative: whether its input is known to be at least 0, as after a ReLU.
    """

    info: NodeInfo
    map: LinearMap
    kind: str
    end: NodeInfo
    consumer: NodeInfo | None
    constants: tuple[tuple[int, Constant], ...]
    first: bool = False
    last: bool = False
    nonnegative: bool = False

    @property
    def number(self) -> int:
        """Sequence number of the linear node."""
        return self.info.number

    @property
    def norm(self) -> Node | None:
        """The batch norm's node; None if there is none."""
        return self.end.node if self.end.op in BATCH_NORMS else None

    @property
    def at_leaf(self) -> bool:
        """Whether its input is a leaf, moved at most by operations that save no tensor."""
        below = self.info.edges[self.map.slot]
        while below is not None and below.op in _SAVING_NOTHING:
            below = below.edges[0]
        return below is not None and below.op == "leaf"

    @property
    def rectified(self) -> bool:
        """Whether a ReLU or ReLU6 follows and nothing else does: outputs below 0 have no relevance."""
        if self.consumer is None or self.consumer.op != "Hardtanh":
            return self.consumer is not None and self.consumer.op == "Relu"
        return float(self.consumer.node._saved_min_val) == 0

    def scale_and_shift(self, z: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the factor of the norm, `(channel,)`, and the bias of the whole, which broadcasts to z; or None."""
        scale: torch.Tensor | None = None
        if (norm := self.norm) is not None:
            scale = torch.rsqrt(norm._saved_running_var + norm._saved_eps)
            scale = scale if norm._saved_weight is None else scale * norm._saved_weight
            scale = scale.detach().to(z.dtype)
        shift: torch.Tensor | None = None
        end = self.end.number
        for number, constant in self.constants:
            value = torch.as_tensor(constant.value, dtype=z.dtype, device=z.device)
            if scale is not None and number != end:
                value = value * self.map.per_channel(scale, z)
            shift = value if shift is None else shift + value
        return scale, shift

    def normalized(self, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the output of its batch norm from the input that the norm saved, and the norm's factor if known."""
        assert self.norm is not None
        z: torch.Tensor = self.norm._saved_input.detach()
        scale = self.scale_and_shift(z)[0] if scale is None else scale
        assert scale is not None
        end = self.end.number  # what the linear node itself adds is in the norm's input already
        added = [torch.as_tensor(c.value, dtype=z.dtype, device=z.device) for n, c in self.constants if n == end]
        return torch.addcmul(sum(added, start=z.new_zeros(())), z, self.map.per_channel(scale, z))


def linear_operations(nodes: Iterable[NodeInfo], constants: dict[int, list[Constant]]) -> list[LinearOperation]:
    """Return the linear operations of a graph, from the score to the input.

    Args:
        nodes: as `Graph.reached` returns them.
        constants: noted constants, by the number of the node whose result holds them.
    """
    ordered = sorted(nodes, key=lambda info: info.number)
    consumers: dict[int, list[NodeInfo]] = {}
    for info in ordered:
        for edge in info.edges:
            if edge is not None and edge.depends:
                consumers.setdefault(id(edge), []).append(info)
    operations = []
    for info in reversed(ordered):
        if info.carries and (map_ := _map_of(info)) is not None:
            operation = _with_norm(info, map_, consumers, constants)
            if all(constant.kind == "additive" and constant.part is None for _, constant in operation.constants):
                operations.append(operation)
    _mark_ends(operations, ordered)
    return operations


def _map_of(info: NodeInfo) -> LinearMap | None:
    factors = info.factors()
    if len(info.carrying) != 1 or len(factors) != 1:
        return None
    if any(edge is not None and edge.depends for slot, edge in enumerate(info.edges) if slot != factors[0]):
        return None  # the other factor comes from the input, by way of a stop
    return linear_map(info.op, info.node, factors[0])


def _with_norm(
    info: NodeInfo, map_: LinearMap, consumers: dict[int, list[NodeInfo]], constants: dict[int, list[Constant]]
) -> LinearOperation:
    def noted(one: NodeInfo) -> list[tuple[int, Constant]]:
        return [(one.number, constant) for constant in constants.get(one.number, [])]

    def only_consumer(one: NodeInfo) -> NodeInfo | None:
        takers = consumers.get(id(one), [])
        return takers[0] if len(takers) == 1 else None

    end, added = info, noted(info)
    after = only_consumer(end)
    if after is not None and after.op in BATCH_NORMS and after.row and after.row.kind is Kind.LINEAR:
        end, added = after, added + noted(after)
        after = only_consumer(end)
    while after is not None and after.op in VIEWS and not noted(after):
        after = only_consumer(after)
    kind = CONVOLUTION if isinstance(map_, ConvolutionMap) else DENSE
    nonnegative = _nonnegative(info.edges[map_.slot])
    return LinearOperation(info, map_, kind, end, after, tuple(added), nonnegative=nonnegative)


_POSITIVE = {"Relu", "Sigmoid", "Softmax", "SafeSoftmax", "Softplus", "Exp", "Hardsigmoid"}
_KEEPING_SIGNS = VIEWS | {
    "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "Mean", "Sum", "Select", "Slice", "Expand", "Permute", "Transpose", "T", "Clone", "Split",
}  # fmt: skip


def _nonnegative(info: NodeInfo | None) -> bool:
    while info is not None and info.op in _KEEPING_SIGNS:
        info = info.edges[0]
    if info is None:
        return False
    return info.op in _POSITIVE or (info.op == "Hardtanh" and float(info.node._saved_min_val) >= 0)


def _mark_ends(operations: list[LinearOperation], ordered: list[NodeInfo]) -> None:
    """Mark the operations that are first and last on every way from input to score that leads through them."""
    linear = {id(operation.info) for operation in operations}
    above_linear: dict[int, bool] = {}
    for info in ordered:
        above_linear[id(info)] = any(
            edge is not None and edge.depends and (id(edge) in linear or above_linear.get(id(edge), False))
            for edge in info.edges
        )
    below_linear: set[int] = set()
    for info in reversed(ordered):
        if id(info) in linear or id(info) in below_linear:
            below_linear.update(id(edge) for edge in info.edges if edge is not None)
    for operation in operations:
        operation.first = not above_linear[id(operation.info)]
        operation.last = id(operation.info) not in below_linear
