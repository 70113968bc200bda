"""How much a map changes with an input that hardly changes, measured against the change of something else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.measured_calls import floating
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError, TargetError, check_count, check_seed, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.probes.run import capture
from layerlens.progress import track
from layerlens.signatures import Function, documented, public
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec

from ..explaining import Explain, as_explain, flat_map, floating_inputs, moved

EPS = 1e-6
"""What a zero is replaced by where it divides, and the smallest divisor (Agarwal et al. 2022, eq. 2)."""

_ARGS = {
    "method": "name of a saliency method, or a function `(model, x, target=..., forward=...) -> Attribution`.",
    "radius": "largest change, as a share of the range of each sample.",
    "samples": "number of changed inputs, uniform in that range; the same for all samples.",
    "options": "options of the method.",
}


def _stability(function: Function) -> Function:
    """Make a metric public, with the texts that all metrics here share."""
    function.__doc__ = documented(function.__doc__ or "", inspect.signature(function).parameters, _ARGS)
    return public(function)


@_stability
def local_lipschitz_estimate(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure the largest change of a map per change of the input, `(batch,)`; lower is steadier.

    max over ||y - x||_inf <= radius of ||phi(y) - phi(x)|| / ||y - x|| (Alvarez-Melis & Jaakkola 2018, eq. 2, over
    random y; `LocalLipschitzEstimate` in Quantus, with the map as it is). A map that never looks at the input is steady
    too.

    Raises:
        InputError: when the inputs are not floating-point tensors.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Example:
        >>> local_lipschitz_estimate(nn.Linear(3, 2), torch.rand(2, 3), "gradient", target=0)
        tensor([0., 0.], dtype=torch.float64)
    """
    near = _Neighbors(model, x, method, target, radius, samples, seed, forward, options, "local_lipschitz_estimate")
    return near.largest(lambda inputs, start: _length(_flat(inputs, near.names) - _flat(start, near.names)), False)


