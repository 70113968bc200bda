"""Relevance at the outputs of layers, read on its way to the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from layerlens.analyzers.graph.operation import Node
from layerlens.model.layers import LayerPath, Selection
from layerlens.model.trees import first_tensor
from layerlens.probes.probe import Probe
from layerlens.results import LayerProfile


@dataclasses.dataclass(frozen=True)
class LayerOutput:
    """The first output tensor of one call of a layer, and the edge of the graph at which its multiplier arrives."""

    edge: GradientEdge | None
    value: torch.Tensor


class LayerOutputs:
    """Keep the outputs of the selected layers during a forward pass.

    The value is a copy, and the edge is taken when the layer returns: an operation that writes into the output
    afterwards changes neither.

    Args:
        model: borrowed model.
        layers: which layers.
    """

    def __init__(self, model: nn.Module, layers: Selection) -> None:
        self._probe = Probe(model, layers, keep="reference", reduce=_layer_output)

    def __enter__(self) -> None:
        self._probe.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._probe.__exit__(*error)

    def __iter__(self) -> Iterator[tuple[LayerPath, LayerOutput]]:
        return ((call.layer, call.value) for call in self._probe.record.order if call.value is not None)

    def edges(self) -> list[GradientEdge]:
        """The edges, in order of execution, as further inputs of `torch.autograd.grad`."""
        return [output.edge for _, output in self if output.edge is not None]

    def relevance(
        self,
        multipliers: Sequence[torch.Tensor | None],
        first_layer: Sequence[torch.Tensor | None],
        folded: Mapping[Node, torch.Tensor | None],
    ) -> dict[LayerPath, tuple[torch.Tensor, ...]]:
        """Return R = h g by layer, one tensor per call; 0 where no relevance came by.

        Args:
            multipliers: one per entry of `edges()`.
            first_layer: relevance from first-layer rules, one per entry of `edges()`.
            folded: node -> h with batch norm, where a rule treats both as one; the multiplier is that of the norm.
        """
        by_layer: dict[LayerPath, tuple[torch.Tensor, ...]] = {}
        position = 0
        for layer, output in self:
            relevance = torch.zeros_like(output.value)
            if output.edge is not None:
                multiplier, added = multipliers[position], first_layer[position]
                position += 1
                if multiplier is not None:
                    normalized = folded.get(output.edge.node)  # type: ignore[call-overload]
                    relevance = (output.value if normalized is None else normalized) * multiplier
                relevance = relevance if added is None else relevance + added
            by_layer[layer] = (*by_layer.get(layer, ()), relevance)
        return by_layer


def _layer_output(output: Any) -> LayerOutput | None:
    main = first_tensor(output)
    if main is None or not main.is_floating_point():
        return None
    return LayerOutput(get_gradient_edge(main) if main.requires_grad else None, main.detach().clone())


def profile(relevance: Mapping[LayerPath, tuple[torch.Tensor, ...]], settings: dict[str, Any]) -> LayerProfile:
    """Summarize the relevance of each layer's output: its sum, and its sum of magnitudes, mean over the batch."""
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
