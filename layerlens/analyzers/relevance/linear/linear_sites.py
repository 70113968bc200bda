"""Where in the graph linear operations stand, with the bias and the batch norm that belong to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from layerlens.analyzers.graph.added_constants import Constant
from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.operation import Kind

from .linear_maps import ConvolutionMap, LinearMap, linear_map

CONVOLUTION, DENSE = "convolution", "dense"

_KEEPS_NOTHING = {
    "Clone", "View", "Alias", "Permute", "Transpose", "Squeeze", "Unsqueeze", "ConstantPadNd", "ToCopy",
    "RegisterPostBackwardFunction",
}  # fmt: skip

VIEWS = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias"}
"""Operations that leave every number in its place."""

BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}


@dataclasses.dataclass(eq=False)
class Site:
    """A linear operation with a constant weight, and what belongs to it.

    Attributes:
        info: its node.
        map: the linear map.
        kind: `CONVOLUTION` or `DENSE`.
        end: the node whose output is z with bias and norm: the linear node itself, or a batch norm.
        consumer: the only node that takes the output of `end`, views aside; None when there are several.
        constants: what is added on the way, as noted.
        first: whether no other site lies between it and the input.
        last: whether no other site lies between it and the score.
        nonnegative: whether its input is known to be at least 0, being made by a ReLU or its kin.
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
        return int(self.info.node._sequence_nr())

    @property
    def norm(self) -> Any:
        """The batch norm's node; None when there is none."""
        return self.end.node if self.end.op in BATCH_NORMS else None

    @property
    def at_leaf(self) -> bool:
        """Whether its input is a leaf, moved at most by operations that save no tensor."""
        below = self.info.edges[self.map.slot]
        while below is not None and below.op in _KEEPS_NOTHING:
            below = below.edges[0]
        return below is not None and below.op == "leaf"

    @property
    def rectified(self) -> bool:
        """Whether a ReLU follows and nothing else does: outputs below 0 have no relevance."""
        return self.consumer is not None and self.consumer.op == "Relu"

    def scale_and_shift(self, z: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What the norm multiplies z with, `(channel,)`, and the bias of all of it, broadcasting to z; or None."""
        scale: torch.Tensor | None = None
        if self.norm is not None:
            node = self.norm
            scale = torch.rsqrt(node._saved_running_var + node._saved_eps)
            scale = scale if node._saved_weight is None else scale * node._saved_weight
            scale = scale.detach().to(z.dtype)
        shift: torch.Tensor | None = None
        end = int(self.end.node._sequence_nr())
        for number, constant in self.constants:
            value = torch.as_tensor(constant.value, dtype=z.dtype, device=z.device)
            if scale is not None and number != end:
                value = value * self.map.per_channel(scale, z)
            shift = value if shift is None else shift + value
        return scale, shift


def find_sites(nodes: Iterable[NodeInfo], constants: dict[int, list[Constant]]) -> list[Site]:
    """The sites of a graph, from the score to the input.

    Args:
        nodes: as `Graph.reached` gives them.
        constants: noted constants, by the number of the node whose result holds them.
    """
    nodes = list(nodes)
    consumers: dict[int, list[NodeInfo]] = {}
    for info in nodes:
        for edge in info.edges:
            if edge is not None and edge.depends:
                consumers.setdefault(id(edge), []).append(info)
    sites = []
    for info in sorted(nodes, key=_number, reverse=True):
        if info.carries and (found := _map_of(info)) is not None:
            site = _site(info, found, consumers, constants)
            if all(constant.kind == "additive" and constant.place is None for _, constant in site.constants):
                sites.append(site)
    _mark_ends(sites, nodes)
    return sites


def _number(info: NodeInfo) -> int:
    return int(info.node._sequence_nr())


def _map_of(info: NodeInfo) -> LinearMap | None:
    factors = info.factors()
    if len(info.carrying) != 1 or len(factors) != 1:
        return None
    if any(edge is not None and edge.depends for slot, edge in enumerate(info.edges) if slot != factors[0]):
        return None  # the other factor comes from the input, by way of a stop
    return linear_map(info.op, info.node, factors[0])


def _site(
    info: NodeInfo, found: LinearMap, consumers: dict[int, list[NodeInfo]], constants: dict[int, list[Constant]]
) -> Site:
    def noted(one: NodeInfo) -> list[tuple[int, Constant]]:
        return [(_number(one), constant) for constant in constants.get(_number(one), [])]

    def only_consumer(one: NodeInfo) -> NodeInfo | None:
        users = consumers.get(id(one), [])
        return users[0] if len(users) == 1 else None

    end, kept = info, noted(info)
    after = only_consumer(end)
    if after is not None and after.op in BATCH_NORMS and after.row and after.row.kind is Kind.LINEAR:
        end, kept = after, kept + noted(after)
        after = only_consumer(end)
    while after is not None and after.op in VIEWS and not noted(after):
        after = only_consumer(after)
    kind = CONVOLUTION if isinstance(found, ConvolutionMap) else DENSE
    return Site(info, found, kind, end, after, tuple(kept), nonnegative=_nonnegative(info.edges[found.slot]))


_POSITIVE = {"Relu", "Sigmoid", "Softmax", "SafeSoftmax", "Softplus", "Exp", "Hardsigmoid"}
_KEEPS_SIGN = VIEWS | {
    "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "Mean", "Sum", "Select", "Slice", "Expand", "Permute", "Transpose", "T", "Clone", "Split",
}  # fmt: skip


def _nonnegative(info: NodeInfo | None) -> bool:
    while info is not None and info.op in _KEEPS_SIGN:
        info = info.edges[0]
    if info is None:
        return False
    return info.op in _POSITIVE or (info.op == "Hardtanh" and float(info.node._saved_min_val) >= 0)


def _mark_ends(sites: list[Site], nodes: list[NodeInfo]) -> None:
    """Mark the sites that are first and last on every way from the input to the score that leads through them."""
    own = {id(site.info) for site in sites}
    below: dict[int, bool] = {}
    for info in sorted(nodes, key=_number):
        below[id(info)] = any(
            edge is not None and edge.depends and (id(edge) in own or below.get(id(edge), False)) for edge in info.edges
        )
    above: set[int] = set()
    for info in sorted(nodes, key=_number, reverse=True):
        if id(info) in own or id(info) in above:
            above.update(id(edge) for edge in info.edges if edge is not None)
    for site in sites:
        site.first, site.last = not below[id(site.info)], id(site.info) not in above
