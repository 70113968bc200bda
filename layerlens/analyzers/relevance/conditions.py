"""Conditions: relevance that passes chosen units of a layer only (concept relevance, Achtibat et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from layerlens.analyzers.graph.operation import Node
from layerlens.axes.follow import Followed
from layerlens.errors import OptionError, RelevanceError
from layerlens.model.layers import Layers
from layerlens.model.tensors import changeable, exchanged, refuse_several, tensor_path
from layerlens.model.trees import describe
from layerlens.probes.edit_site import Site
from layerlens.probes.edits import Change
from layerlens.probes.probe import Probe

OnHeld: TypeAlias = Callable[[Node, torch.Tensor, torch.Tensor], None]
Units: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor
"""Units of a layer by index, a list of them for each sample, or a boolean mask that broadcasts to its output."""


class Conditions:
    """Let relevance pass only the chosen units of layers, and book what is held back.

    Of several tensors the model continues with copies, so that only the relevance is held back that leaves the layer.

    Args:
        model: borrowed model.
        through: layer, or a tensor of its output -> units; several are conditions that hold together.
        followed: returns the axes of the run.

    Attributes:
        nodes: nodes whose outputs are held back, once the model has run.
    """

    def __init__(self, model: nn.Module, through: Mapping[str, Units], followed: Callable[[], Followed]) -> None:
        self.nodes: list[Node] = []
        self._on_held: OnHeld | None = None
        self._passed: dict[str, bool] = {}
        layers = Layers(model)
        edits: dict[tuple[str, ...], _Hold] = {}
        for selection, units in through.items():
            for key in layers.select(selection, calls=True, tensors=True).selections():
                if key in edits:
                    raise OptionError(f"two conditions name layer {', '.join(key)!r}; give its units once.")
                edits[key] = _Hold(
                    "hold back", lambda tensor, site: tensor, keeps=True, by_sample=True, units=units, conditions=self
                )
        self._probe = Probe(model, (), edits=edits, followed=followed)

    def __enter__(self) -> None:
        self._probe.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._probe.__exit__(*error)

    def on_held(self, report: OnHeld) -> None:
        """Call `report(node, output, multiplier)` in each backward pass for what is held back at a node's output."""
        self._on_held = report

    def check(self) -> None:
        """Check, after the backward passes, that relevance met each condition.

        Raises:
            RelevanceError: when it did not.
        """
        idle = [name for name, passed in self._passed.items() if not passed]
        if idle or self._probe.record.unedited:
            named = ", ".join(map(repr, [*idle, *self._probe.record.unedited]))
            raise RelevanceError(
                f"no relevance passes {named}, so nothing is held back there: the score does not depend on it. "
                "relevance(x, layers=...) shows what relevance passes."
            )

    def hold(self, tensor: torch.Tensor, mask: torch.Tensor, node: Node, axis: int, name: str) -> None:
        """Let the relevance of a tensor pass where the mask is 1.

        Args:
            tensor: output of a layer, or a copy.
            mask: 1 or 0, broadcasts to it.
            node: the node that made the output.
            axis: axis of the samples.
            name: name of the layer and tensor.
        """
        value = tensor.detach().clone()
        self._passed.setdefault(name, False)

        def pass_units(g: torch.Tensor) -> torch.Tensor:
            assert self._on_held is not None
            self._passed[name] = True
            passed = g * mask
            held = g - passed
            self._on_held(node, value.movedim(axis, 0), held.movedim(axis, 0))
            return passed

        self.nodes.append(node)
        tensor.register_hook(pass_units)  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True)
class _Hold(Change):
    """An edit that keeps numbers, and holds back the relevance of units that are not chosen."""

    units: Units = 0
    conditions: Conditions = dataclasses.field(kw_only=True, repr=False)

    def apply(self, output: object, site: Site) -> Any:
        """Return the output, of several tensors copies.

        Raises:
            RelevanceError: when no tensor carries relevance.
            SelectionError: when the units do not mean the same in each tensor of several.
        """
        every = changeable(site.module, output, None, site.path)
        wanted = changeable(site.module, output, site.tensors, site.path)
        found = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
        if not found:
            name = tensor_path(site.path, ",".join(sorted(site.tensors or ())))
            raise RelevanceError(f"layer {name!r} returned nothing that relevance passes on its way to the input.")
        copies: dict[str, torch.Tensor] = {}
        counts: set[int] = set()
        for name, tensor in found.items():
            at = dataclasses.replace(site, tensor=name)
            try:
                mask, rows, axis = unit_mask(at, tensor, self.units)
            except OptionError as error:
                if len(found) > 1:
                    refuse_several(site.path, found, f"and the units do not fit {name!r}: {error}", error)
                raise
            if axis is not None:
                counts.add(tensor.shape[axis])
            held = tensor
            if len(every) > 1:
                held = copies[name] = tensor.clone()
            whole = site.path if site.tensors is None else tensor_path(site.path, name)
            self.conditions.hold(held, mask, cast(Node, tensor.grad_fn), rows, whole)
        if len(counts) > 1:
            refuse_several(site.path, found, f"with {' and '.join(map(str, sorted(counts)))} units")
        return exchanged(site.module, output, copies) if copies else output


def unit_mask(site: Site, output: torch.Tensor, units: Units) -> tuple[torch.Tensor, int, int | None]:
    """Return 1 where relevance may pass and 0 elsewhere, broadcasting to `output`, and the axes of samples and units.

    A boolean mask needs no axis of units.

    Raises:
        AxesUnknown: if the axis of samples, or of units, is not known.
        OptionError: if a unit does not exist, or a mask does not fit.
    """
    path, (known, name) = site.path, site.call_site(output)
    rows = known.batch_axis(output, name)
    if rows is None:
        raise OptionError(f"all samples share what layer {path!r} returned, so no relevance passes it to the input.")
    if isinstance(units, torch.Tensor) and units.dtype == torch.bool:
        try:
            units.broadcast_to(output.shape)
        except RuntimeError:
            raise OptionError(
                f"a mask of shape {tuple(units.shape)} does not broadcast to the output {tuple(output.shape)} of layer "
                f"{path!r}."
            ) from None
        return units.to(output), rows, None
    axis = known.unit_axis(output, name)
    if axis is None:
        raise OptionError(f"layer {path!r}, {describe(output)}, has no axis of units; give a boolean mask.")
    count, samples = output.shape[axis], output.shape[rows]
    given: Any = units.tolist() if isinstance(units, torch.Tensor) else units
    listed: list[Any] = [given] if isinstance(given, int) else list(given)
    by_sample: list[Any] = [list(part) for part in listed] if listed and not isinstance(listed[0], int) else [listed]
    if len(by_sample) not in (1, samples):
        raise OptionError(f"units for {len(by_sample)} samples, but layer {path!r} returned {samples}.")
    mask = torch.zeros(len(by_sample), count, dtype=output.dtype, device=output.device)
    for row, wanted in enumerate(by_sample):
        if not wanted:
            raise OptionError(f"no unit of layer {path!r} is named, so no relevance would pass; give one or more.")
        for unit in wanted:
            if isinstance(unit, bool) or not isinstance(unit, int) or not -count <= unit < count:
                raise OptionError(f"there is no unit {unit!r}: layer {path!r} has {count} (0 to {count - 1}).")
            mask[row, unit] = 1
    shape = [1] * output.ndim
    shape[rows], shape[axis] = len(by_sample), count
    return (mask if rows < axis else mask.T).reshape(shape), rows, axis
