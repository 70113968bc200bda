"""Taps: where relevance is read on its way, at the outputs of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from layerlens.model.layers import LayerPath, Selection
from layerlens.model.trees import first_tensor
from layerlens.probes.probe import Probe
from layerlens.results import LayerProfile


@dataclasses.dataclass(frozen=True)
class Tap:
    """The (first) output tensor of one call of a layer, and the edge of the graph at which its multiplier arrives."""

    edge: GradientEdge | None
    value: torch.Tensor


class Taps:
    """Tap the outputs of the selected layers during a forward pass.

    The value is a copy, and the edge is taken when the layer returns: an operation that writes into the output
    afterwards changes neither.

    Args:
        model: a borrowed model.
        layers: which layers.
    """

    def __init__(self, model: nn.Module, layers: Selection) -> None:
        self._probe = None if layers == () else Probe(model, layers, keep="reference", reduce=_tap)

    def __enter__(self) -> None:
        if self._probe is not None:
            self._probe.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._probe is not None:
            self._probe.__exit__(*error)

    def __iter__(self) -> Any:
        order = () if self._probe is None else self._probe.record.order
        return ((call, call.value) for call in order if call.value is not None)

    def edges(self) -> list[GradientEdge]:
        """The edges, in order of execution, as further inputs of `torch.autograd.grad`."""
        return [tap.edge for _, tap in self if tap.edge is not None]

    def relevance(
        self,
        multipliers: Sequence[torch.Tensor | None],
        direct: Sequence[torch.Tensor | None],
        outputs: Mapping[Any, torch.Tensor | None],
    ) -> dict[LayerPath, tuple[torch.Tensor, ...]]:
        """R = h g by layer, one tensor per call; 0 where no relevance came by.

        Args:
            multipliers: one per entry of `edges()`.
            direct: relevance that came by without a multiplier, likewise.
            outputs: node -> h with batch norm, where a rule treats both as one; the multiplier is that of the norm.
        """
        found: dict[LayerPath, tuple[torch.Tensor, ...]] = {}
        position = 0
        for call, tap in self:
            relevance = torch.zeros_like(tap.value)
            if tap.edge is not None:
                multiplier, more = multipliers[position], direct[position]
                position += 1
                if multiplier is not None:
                    folded = outputs.get(tap.edge.node)
                    relevance = (tap.value if folded is None else folded) * multiplier
                relevance = relevance if more is None else relevance + more
            found[call.layer] = (*found.get(call.layer, ()), relevance)
        return found


def _tap(output: Any) -> Tap | None:
    main = first_tensor(output)
    if main is None or not main.is_floating_point():
        return None
    return Tap(get_gradient_edge(main) if main.requires_grad else None, main.detach().clone())


def profile(relevance: Mapping[LayerPath, tuple[torch.Tensor, ...]], settings: dict[str, Any]) -> LayerProfile:
    """The relevance that passes each layer's output: its sum, and its sum of magnitudes, mean over the batch."""
    names, rows = [], []
    for layer, calls in relevance.items():
        for index, values in enumerate(calls):
            names.append(f"{layer} #{index}" if index else layer)
            total, size = values.double().sum(), values.double().abs().sum()
            rows.append(torch.stack([total, size]) / len(values))
    return LayerProfile(
        quantity="relevance",
        layers=tuple(names),
        values=torch.stack(rows),
        units="score",
        signed=True,
        method="layer-wise relevance propagation",
        settings=settings,
        series=("sum", "sum of magnitudes"),
    )
