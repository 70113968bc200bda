"""The tensors at which relevance is read and held, cut into parts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook

from layerlens.analyzers.common.features.basis_site import BasisSite
from layerlens.analyzers.common.parts.grid import grid
from layerlens.analyzers.common.parts.heads import Heads
from layerlens.analyzers.graph.operation import Gradients
from layerlens.axes.follow import Followed
from layerlens.axes.layout import holding as axes_holding, roles
from layerlens.errors import AxesUnknown, RecordError
from layerlens.model.layers import LayerPath
from layerlens.model.tensors import changeable
from layerlens.model.trees import padded, version

from ..book import Bookkeeper, Sweep
from ..layer_relevance import LayerOutput, LayerOutputs
from .part_site import FeatureSite, PartSite


class Sites(LayerOutputs):
    """Keep what layers return, and heads of attentions, during a forward pass, to read and hold relevance there.

    Args:
        model: borrowed model.
        layers: paths of layers, or tensors of their outputs; None to hold what all return until `take` chooses.
        heads: attentions that are cut into heads.
        by: kind of the parts of the layers.
        bases: tensors that are cut into the features of a basis and their error.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None,
        heads: Sequence[Heads],
        by: str,
        bases: Sequence[BasisSite] = (),
    ) -> None:
        self._model, self._heads, self._by = model, list(heads), by
        self._paths = {id(module): path for path, module in model.named_modules()} if layers is None else {}
        self._returned: dict[LayerPath, list[tuple[LayerOutput, int] | None]] = {}
        self.asked = list(layers or ()), heads, by, bases
        taken: list[Any] = [one.path if one.kind == "output" else one.taken for one in heads]
        wanted = list(dict.fromkeys([*(layers or ()), *taken]))
        super().__init__(model, wanted or (), bases)

    def __enter__(self) -> None:
        super().__enter__()
        if self._paths:
            hook = register_module_forward_hook(self._hold)
            self._stack.callback(hook.remove)

    def _hold(self, module: nn.Module, args: object, output: object) -> None:
        path = self._paths.get(id(module))
        if path is None:
            return
        calls, found = self._returned.setdefault(path, []), changeable(module, output, None, path)
        tensor = next(iter(found.values()), None)
        if len(found) != 1 or tensor is None or not tensor.is_floating_point():
            calls.append(None)
            return
        edge = get_gradient_edge(tensor) if tensor.requires_grad else None
        held = LayerOutput(path, len(calls), "", edge, padded(tensor.detach()), False)
        calls.append((held, version(tensor)))

    def take(self, layers: Sequence[str]) -> bool:
        """Choose among the layers of which all is held, and let go of the others.

        Returns:
            Whether all of them returned one tensor, which nothing wrote into; else nothing is chosen.
        """
        calls = [call for path in layers for call in self._returned.get(path, [None])]
        self._returned = {}
        found = [call[0] for call in calls if call is not None and version(call[0].value) == call[1]]
        if len(found) < len(calls):
            return False
        self._found += found
        self.asked = list(layers), *self.asked[1:]
        return True

    def parts(self, known: Followed) -> tuple[list[PartSite], dict[str, str]]:
        """Return the tensors that relevance passes, cut into parts, in order of execution; and why others are not.

        Args:
            known: the axes of the run.
        """
        heads = {self._noted_as(one): one for one in self._heads}
        sites: list[PartSite] = []
        left_out: dict[str, str] = {}
        taken: dict[Any, str] = {}
        for basis, outputs in self._of_bases:
            for output in outputs:
                if output.edge is None:
                    left_out[basis.name] = "does not depend on the input"
                elif (place := (output.edge.node, output.edge.output_nr)) in taken:
                    left_out[basis.name] = f"is the same tensor as {taken[place]!r}"
                else:
                    taken[place] = f"the features of {basis.name}"
                    sites.append(FeatureSite.of(basis, output))
        for output in self._found:
            one = heads.get(output.layer)
            label = output.name if one is None else one.label or "(model)"
            name = f"{label} #{output.index}" if output.index else label
            if one is not None and output.tensor not in ("", one.tensor):
                continue  # another argument of the output projection
            if output.edge is None:
                left_out[name] = "does not depend on the input"
                continue
            if (place := (output.edge.node, output.edge.output_nr)) in taken:
                left_out[name] = f"is the same tensor as {taken[place]!r}"
                continue
            by = self._by if one is None else "head"
            axes = self._axes(known, output, one)
            if isinstance(axes, str):
                left_out[name] = axes
                continue
            kinds, batch = axes
            parts = grid(by, output.value.shape, kinds, 0 if one is None else one.count)
            if isinstance(parts, str):
                left_out[name] = parts
                continue
            taken[place] = name
            sites.append(PartSite(name, output, parts, batch, by))
        return sorted(sites, key=lambda site: site.order), left_out

    def values_of(self, sites: Sequence[PartSite]) -> list[torch.Tensor | None]:
        """Return the values at the places of sites of another run; None where this run has none of that shape."""
        known = {(one.layer, one.index, one.tensor): one.value for one in self._outputs()}
        found = [known.get(site.key) for site in sites]
        return [
            value if value is not None and value.shape == site.output.value.shape else None
            for value, site in zip(found, sites, strict=True)
        ]

    def _noted_as(self, one: Heads) -> str:
        return one.path if one.kind == "output" else repr(one.taken)

    def _axes(self, known: Followed, output: LayerOutput, one: Heads | None) -> tuple[list[str], int] | str:
        """What the axes of a tensor count, and which is the batch; or why that is unknown."""
        if one is not None and one.kind == "attention":
            return ["place", *["batch"] * (output.value.ndim - 2), "unit"], output.value.ndim - 2
        argument = one is not None and one.kind == "input"
        path = output.layer if one is None else one.path
        try:
            call = known.site(path, output.index)
            found = call.seen(output.tensor or ("" if one is None else one.tensor), argument=argument)
        except RecordError:
            return "took another route when its axes were followed"
        except AxesUnknown:
            return "has a tensor that was not followed"
        if len(found) != output.value.ndim:
            return "has a tensor that was not followed"
        kinds: list[str] = list(roles(found))
        rows = axes_holding(found, "batch")
        if len(rows) != 1:
            return "has no single axis of samples that is known (name its axes: Lens(model, axes=...))"
        unknown = [size for size, kind in zip(output.value.shape, kinds, strict=True) if kind == "unknown" and size > 1]
        if unknown and self._by != "layer":
            return "has axes that are not known (name them: Lens(model, axes=...); lens.layers(x) shows why)"
        return kinds, rows[0]


