"""Relevance at the outputs of layers, read on its way to the input."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from layerlens.analyzers.common.features.basis_site import BasisSite
from layerlens.analyzers.graph.operation import Node
from layerlens.errors import RecordError
from layerlens.model.layers import LayerPath, Layers, Selection, is_listed
from layerlens.model.selection import InputOf, Matches
from layerlens.model.tensors import changeable, exchanged, tensor_path
from layerlens.model.trees import padded
from layerlens.probes.edit_site import Site
from layerlens.probes.edits import Change
from layerlens.probes.heads import attention_of, reading_inside
from layerlens.probes.probe import Probe
from layerlens.results import LayerProfile


@dataclasses.dataclass(frozen=True)
class LayerOutput:
    """A tensor that one call of a layer returned.

    Attributes:
        layer: path of the layer.
        index: index of the call.
        tensor: name of the tensor; `""` if it is the only one of floating point.
        edge: edge of the graph at which its multiplier arrives; None if the graph does not reach it.
        value: a copy.
        named: whether the tensor was asked for by its name.
    """

    layer: LayerPath
    index: int
    tensor: str
    edge: GradientEdge | None
    value: torch.Tensor
    named: bool

    @property
    def name(self) -> str:
        """The name in results."""
        return tensor_path(self.layer, self.tensor)


Folded: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""The output of a layer with its batch norm, and the factor of the norm, which broadcasts to it."""


@dataclasses.dataclass(frozen=True)
class Arrived:
    """What came back to a tensor that a layer returned.

    Attributes:
        output: the tensor.
        multiplier: the multiplier that arrived, of the norm where a rule treats both as one; None if none did.
        added: relevance that a first-layer rule brought; None if none did.
        folded: the output with batch norm, and its factor, where a rule treats both as one.
    """

    output: LayerOutput
    multiplier: torch.Tensor | None
    added: torch.Tensor | None
    folded: Folded | None

    @property
    def relevance(self) -> torch.Tensor:
        """R = h g, with what a first-layer rule brought; 0 where no relevance came by."""
        relevance = torch.zeros_like(self.output.value)
        if self.multiplier is not None:
            relevance = (self.output.value if self.folded is None else self.folded[0]) * self.multiplier
        return relevance if self.added is None else relevance + self.added


class LayerOutputs:
    """Keep the outputs of the selected layers during a forward pass.

    The value is a copy, and the edge is taken when the layer returns: an operation that writes into the output
    afterwards changes neither. Of several tensors the model continues with copies, at which only the relevance arrives
    that leaves the layer by this tensor, and not what a later tensor of the same layer was made of.

    Args:
        model: borrowed model.
        layers: which layers, or tensors of their outputs, or what layers take; `()` for none. What the output
            projection of an `nn.MultiheadAttention` takes, which does not run as a layer, is read inside of it.
        bases: tensors whose relevance is divided among the features of a basis.
    """

    def __init__(self, model: nn.Module, layers: Selection, bases: Sequence[BasisSite] = ()) -> None:
        self._found: list[LayerOutput] = []
        self._of_bases: list[tuple[BasisSite, list[LayerOutput]]] = [(site, []) for site in bases]
        self._probes: list[contextlib.AbstractContextManager[Any]] = [
            Probe(model, (), edits={site.call.selection: _read(into)}) for site, into in self._of_bases
        ]
        if layers == ():
            return
        read = _read(self._found)
        entries = list(layers) if is_listed(layers) and not isinstance(layers, Matches) else [layers]
        taken = [one.layer for one in entries if isinstance(one, InputOf)]
        rest = [one for one in entries if not isinstance(one, InputOf)]
        known, edited = Layers(model), list[Any]()
        if rest or not taken:
            edited += known.select(rest if is_listed(layers) else layers, calls=True, tensors=True).selections()
        if taken:
            matches = known.select(taken, calls=True, tensors=True)
            edited += map(InputOf, matches.selections())
            self._probes += [] if (inside := _inside(model, matches, read)) is None else [inside]
        self._probes.append(Probe(model, (), edits=dict.fromkeys(edited, read)))

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            for probe in self._probes:
                stack.enter_context(probe)
            self._stack = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _outputs(self) -> list[LayerOutput]:
        return [*self._found, *(output for _, found in self._of_bases for output in found)]

    def with_edges(self) -> list[LayerOutput]:
        """The tensors that the graph reaches."""
        return [output for output in self._outputs() if output.edge is not None]

    def edges(self) -> list[GradientEdge]:
        """The edges, as further inputs of `torch.autograd.grad`."""
        return [output.edge for output in self.with_edges() if output.edge is not None]

    def arrived(
        self,
        multipliers: Sequence[torch.Tensor | None],
        first_layer: Sequence[torch.Tensor | None],
        folded: Mapping[Node, Folded | None],
    ) -> list[Arrived]:
        """Return what arrived at each tensor of each call.

        Args:
            multipliers: one per entry of `edges()`.
            first_layer: relevance from first-layer rules, one per entry of `edges()`.
            folded: node -> h with batch norm, where a rule treats both as one; the multiplier is that of the norm.
        """
        arriving = iter(list(zip(multipliers, first_layer, strict=True)))
        found = []
        for output in self._outputs():
            multiplier, added = (None, None) if output.edge is None else next(arriving)
            norm = None if output.edge is None else folded.get(output.edge.node)  # type: ignore[call-overload]
            found.append(Arrived(output, multiplier, added, norm))
        return found

    def relevance(self, arrived: Sequence[Arrived]) -> list[tuple[LayerOutput, torch.Tensor]]:
        """Return R = h g of each tensor of each call; 0 where no relevance came by.

        Of a layer that returned several tensors those are left out that no relevance came by in any call, unless all
        are such, or they were asked for by name.
        """
        own = arrived[: len(self._found)]
        reached: set[str] = set()
        for one in own:
            if one.multiplier is not None or one.added is not None:
                reached |= {one.output.layer, one.output.name}
        return [
            (one.output, one.relevance)
            for one in own
            if one.output.named or one.output.layer not in reached or one.output.name in reached
        ]

    def at_bases(self, arrived: Sequence[Arrived]) -> list[tuple[BasisSite, Arrived]]:
        """Return what arrived at the tensor of each basis.

        Raises:
            RecordError: when the layer of a basis did not run this time.
        """
        rest, found = list(arrived[len(self._found) :]), []
        for site, outputs in self._of_bases:
            if len(outputs) != 1:
                raise RecordError(f"{site!r}: layer {site.name!r} did not run the same way again: its route changes.")
            found.append((site, rest.pop(0)))
        return found


