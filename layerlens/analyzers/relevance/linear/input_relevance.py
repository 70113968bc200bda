"""From the input of a first layer to the leaves: relevance itself moves, not a multiplier.

Rules for the first layer give relevance to inputs that are 0, which a multiplier cannot say. Below that layer only
operations that move numbers, or scale and shift each by itself, are passed: there, relevance stays with its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge

from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.operation import Kind
from layerlens.errors import RelevanceError

from ..rules.bookkeeper import Bookkeeper
from .linear_sites import BATCH_NORMS, Site

_MOVES = set(
    """
    Alias AsStrided Clone Contiguous Expand Flip Movedim Narrow Permute Reshape ReshapeAlias Roll Rot90 Select Slice
    Split SplitWithSizes Squeeze Swapaxes T ToCopy Transpose Unbind Unflatten Unfold UnsafeSplit UnsafeView Unsqueeze
    View Cat Stack Gather Index IndexSelect PixelShuffle PixelUnshuffle ChannelShuffle Im2Col ConstantPadNd
    ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D Copy CopySlices
    RegisterPostBackwardFunction
    """.split()
)
_ELEMENTWISE = {"Add", "Sub", "Rsub", "Mul", "Div", "Neg"} | BATCH_NORMS


def deliver(
    found: Sequence[tuple[Site, torch.Tensor]], ends: Sequence[Any], keeper: Bookkeeper
) -> list[torch.Tensor | None]:
    """The relevance that first-layer rules bring to each of `ends`.

    Args:
        found: sites with the relevance of their inputs.
        ends: leaves and edges, as for `torch.autograd.grad`.
        keeper: keeps the ledger: what padding gets is absorbed.

    Raises:
        RelevanceError: when something else than a first layer's rule can handle lies below it.
    """
    totals: list[torch.Tensor | None] = [None] * len(ends)
    for site, relevance in found:
        slot = site.map.slot
        node, index = site.info.node.next_functions[slot]
        below = site.info.edges[slot]
        assert below is not None
        region = _region(below, site)
        handles = [_keep(info) for info in region if info.op in _ELEMENTWISE]
        handles += [_book(info, keeper) for info in region if info.op == "ConstantPadNd"]
        try:
            start: Any = GradientEdge(node, index)
            parts = torch.autograd.grad(start, list(ends), relevance, allow_unused=True, retain_graph=True)
        finally:
            for handle in handles:
                handle.remove()
        for place, part in enumerate(parts):
            if part is not None:
                before = totals[place]
                totals[place] = part if before is None else before + part
    return totals


def _region(below: NodeInfo, site: Site) -> list[NodeInfo]:
    """The nodes between a first layer's input and the leaves."""
    found: dict[int, NodeInfo] = {id(below): below}
    stack = [below]
    while stack:
        info = stack.pop()
        if info.op == "leaf":
            continue
        linear = info.row is not None and info.row.kind in (Kind.LINEAR, Kind.PRODUCT)
        alone = sum(edge is not None and edge.depends for edge in info.edges) == 1
        if not (info.op in _MOVES or (info.op in _ELEMENTWISE and alone and linear)):
            raise RelevanceError(
                f"a first-layer rule (flat, w2, z-box) stands at {site.info.op}, but {info.op} lies between it and the "
                "input, so relevance cannot be given to the input as it is. Use epsilon or z+ there."
            )
        for edge in info.edges:
            if edge is not None and edge.depends and id(edge) not in found:
                found[id(edge)] = edge
                stack.append(edge)
    return list(found.values())


def _keep(info: NodeInfo) -> Any:
    """Let relevance pass a node that scales or shifts each number by itself."""
    (slot,) = (slot for slot, edge in enumerate(info.edges) if edge is not None and edge.depends)

    def hook(gradients: tuple[torch.Tensor | None, ...], outer: tuple[torch.Tensor | None, ...]) -> Any:
        passed: list[torch.Tensor | None] = [None] * len(gradients)
        before, after = gradients[slot], outer[0]
        if before is not None and after is not None:
            passed[slot] = after.sum_to_size(before.shape) if after.shape != before.shape else after
        return tuple(passed)

    return info.node.register_hook(hook)


def _book(info: NodeInfo, keeper: Bookkeeper) -> Any:
    """Book what goes to the padding of a node."""

    def hook(gradients: tuple[torch.Tensor | None, ...], outer: tuple[torch.Tensor | None, ...]) -> None:
        if outer[0] is not None and gradients[0] is not None:
            keeper.add("absorbed", int(info.node._sequence_nr()), "padding", outer[0], -gradients[0])

    return info.node.register_hook(hook)
