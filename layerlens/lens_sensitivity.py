"""The measures of sensitivity, bound to a model; `Lens` is one of these."""

from __future__ import annotations

from typing import Any

from .analyzers import sensitivity
from .layers import Selection
from .results import Explained, LayerProfile, Ranking
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