def _read(into: list[LayerOutput]) -> _Read:
    return _Read("read", lambda tensor, site: tensor, keeps=True, found=into)


@dataclasses.dataclass(frozen=True)
class _Read(Change):
    """An edit that keeps numbers, and notes the tensors that a layer returns."""

    found: list[LayerOutput] = dataclasses.field(default_factory=list, repr=False)

    def apply(self, output: object, site: Site) -> Any:
        """Return the output, of several tensors copies; of arguments copies, at which only their relevance arrives."""
        owner, path = (None, repr(InputOf(site.path))) if site.arguments else (site.module, site.path)
        every = changeable(owner, output, None, site.path)
        wanted = changeable(owner, output, site.tensors, site.path)
        copies: dict[str, torch.Tensor] = {}
        for name, tensor in wanted.items():
            if not tensor.is_floating_point():
                continue
            read = tensor
            if (len(every) > 1 or site.arguments) and tensor.requires_grad:
                read = copies[name] = tensor.clone()
            edge = get_gradient_edge(read) if read.requires_grad else None
            short = name if len(every) > 1 or site.tensors is not None else ""
            about = (path, site.call, short, edge, padded(tensor.detach()).clone(), site.tensors is not None)
            self.found.append(LayerOutput(*about))
        return exchanged(owner, output, copies) if copies else output


def _inside(model: nn.Module, matches: Matches, read: _Read) -> contextlib.AbstractContextManager[Any] | None:
    """What reads the input of the selected output projections of `nn.MultiheadAttention`; None if there are none."""
    attentions = {path: attention_of(model, path) for path in matches}
    projections = {attention: path for path, attention in attentions.items() if attention is not None}
    if not projections:
        return None

    def note(attention: LayerPath, index: int, side_by_side: torch.Tensor) -> torch.Tensor:
        path = projections[attention]
        calls = matches.calls[path]
        if calls is not None and index not in calls:
            return side_by_side
        site = Site(path, index, model.get_submodule(path), matches.tensors[path], arguments=True)
        ((result,), _) = read.apply(((side_by_side,), {}), site)
        return result  # type: ignore[no-any-return]

    return reading_inside(model, set(projections), note)


def by_layer(found: Sequence[tuple[LayerOutput, torch.Tensor]]) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return the relevance by layer, or by tensor of a layer with several; one tensor per call."""
    named: dict[str, tuple[torch.Tensor, ...]] = {}
    for output, relevance in found:
        named[output.name] = (*named.get(output.name, ()), relevance)
    return named


def profile(found: Sequence[tuple[LayerOutput, torch.Tensor]], batch: int, settings: dict[str, Any]) -> LayerProfile:
    """Summarize the relevance of each layer's output: its sum, and its sum of magnitudes, mean over the batch.

    Several tensors of one call are added up, unless they were asked for by name.
    """
    rows: dict[str, torch.Tensor] = {}
    for output, values in found:
        layer = f"{output.layer} #{output.index}" if output.index else output.layer
        name = tensor_path(layer, output.tensor) if output.named else layer
        sums = torch.stack([values.double().sum(), values.double().abs().sum()]) / batch
        rows[name] = rows[name] + sums if name in rows else sums
    return LayerProfile(
        quantity="relevance",
        layers=tuple(rows),
        values=torch.stack(list(rows.values())),
        units="score",
        signed=True,
        method="layer-wise relevance propagation",
        settings=settings,
        series=("sum", "sum of magnitudes"),
    )
