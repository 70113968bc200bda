"""The demo's numbers: every analyzer on one picture, with its time as a multiple of one forward pass."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from layerlens.lens import Lens
from layerlens.results import ActivationMaps, Attribution, LayerProfile, Relevance
from layerlens.targets.target import Target

from .demo_subject import Subject

Result = TypeVar("Result")

SALIENCY = ("input_x_gradient", "integrated_gradients", "smooth_grad")


@dataclasses.dataclass
class Findings:
    """What the analyzers found on one picture.

    Attributes:
        title: of the picture.
        x: the input (1, channels, height, width).
        top: the predicted class.
        probability: of it.
        target: what is explained.
        cam: the class activation map.
        saliency: one attribution per method.
        relevance: with the relevance at `Subject.depth`.
        times: analyzer -> seconds over those of one forward pass.
    """

    title: str
    x: Tensor
    top: str
    probability: float
    target: Target
    cam: Attribution
    saliency: list[Attribution]
    relevance: Relevance
    times: dict[str, float]

    @property
    def completeness(self) -> float:
        """The completeness gap of integrated gradients."""
        return float(self.saliency[1].checks["completeness gap"][0])


class Clock:
    """Times calls in forward passes of the model on one input.

    Args:
        lens: the model.
        x: the input.
    """

    def __init__(self, lens: Lens, x: Tensor) -> None:
        self.times: dict[str, float] = {}
        with torch.no_grad():
            lens.model(x)
            self.forward = statistics.median(self._seconds(lambda: lens.model(x))[1] for _ in range(5))

    def run(self, name: str, function: Callable[[], Result]) -> Result:
        """Call `function` and note its time under `name`."""
        result, seconds = self._seconds(function)
        self.times[name] = seconds / self.forward
        return result

    @staticmethod
    def _seconds(function: Callable[[], Result]) -> tuple[Result, float]:
        start = time.perf_counter()
        result = function()
        return result, time.perf_counter() - start


def examine(lens: Lens, subject: Subject, title: str, x: Tensor, target: Any) -> Findings:
    """Run the analyzers on one picture.

    Raises:
        TargetError: when the target is unknown.
    """
    clock = Clock(lens, x)
    with torch.no_grad():
        probabilities = lens.model(x).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    wanted = lens.target(best if target is None else target)
    cam = clock.run("grad_cam", lambda: lens.grad_cam(x, target=wanted))
    saliency = [
        clock.run(method, lambda method=method: lens.saliency(x, target=wanted, method=method))  # type: ignore[misc]
        for method in SALIENCY
    ]
    relevance = clock.run("relevance", lambda: lens.relevance(x, target=wanted, layers=subject.depth))
    name, probability = subject.class_names[best], float(probabilities[best])
    return Findings(title, x, name, probability, wanted, cam, saliency, relevance, clock.times)


def activations(lens: Lens, subject: Subject, x: Tensor) -> list[ActivationMaps]:
    """The activation maps of the subject's chosen layers."""
    return [lens.activation_maps(x, layer) for layer in subject.mosaic]


def profile(lens: Lens, subject: Subject, x: Tensor) -> LayerProfile:
    """The sensitivity of the model's blocks, with its chance mark."""
    blocks = sorted({path.rsplit(".", 1)[0] for path in subject.mosaic if path.rsplit(".", 1)[-1].isdigit()})
    return lens.jacobian(x, [subject.mosaic[0], *(f"{block}.*" for block in blocks)], null=True)


def at_depth(relevance: Relevance, layer: str) -> Attribution:
    """The relevance at a layer's output as a map of the picture: summed over channels, spread evenly over the pixels.

    The sum is that of the layer: the map is in units of the score, like the relevance of the pixels.
    """
    (values,) = relevance.layers[layer]  # (1, channels, height, width)
    assert isinstance(relevance.inputs, Tensor)
    size = relevance.inputs.shape[-2:]
    cells = values.sum(dim=1, keepdim=True)  # (1, 1, height, width)
    share = cells.shape[-1] * cells.shape[-2] / (size[0] * size[1])
    spread = torch.nn.functional.interpolate(cells, size=size, mode="nearest")[:, 0] * share
    return dataclasses.replace(
        Attribution(**{field.name: getattr(relevance, field.name) for field in dataclasses.fields(Attribution)}),
        values=spread,
        axes=("batch", "height", "width"),
        method=f"relevance at {layer}",
    )
