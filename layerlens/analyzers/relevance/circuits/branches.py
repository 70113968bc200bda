"""The layers whose outputs are added to a stream: attentions and MLPs of a transformer, branches of a residual net."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from layerlens.analyzers.graph.graph import NodeInfo
from layerlens.model.layers import LayerPath

from ..record import Recording

_SUMS = ("Add", "Sub", "Rsub")


def branch_layers(recording: Recording) -> list[LayerPath]:
    """Return the layers that return a term of a sum which another term passes by, in the order of execution.

    Of `x + f(x)` it is f; where each term has been through a layer (a projected shortcut), it is both. A term that was
    made outside of any layer has no name, and is none. A model without any sum of the first kind has no stream.

    Args:
        recording: a forward pass.
    """
    found: dict[LayerPath, int] = {}
    streams, numbers = 0, sorted(info.number for info in recording.nodes if info.op != "leaf")
    spans = sorted(((end, start, path) for start, end, path in recording.spans if path), key=lambda one: one[0])
    for info in recording.nodes:
        if info.op not in _SUMS:
            continue
        terms = [edge for edge in info.edges if edge is not None and edge.carries]
        if len(terms) != 2 or terms[0] is terms[1]:
            continue
        for term, other in (terms, terms[::-1]):
            if _made_from(other, term):
                streams += 1  # the other term is computed from this one
                continue
            path = None if term.op == "leaf" else _returned_by(spans, numbers, term.number, info.number)
            if path is not None:
                found[path] = min(term.number, found.get(path, term.number))
    return sorted(found, key=found.__getitem__) if streams else []


def _made_from(info: NodeInfo, source: NodeInfo) -> bool:
    """Whether a node is computed from another one."""
    seen, stack = {id(info)}, [info]
    while stack:
        here = stack.pop()
        if here is source:
            return True
        for edge in here.edges:
            if edge is not None and edge.depends and id(edge) not in seen and _after(edge, source):
                seen.add(id(edge))
                stack.append(edge)
    return False


def _after(info: NodeInfo, source: NodeInfo) -> bool:
    """Whether a node was made no earlier than another; leaves count as made before all others."""
    return info is source or (info.op != "leaf" and (source.op == "leaf" or info.number >= source.number))


def _returned_by(
    ended: Sequence[tuple[int, int, LayerPath]], numbers: Sequence[int], term: int, total: int
) -> LayerPath | None:
    """The outermost layer of whose call a term is the last node on the way, and which the sum is not part of.

    Args:
        ended: (number after the last node, first number, path) of each call, sorted.
        numbers: numbers of the nodes on the way, sorted.
        term: number of the term.
        total: number of the sum.
    """
    following = numbers[bisect.bisect_right(numbers, term) :][:1]
    first = bisect.bisect_right(ended, term, key=lambda one: one[0])
    last = bisect.bisect_right(ended, min([total, *following]), key=lambda one: one[0])
    calls = [(end - start, path) for end, start, path in ended[first:last] if start <= term]
    return max(calls, default=(0, None), key=lambda one: one[0])[1]
