"""Conditions: relevance that passes chosen units of a layer only (concept relevance, Achtibat et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from layerlens.analyzers.graph.operation import Node
from layerlens.axes.names import unit_axis
from layerlens.errors import OptionError, RelevanceError
from layerlens.model.layers import LayerPath, Layers
from layerlens.model.trees import first_tensor
from layerlens.probes.probe import Probe

OnHeld: TypeAlias = Callable[[Node, torch.Tensor, torch.Tensor], None]
Units: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor
"""Units of a layer by index, a list of them for each sample, or a boolean mask that broadcasts to its output."""


class Conditions:
    """Let relevance pass only the chosen units of layers, and book what is held back.

    Args:
        model: borrowed model.
        through: layer -> units; several layers are conditions that hold together.

    Attributes:
        nodes: nodes whose outputs are held back, once the model has run.
    """

    def __init__(self, model: nn.Module, through: Mapping[str, Units]) -> None:
        self.nodes: list[Node] = []
        self._layers = Layers(model)
        self._on_held: OnHeld | None = None
        units_of: dict[LayerPath, Units] = {}
        for selection, units in through.items():
            for path in self._layers.select(selection):
                units_of[path] = units
        self._probe = Probe(model, (), edits={path: self._edit(path, units) for path, units in units_of.items()})

    def __enter__(self) -> None:
        self._probe.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._probe.__exit__(*error)

    def on_held(self, report: OnHeld) -> None:
        """Call `report(node, output, multiplier)` in each backward pass for what is held back at a node's output."""
        self._on_held = report

    def _edit(self, path: LayerPath, units: Units) -> Callable[[Any], Any]:
        def edit(output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None or not tensor.requires_grad:
                raise RelevanceError(f"layer {path!r} returned nothing that relevance passes on its way to the input.")
            mask = unit_mask(path, self._layers[path], tensor, units)
            node, value = cast(Node, tensor.grad_fn), tensor.detach().clone()

            def hold(g: torch.Tensor) -> torch.Tensor:
                assert self._on_held is not None
                passed = g * mask
                self._on_held(node, value, g - passed)
                return passed

            self.nodes.append(node)
            tensor.register_hook(hold)  # type: ignore[no-untyped-call]
            return output

        return edit


def unit_mask(path: LayerPath, module: nn.Module, output: torch.Tensor, units: Units) -> torch.Tensor:
    """Return 1 where relevance may pass and 0 elsewhere, broadcasting to `output`.

    Units lie along the channel axis of an output with places (batch, channel, height, width) and along the last axis
    of others.

    Raises:
        OptionError: if a unit does not exist, or a mask does not fit.
    """
    if isinstance(units, torch.Tensor) and units.dtype == torch.bool:
        try:
            units.broadcast_to(output.shape)
        except RuntimeError:
            raise OptionError(
                f"a mask of shape {tuple(units.shape)} does not broadcast to the output {tuple(output.shape)} of layer "
                f"{path!r}."
            ) from None
        return units.to(output)
    axis = unit_axis(module, output)
    count = output.shape[axis]
    given: Any = units.tolist() if isinstance(units, torch.Tensor) else units
    listed: list[Any] = [given] if isinstance(given, int) else list(given)
    by_sample: list[Any] = [list(part) for part in listed] if listed and not isinstance(listed[0], int) else [listed]
    if len(by_sample) not in (1, len(output)):
        raise OptionError(f"units for {len(by_sample)} samples, but layer {path!r} returned {len(output)}.")
    mask = torch.zeros(len(by_sample), count, dtype=output.dtype, device=output.device)
    for row, wanted in enumerate(by_sample):
        if not wanted:
            raise OptionError(f"no unit of layer {path!r} is named, so no relevance would pass; give one or more.")
        for unit in wanted:
            if isinstance(unit, bool) or not isinstance(unit, int) or not -count <= unit < count:
                raise OptionError(f"there is no unit {unit!r}: layer {path!r} has {count} (0 to {count - 1}).")
            mask[row, unit] = 1
    shape = [1] * output.ndim
    shape[0], shape[axis] = len(by_sample), count
    return mask.reshape(shape)
