"""How layers transform data, bound to a model; `Lens` is one of these."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from .analyzers import dynamics
from .model.layers import Selection
from .results import LayerHealth, LayerProfile, LogitLens, Matrix
from .targets.target import Spec, class_index
from .targets.tokens import Vocabulary
from .wrapped_model import WrappedModel


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

    def similarity(
        self, data: Any, layers: Selection = None, *, other: nn.Module | WrappedModel | None = None, **options: Any
    ) -> Matrix:
        """How alike the layers of this model, or of this and another, see a data set; see `similarity`."""
        if isinstance(other, WrappedModel):
            options = {"other_forward": other.forward, **options}
            other = other.model
        return dynamics.similarity(
            self.model, data, layers, other=other, forward=self.forward, read=self.inputs, **options
        )

    def geometry(self, data: Any, layers: Selection = None, labels: Any = None, **options: Any) -> LayerProfile:
        """In how many directions each layer spreads a data set, and how apart its classes lie; see `geometry`."""
        return dynamics.geometry(self.model, data, layers, labels, forward=self.forward, read=self.inputs, **options)

    def health(self, data: Any, layers: Selection = None, *, target: Spec = None, **options: Any) -> LayerHealth:
        """Dead, doubled and saturated units of each layer, zeros, spread, gradients; see `health`."""
        aim = target if target is None or target == "loss" else self._aim(target)
        return dynamics.health(self.model, data, layers, target=aim, forward=self.forward, read=self.inputs, **options)

    def nonlinearity(self, data: Any, layers: Selection = None, **options: Any) -> LayerProfile:
        """How far each layer is from a linear map, and which blocks change next to nothing; see `nonlinearity`."""
        return dynamics.nonlinearity(self.model, data, layers, forward=self.forward, read=self.inputs, **options)

    def logit_lens(self, x: Any, layers: Selection = None, *, target: Any = None, **options: Any) -> LogitLens:
        """What the model would say if each layer were its last; a target may be a name or a token; see `logit_lens`."""
        inputs = self.inputs(x)
        names = self.class_names
        if names is None and self.tokenizer is not None:
            names = Vocabulary(self.tokenizer, inputs)
        if isinstance(target, str):
            target = class_index(target, names)
        found = dynamics.logit_lens(
            self.model, inputs, layers, target=target, names=names, forward=self.forward, **options
        )
        ids = inputs.tensors().get("input_ids")
        if self.tokenizer is None or ids is None or found.axes[1] != "position" or ids.numel() != len(found.columns):
            return found
        known = Vocabulary(self.tokenizer)
        named = tuple(
            f"{place} {known[index]}" for place, index in zip(found.columns, ids.flatten().tolist(), strict=True)
        )
        return dataclasses.replace(found, columns=named)
