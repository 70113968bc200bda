"""Which of several inputs the places of a layer belong to: a layer of the text makes no map of the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from layerlens.analyzers.common.calls.call_shapes import Seen
from layerlens.analyzers.common.scorer import Scorer
from layerlens.model.trees import first_tensor
from layerlens.probes.probe import Probe

from .input_extent import Extent

Place = tuple[str, int]
Sources = Mapping[Place, tuple[str, ...]]
"""By call: the inputs that its output depends on, the one that came in last at the end."""


def sources(scorer: Scorer, over: Sequence[Extent]) -> Sources:
    """Find what every call depends on, by one more forward pass; empty if one input has all places."""
    if len({extent.name for extent in over}) < 2:
        return {}
    start = scorer.start()
    ends = {_end(leaf): name for name, leaf in start.items()}
    known: dict[Any, frozenset[str]] = {}
    kept: list[Any] = []  # nodes stay alive, so that none takes the place of another

    def reach(output: Any) -> frozenset[str]:
        tensor = first_tensor(output)
        if tensor is None or tensor.grad_fn is None:
            return frozenset()
        kept.append(tensor.grad_fn)
        return _reached(tensor.grad_fn, ends, known)

    with Probe(scorer.model, lambda path, module: True, reduce=_Reach(reach)) as record:
        scorer(start)
    embedded = {(use.layer, use.call): name for name, leaf in scorer.leaves.items() for use in leaf.uses}
    entered: list[str] = []
    by_call: dict[Place, tuple[str, ...]] = {}
    for call in record.order:
        own = embedded.get((call.layer, call.index))  # what it returned is exchanged after it was seen
        names: frozenset[str] = call.output.names if own is None else frozenset((own,))
        entered += sorted(names - set(entered))
        by_call[call.layer, call.index] = tuple(sorted(names, key=entered.index))
    return by_call if entered else {}


class _Names:
    """A set of names that a record does not walk through."""

    __slots__ = ("names",)

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names


class _Reach:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, output: Any) -> _Names:
        return _Names(self.function(output))


def _end(leaf: torch.Tensor) -> Any:
    """The node at which the graph of a leaf ends."""
    with torch.enable_grad():
        (following, _), *_ = leaf.view_as(leaf).grad_fn.next_functions  # type: ignore[union-attr]
    return following


def _reached(root: Any, ends: Mapping[Any, str], known: dict[Any, frozenset[str]]) -> frozenset[str]:
    """The leaves that the graph of a node ends at; each node is visited once in all."""
    stack: list[tuple[Any, Iterator[Any]]] = [(root, _before(root))] if root not in known else []
    while stack:
        node, rest = stack[-1]
        following = next((one for one in rest if one not in known), None)
        if following is not None:
            stack.append((following, _before(following)))
            continue
        own = frozenset((ends[node],)) if node in ends else frozenset()
        known[node] = own.union(*(known[one] for one in _before(node)))
        stack.pop()
    return known[root]


def _before(node: Any) -> Iterator[Any]:
    return (one for one, _ in node.next_functions if one is not None)


def belongs(one: Seen, extent: Extent, over: Sequence[Extent], origins: Sources) -> bool:
    """Whether the places of a call's output are those of an input.

    They are of an input that the output depends on; in a row, of the text or series with as many places if there is
    such a one. Among several of these it is the one that came in last: the text that a decoder writes comes after the
    text that it reads.
    """
    if not origins or one.shape is None:
        return True
    names = origins.get((one.path, one.index), ())
    row = one.shape[1:] if len(one.shape) == 3 else ()
    exact = [each.name for each in over if each.name in names and len(each.size) == 1 and each.size[0] in row]
    return extent.name == max(exact, key=names.index) if exact else extent.name in names
