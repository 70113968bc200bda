"""How layers transform data, bound to a model; `Lens` is one of these."""

from __future__ import annotations

from typing import Any

import torch

from .analyzers import dynamics
from .layers import Selection
from .results import LayerProfile
from .wrapped import WrappedModel


class DynamicsLens(WrappedModel):
    """What the layers of a model make of a data set, and what training makes of them, see `Lens`."""

    def watch(
        self, optimizer: torch.optim.Optimizer | None = None, layers: Selection = None, **options: Any
    ) -> dynamics.Watch:
        """Look on while your own loop trains the model: `with lens.watch(optimizer) as watching: ...`; see `watch`."""
        if options.get("data") is not None:
            options["data"] = self.inputs(options["data"])
        return dynamics.watch(self.model, optimizer, layers, forward=self.forward, **options)

    def linear_probe(self, data: Any, labels: Any = None, layers: Selection = None, **options: Any) -> LayerProfile:
        """What a linear readout can tell of a label from each layer; see `linear_probe`."""
        return dynamics.linear_probe(
            self.model, data, labels, layers, forward=self.forward, read=self.inputs, **options
        )

    def generalization_gap(self, train: Any, test: Any, layers: Selection = None, **options: Any) -> LayerProfile:
        """Where training and test samples part; see `generalization_gap`."""
        return dynamics.generalization_gap(
            self.model, train, test, layers, forward=self.forward, read=self.inputs, **options
        )

    def compare(
        self, other: Any, data: Any, labels: Any = None, layers: Selection = None, **options: Any
    ) -> LayerProfile:
        """What separates this model from another with the same layers, or from other weights; see `compare`."""
        second = other.model if isinstance(other, WrappedModel) else other
        return dynamics.compare(
            self.model, second, data, labels, layers, forward=self.forward, read=self.inputs, **options
        )
