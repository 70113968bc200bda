"""The measures of sensitivity, bound to a model; `Lens` is one of these."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset

from .analyzers import sensitivity
from .inputs import Inputs
from .layers import Selection
from .results import Curve, Explained, LayerProfile
from .target import Spec
from .wrapped import WrappedModel


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


SensitivityLens.sensitivity.methods = sensitivity.methods  # type: ignore[attr-defined]
