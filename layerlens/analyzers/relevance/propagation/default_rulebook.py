"""The rulebook that fits a graph: what the literature uses for networks of its kind."""

from __future__ import annotations

from collections.abc import Sequence

from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.analyzers.graph.operation import Kind, Role

from ..linear.linear_sites import CONVOLUTION, Site
from ..rules.rulebook import RULEBOOKS, Rulebook


def rulebook_for(nodes: Sequence[NodeInfo], sites: Sequence[Site]) -> tuple[Rulebook, str]:
    """The rulebook for the graph of a score, and why.

    Attention: CP-LRP, which conserves relevance (AttnLRP, `"attn"`, does not; Achtibat et al. 2024 find it more
    faithful on language models). Convolutions without attention: z+ for them, epsilon for dense layers. Gates: all to
    the signal. All else: epsilon -> 0.

    Args:
        nodes: of the graph, as `Graph.reached` gives them.
        sites: its linear operations.
    """
    if any(_attends(info) for info in nodes):
        return RULEBOOKS["cp"], "it has attention"
    if any(site.kind == CONVOLUTION for site in sites):
        return RULEBOOKS["epsilon_plus"], "it has convolutions and no attention"
    if any(_weighs(info, Role.GATE) for info in nodes):
        return RULEBOOKS["gate"], "it has gates, and neither convolutions nor attention"
    return RULEBOOKS["epsilon"], "it has neither convolutions nor attention nor gates"


def _attends(info: NodeInfo) -> bool:
    """Whether a node weighs values by a softmax of the input."""
    return (info.carries and info.op.startswith("ScaledDotProduct")) or _weighs(info, Role.WEIGHT)


def _weighs(info: NodeInfo, role: Role) -> bool:
    """Whether a node multiplies a signal with a factor of this role."""
    if not info.carries or info.row is None or info.row.kind is not Kind.PRODUCT:
        return False
    roles = [edge.role for slot in info.factors() if (edge := info.edges[slot]) is not None]
    return len(roles) > 1 and role in roles