@_stability
def relative_input_stability(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure the largest relative change of a map per relative change of the input, `(batch,)`; lower is steadier.

    max over y near x, of the same predicted class, of ||(phi(y) - phi(x)) / phi(x)|| / ||(y - x) / x|| (Agarwal et al.
    2022, eq. 2; `RelativeInputStability` in Quantus). A zero that divides is replaced by 1e-6.

    Raises:
        InputError: when the inputs are not floating-point tensors.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when every change of a sample changes the predicted class; it gets NaN.

    Example:
        >>> relative_input_stability(nn.Linear(3, 2), torch.rand(2, 3), "gradient", target=0)
        tensor([0., 0.], dtype=torch.float64)
    """
    near = _Neighbors(model, x, method, target, radius, samples, seed, forward, options, "relative_input_stability")
    return near.largest(lambda inputs, start: _relative(_flat(inputs, near.names), _flat(start, near.names)), True)


@_stability
def relative_output_stability(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure the largest relative change of a map per change of the output, `(batch,)`; lower is steadier.

    max over y near x, of the same predicted class, of ||(phi(y) - phi(x)) / phi(x)|| / ||h(y) - h(x)||, h the output of
    the model (Agarwal et al. 2022, eq. 5; `RelativeOutputStability` in Quantus).

    Raises:
        InputError: when the inputs are not floating-point tensors.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output, or the output has no main tensor.

    Warns:
        UserWarning: when every change of a sample changes the predicted class; it gets NaN.

    Example:
        >>> relative_output_stability(nn.Linear(3, 2), torch.rand(2, 3), "gradient", target=0)
        tensor([0., 0.], dtype=torch.float64)
    """
    near = _Neighbors(model, x, method, target, radius, samples, seed, forward, options, "relative_output_stability")
    return near.largest(lambda inputs, start: _length(near.output(inputs) - near.output(start)), True)


@_stability
def relative_representation_stability(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    layers: Selection = None,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure the largest relative change of a map per relative change of layers, `(batch,)`; lower is steadier.

    max over y near x, of the same predicted class, of ||(phi(y) - phi(x)) / phi(x)|| / ||(L(y) - L(x)) / L(x)||, L the
    outputs of the layers side by side (Agarwal et al. 2022, eq. 3; `RelativeRepresentationStability` in Quantus).

    Raises:
        InputError: when the inputs are not floating-point tensors, or no layer returned a row for each sample.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.
        LayerNotFound: when the selection matches no layer.

    Warns:
        UserWarning: when every change of a sample changes the predicted class; it gets NaN.

    Example:
        >>> relative_representation_stability(nn.Linear(3, 2), torch.rand(2, 3), "gradient", target=0)
        tensor([0., 0.], dtype=torch.float64)
    """
    name = "relative_representation_stability"
    near = _Neighbors(model, x, method, target, radius, samples, seed, forward, options, name)

    def represented(inputs: Inputs) -> torch.Tensor:
        record = capture(model, inputs, layers, forward=forward, reduce=lambda output: _rows(output, inputs.batch))
        found = [row for call in record.order for row in call.value]
        if not found:
            raise InputError(f"{name}: no selected layer returned a row for each of {inputs.batch} sample(s).")
        return torch.cat(found, dim=1)

    return near.largest(lambda inputs, start: _relative(represented(inputs), represented(start)), True)


class _Neighbors:
    """Inputs near another one, and their maps.

    Raises:
        InputError: when the inputs are not floating-point tensors.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Input,
        method: str | Explain,
        target: Spec,
        radius: float,
        samples: int,
        seed: int,
        forward: Forward | None,
        options: dict[str, Any],
        name: str,
    ) -> None:
        check_count("samples", samples)
        check_seed(seed)
        if not radius > 0:
            raise OptionError(f"radius must be above 0, got {radius!r}.")
        self.model, self.forward, self.name = model, forward, name
        self.radius, self.samples, self.seed = radius, samples, seed
        self.inputs = as_inputs(x).named_for(model, forward)
        with borrowed(model, grad=False), torch.no_grad():
            scorer = Scorer(model, self.inputs, target, forward=forward)
            self.names = list(floating_inputs(scorer, name))
            scorer(scorer.values())  # the predicted class is chosen here
        self.target = scorer.target
        self._explain = as_explain(method, options)

    def explain(self, inputs: Inputs) -> torch.Tensor:
        """Return the map of an input, `(batch, values)`."""
        return flat_map(self._explain(self.model, inputs, target=self.target, forward=self.forward))

    def _changed(self) -> Iterator[Inputs]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in track(range(self.samples), self.name):
            yield moved(self.inputs, self.names, self.radius, lambda shape: _uniform(shape, generator))

    def output(self, inputs: Inputs) -> torch.Tensor:
        """Return the output of the model, `(batch, n)`.

        Raises:
            TargetError: when it has no row for each sample.
        """
        found = self._read(inputs)
        if found is None:
            raise TargetError(f"{self.name} needs an output with a row for each of {inputs.batch} sample(s).")
        return found

    def _read(self, inputs: Inputs) -> torch.Tensor | None:
        with borrowed(self.model, grad=False), torch.no_grad():
            output = inputs.run(self.model, self.forward)
            rows = _rows(main_output(output), inputs.batch) if floating(output) else []  # not of a Python number
        return rows[0] if rows else None

    def _classes(self, inputs: Inputs) -> torch.Tensor | None:
        """Return the predicted classes, `(batch,)`; None where the output has none."""
        output = self._read(inputs)
        return None if output is None or output.shape[1] < 2 else output.argmax(dim=1)

    def largest(self, change: Callable[[Inputs, Inputs], torch.Tensor], relative: bool) -> torch.Tensor:
        """Return the largest ratio of the change of the map to another change, `(batch,)`.

        Args:
            change: from the changed input and the input to that change, `(batch,)`.
            relative: whether the map's change is relative, and the predicted class must stay.
        """
        start = self.explain(self.inputs)
        classes = self._classes(self.inputs) if relative else None
        found = torch.full((len(start),), float("nan"), dtype=torch.float64, device=start.device)
        for near in self._changed():
            own = self.explain(near)
            size = _relative(own, start) if relative else _length(own - start)
            ratio = size / change(near, self.inputs).to(size).clamp_min(EPS if relative else 1e-300)
            if classes is not None and (others := self._classes(near)) is not None:
                ratio = ratio.masked_fill((others != classes).to(ratio.device), float("nan"))
            found = torch.fmax(found, ratio)
        lost = int(found.isnan().sum())
        if lost:
            warn(
                f"{self.name}: every change of {lost} of {len(found)} sample(s) changed the predicted class; they get "
                "NaN. Give a smaller radius=."
            )
        return found


def _uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw numbers between -1 and 1."""
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


def _flat(inputs: Inputs, names: list[str]) -> torch.Tensor:
    """Return some inputs side by side, `(batch, values)`, in float64."""
    tensors = inputs.tensors()
    return torch.cat([tensors[name].detach().double().reshape(inputs.batch, -1) for name in names], dim=1)


def _rows(output: object, batch: int) -> list[torch.Tensor]:
    """Return the floating-point tensors of an output with a row for each sample, `(batch, n)` each."""
    found = [tensor for tensor in floating(output) if tensor.ndim and len(tensor) == batch]
    return [tensor.detach().double().reshape(batch, -1) for tensor in found]


def _length(values: torch.Tensor) -> torch.Tensor:
    """Return the length of each row."""
    return values.square().sum(dim=1).sqrt()


def _relative(other: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the length of the relative change of each row."""
    return _length((other - start) / start.where(start != 0, torch.full_like(start, EPS)))
