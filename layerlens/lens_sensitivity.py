"""The measures of sensitivity, bound to a model; `Lens` is one of these."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.utils.data import DataLoader, Dataset

from .analyzers import sensitivity
from .inputs.inputs import Inputs
from .model.layers import Selection
from .results import Curve, Explained, LayerProfile, Matrix, Ranking
from .targets.target import Spec
from .targets.tokens import token_pairs
from .wrapped_model import WrappedModel


class SensitivityLens(WrappedModel):
    """What changes of input, layers and weights do to a model, see `Lens`."""

    def sensitivity(self, x: Any, layers: Selection = None, **options: Any) -> Explained:
        """How sensitive the model is, by the question asked; see `sensitivity`."""
        return sensitivity.sensitivity(self.model, self.inputs(x), layers, forward=self.forward, **options)

    def jacobian(self, x: Any, layers: Selection = None, **options: Any) -> LayerProfile:
        """Which layers respond most to the input; see `jacobian`."""
        return sensitivity.jacobian(self.model, self.inputs(x), layers, forward=self.forward, **options)

    def noise_response(self, x: Any, layers: Selection = None, *, target: Spec = None, **options: Any) -> LayerProfile:
        """Which layers the output depends on, by noise at each; see `noise_response`."""
        inputs = self.inputs(x)
        aim = None if target is None else self.target(target, inputs)
        return sensitivity.noise_response(self.model, inputs, layers, target=aim, forward=self.forward, **options)

    def lipschitz(self, x: Any, layers: Selection = None, **options: Any) -> LayerProfile:
        """How far a small change of the input can grow on its way to every layer; see `lipschitz`."""
        return sensitivity.lipschitz(self.model, self.inputs(x), layers, forward=self.forward, **options)

    def attack_curve(self, x: Any, labels: Any = None, *, target: Spec = None, **options: Any) -> Curve:
        """How much accuracy is left under attacks of growing size; see `attack_curve`."""
        inputs, aim = self._samples(x, target)
        return sensitivity.attack_curve(self.model, inputs, labels, target=aim, forward=self.forward, **options)

    def attack_drift(
        self, x: Any, labels: Any = None, layers: Selection = None, *, target: Spec = None, **options: Any
    ) -> LayerProfile:
        """How far an attack drives every layer from what it was; see `attack_drift`."""
        inputs, aim = self._samples(x, target)
        return sensitivity.attack_drift(self.model, inputs, labels, layers, target=aim, forward=self.forward, **options)

    def corruption_curve(self, x: Any, labels: Any = None, *, target: Spec = None, **options: Any) -> Curve:
        """How much accuracy is left under common corruptions; see `corruption_curve`."""
        inputs, aim = self._samples(x, target)
        return sensitivity.corruption_curve(self.model, inputs, labels, target=aim, forward=self.forward, **options)

    def _samples(self, x: Any, target: Spec) -> tuple[Any, Spec]:
        """A data set as it is, or an input as the model reads it; and the target."""
        inputs = x if isinstance(x, (Dataset, DataLoader)) else self.inputs(x)
        known = inputs if isinstance(inputs, Inputs) else None
        return inputs, None if target is None else self.target(target, known)

    def ablate(
        self, x: Any, layers: Selection = None, *, target: Spec = None, reference: Any = None, **options: Any
    ) -> Explained:
        """What the output loses without a layer, channel, head or position; see `ablate`."""
        inputs = self.inputs(x)
        aim = None if target is None else self.target(target, inputs)
        texts = isinstance(reference, (list, tuple)) and all(isinstance(text, str) for text in reference)
        options["reference"] = self.inputs(reference) if texts else reference
        return sensitivity.ablate(self.model, inputs, layers, target=aim, forward=self.forward, **options)

    def patch(self, x: Any, other: Any, layers: Selection = None, *, target: Spec = None, **options: Any) -> Explained:
        """Where the difference between two inputs is carried; see `patch`. Positions are named by their tokens."""
        inputs, clean = self.inputs(x), self.inputs(other)
        aim = self.target(target, clean)
        found = sensitivity.patch(self.model, inputs, clean, layers, target=aim, forward=self.forward, **options)
        names = None if self.tokenizer is None else token_pairs(self.tokenizer, inputs, clean)
        if names is None or not isinstance(found, Matrix) or len(names) != len(found.columns):
            return found
        return dataclasses.replace(found, columns=names)

    def sobol(self, x: Any, *, target: Spec = None, **options: Any) -> Ranking:
        """The share of the score's variance that each input feature makes; see `sobol`."""
        inputs = self.inputs(x)
        aim = None if target is None else self.target(target, inputs)
        return sensitivity.sobol(self.model, inputs, target=aim, forward=self.forward, **options)

    def morris(self, x: Any, *, target: Spec = None, **options: Any) -> Ranking:
        """How far the score moves when one input feature steps, from many places; see `morris`."""
        inputs = self.inputs(x)
        aim = None if target is None else self.target(target, inputs)
        return sensitivity.morris(self.model, inputs, target=aim, forward=self.forward, **options)

    def weight_sensitivity(
        self, x: Any, layers: Selection = None, *, target: Spec = None, **options: Any
    ) -> LayerProfile:
        """Which layers' weights output and loss depend on; `x` may be a data set. See `weight_sensitivity`."""
        aim = None if target is None else self.target(target)
        return sensitivity.weight_sensitivity(
            self.model, x, layers, target=aim, read=self.inputs, forward=self.forward, **options
        )


SensitivityLens.sensitivity.methods = sensitivity.methods  # type: ignore[attr-defined]