@contextlib.contextmanager
def holding(sites: Sequence[PartSite]) -> Iterator[list[bool]]:
    """Let no relevance pass the sites whose entry of the yielded list is True, as all are at first."""
    held = [True] * len(sites)
    handles = []

    def stop(place: int, slot: int, outer: Gradients) -> Gradients | None:
        return tuple(None if at == slot else g for at, g in enumerate(outer)) if held[place] else None

    try:
        for place, site in enumerate(sites):
            hook: Any = functools.partial(stop, place, site.edge.output_nr)
            handles.append(site.edge.node.register_prehook(hook))
        yield held
    finally:
        for handle in handles:
            handle.remove()


def multipliers_at(
    sweep: Sweep, first: int, sites: Sequence[PartSite], outputs: LayerOutputs
) -> list[torch.Tensor | None]:
    """Return the multiplier that arrived at each site.

    Args:
        sweep: a backward pass.
        first: number of leaves, which come first among its ends.
        sites: the sites.
        outputs: where they were kept.
    """
    by_edge: dict[tuple[Any, int], torch.Tensor | None] = {}
    for edge, multiplier in zip(outputs.edges(), sweep.ends[first:], strict=True):
        by_edge[edge.node, edge.output_nr] = multiplier
    return [by_edge[site.edge.node, site.edge.output_nr] for site in sites]


def relevance_at(
    sites: Sequence[PartSite], multipliers: Sequence[torch.Tensor | None], bookkeeper: Bookkeeper
) -> list[torch.Tensor]:
    """Return the relevance of each part of each site, `(parts, batch)`."""
    return [
        torch.zeros(site.size, bookkeeper.batch, dtype=torch.float64)
        if g is None
        else site.relevance(g, bookkeeper).cpu()
        for site, g in zip(sites, multipliers, strict=True)
    ]
