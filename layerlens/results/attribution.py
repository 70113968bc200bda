"""Results that put a number on every place of the input or of a layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..nested import describe
from .base import Result, numbers
from .layers import LayerProfile
from .ledger import Ledger

Values = torch.Tensor | dict[str, torch.Tensor]
"""One tensor, or one by name for a model with several inputs."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """How much each place of the input contributed to the score.

    Attributes:
        values: shaped like the input, `(batch, ...)`; `(batch, token)` for token ids; a dict by input name when the
            model takes several.
        axes: names of the axes, where known.
        signed: whether negative values have a meaning (evidence against); False for maps of magnitude.
        units: what a value is, for example `"score"` when the values of a sample add up to a part of its score.
        target: what was scored.
        method: how.
        settings: every option of the method as used.
        score: the score of each sample, `(batch,)`.
        checks: what the method can prove about itself, each `(batch,)`, for example `"completeness gap"`.
        inputs: the input, in the same form as `values` where it has the same axes; None where it is not kept.
        tokens: the text of each token, when known.
        targets: what was scored, sample by sample, where that differs.
    """

    values: Values
    axes: tuple[str, ...] | None
    signed: bool
    units: str
    target: str
    method: str
    settings: dict[str, Any]
    score: torch.Tensor
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    inputs: Values | None = None
    tokens: list[list[str]] | None = None
    targets: tuple[str, ...] | None = None

    def target_of(self, sample: int) -> str:
        """What was scored for one sample."""
        return self.target if self.targets is None else self.targets[sample]

    @property
    def tensor(self) -> torch.Tensor:
        """The values of a model with one input.

        Raises:
            InputError: when there are several; take one from `.values` by its name.
        """
        if isinstance(self.values, torch.Tensor):
            return self.values
        raise InputError(f"there are values for several inputs: {', '.join(self.values)}. Take one: .values[name]")

    def numpy(self) -> Any:
        """The values as a numpy array, or as a dict of arrays; bfloat16 becomes float32."""
        if isinstance(self.values, torch.Tensor):
            return _array(self.values)
        return {name: _array(values) for name, values in self.values.items()}

    def summary(self) -> list[tuple[str, str]]:
        """Method, target, shape, score and checks."""
        if isinstance(self.values, torch.Tensor):
            shape = describe(self.values)
        else:
            shape = "; ".join(f"{name} {describe(values)}" for name, values in self.values.items())
        rows = [("method", self.method), ("target", self.target), ("values", f"{shape}, in {self.units}")]
        rows.append(("score", numbers(self.score)))
        return rows + [(name, numbers(check)) for name, check in self.checks.items()]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Relevance(Attribution):
    """Relevance of every input, and of every layer's output that was asked for, with the ledger of the whole score.

    Attributes:
        ledger: where the score went: inputs + additive constants + what rules absorbed = score.
        layers: relevance at layer outputs, by layer; the tuple holds one tensor per call.
        profile: sum and absolute sum of relevance by layer, in order of execution.
        rules_used: operation -> the rule that it got.
        parameters: relevance that passes each parameter that was asked for, shaped like it, summed over the batch.
    """

    ledger: Ledger = dataclasses.field(kw_only=True)
    layers: dict[str, tuple[torch.Tensor, ...]] = dataclasses.field(kw_only=True, default_factory=dict)
    profile: LayerProfile | None = dataclasses.field(kw_only=True, default=None)
    rules_used: dict[str, str] = dataclasses.field(kw_only=True, default_factory=dict)
    parameters: dict[str, torch.Tensor] = dataclasses.field(kw_only=True, default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ActivationMaps(Result):
    """The output of one layer, unit by unit, laid over the places of its input.

    Attributes:
        layer: path of the layer.
        call: which of its calls.
        values: `(batch, unit, *places)`: places are (height, width) of a convolution, tokens of a transformer, time
            steps of a recurrent layer; none for a dense layer.
        units: the unit that each entry of axis 1 is.
        axes: names of the axes of `values`.
        inputs: the input, where it is a single floating-point tensor.
    """

    layer: str
    call: int
    values: torch.Tensor
    units: tuple[int, ...]
    axes: tuple[str, ...]
    inputs: torch.Tensor | None = None

    def strongest(self, count: int = 5) -> list[tuple[int, float]]:
        """The units whose mean activation over the batch and all places is largest, with that mean.

        Args:
            count: how many.
        """
        means = self.values.float().mean(dim=[axis for axis in range(self.values.ndim) if axis != 1])
        best = means.topk(min(count, len(means)))
        return [(self.units[index], value) for value, index in zip(*map(torch.Tensor.tolist, best), strict=True)]

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a numpy array."""
        return _array(self.values)

    def summary(self) -> list[tuple[str, str]]:
        """Layer, shape and the units that respond most."""
        best = ", ".join(f"{unit} ({mean:.3g})" for unit, mean in self.strongest(3))
        name = f"{self.layer} #{self.call}" if self.call else self.layer
        return [("layer", name), ("values", describe(self.values)), ("strongest units", best)]


def _array(values: torch.Tensor) -> np.ndarray[Any, Any]:
    values = values.detach().cpu()
    array: np.ndarray[Any, Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array
