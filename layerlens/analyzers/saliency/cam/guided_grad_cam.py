"""Guided Grad-CAM: the detail of guided backpropagation where Grad-CAM is."""

from __future__ import annotations

import dataclasses

from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from ..gradient.guided_backprop import guided_backprop
from .class_map import class_map
from .grad_cam import weighted
from .grid import Reshape
from .layer_choice import Options


@method(
    family="cam",
    passes="2 gradients",
    needs="a layer with places, ReLU or ReLU6",
    source="Selvaraju et al. 2017",
)
def guided_grad_cam(
    model: nn.Module,
    x: Input,
    layer: Selection = None,
    *,
    target: Spec = None,
    call: int | None = None,
    grid: tuple[int, ...] | None = None,
    reshape: Reshape | None = None,
    forward: Forward | None = None,
) -> Attribution:
    """Multiply guided backpropagation by the Grad-CAM map, enlarged to the input and rectified.

    Selvaraju et al. 2017, sec. 3.3. It is as sharp as guided backpropagation, and as independent of the weights in
    its detail (Adebayo et al. 2018).

    Args:
        model: any module whose input has places, with ReLU or ReLU6.
        x: its input, `(batch, ...)`, alone or with others.
        layer: where the map is made, as in `grad_cam`; None chooses the last layer with places.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        call: which call of a layer that runs several times.
        grid: (height, width), or one length, on which the layer's tokens lie.
        reshape: a function from the layer's output to `(batch, unit, *places)`.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the input that the map lies over, `(batch, token)` for token ids.

    Raises:
        InputError: when the input has no places.
        LayerNotFound: when the selection matches no layer; SelectionError when it matches several.
        RecordError: when the layer did not run, has no such call, or ran several times and none was chosen.
        OptionError: when the layer's output has no places, or the score does not depend on it.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when the model has no rectifier, or the map of a sample is zero everywhere.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> _ = [parameter.data.fill_(0.1) for parameter in net.parameters()]
        >>> guided_grad_cam(net, x, target=0).values.shape
        torch.Size([1, 1, 8, 8])
    """
    inputs = as_inputs(x)
    options = Options(layer, call, grid=grid, reshape=reshape)
    cam, seat = class_map("guided_grad_cam", weighted, model, inputs, target, options, forward)
    guided = guided_backprop(model, inputs, target=seat.scorer.target, forward=forward)
    name = seat.extent.name
    values = guided.values[name] if isinstance(guided.values, dict) else guided.values
    product = values * seat.extent.spread(cam.tensor, values.ndim).to(values.dtype)
    return dataclasses.replace(
        guided,
        values=product,
        axes=guided.axes if not isinstance(guided.values, dict) else None,
        method="guided_grad_cam",
        units="guided gradient x weighted activation",
        settings={**cam.settings, **guided.settings},
        inputs=inputs.tensors()[name].detach().clone(),
    )
