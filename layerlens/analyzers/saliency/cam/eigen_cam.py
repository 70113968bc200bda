"""EigenCAM: what the units of a layer have most in common, whatever the score."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .class_map import class_map
from .grid import Reshape
from .layer_choice import Options
from .layer_view import Seat


@method(
    family="cam",
    passes="1 forward (+ 1 gradient to choose the layer)",
    needs="a layer with places",
    source="Muhammad & Yeasin 2020",
)
def eigen_cam(
    model: nn.Module,
    x: Input,
    layer: Selection = None,
    *,
    target: Spec = None,
    call: int | None = None,
    relu: bool = True,
    aug_smooth: bool = False,
    grid: tuple[int, ...] | None = None,
    reshape: Reshape | None = None,
    forward: Forward | None = None,
) -> Attribution:
    """Project a layer's output on the first principal direction of its units.

    With A = U S V^T, places by units, L = A v_1 (Muhammad & Yeasin 2020), not centred. The sign of a singular vector
    is arbitrary: the map is turned to agree with the sum of the units. The score has no part in it, so it is the same
    map for every class; `checks["share of the component"]` is how much of the sum of squares it holds.

    Args:
        model: any module whose input has places: an image, a volume, a series, token ids.
        x: its input, `(batch, ...)`, alone or with others.
        layer: where, as in `grad_cam`: one layer, or a call of one (`"relu#1"`); None chooses the last with places.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        call: which call of a layer that runs several times.
        relu: whether to keep the positive part only; False gives a signed map.
        aug_smooth: average over the image mirrored and made 10 % weaker and stronger, six runs in all.
        grid: (height, width), or one length, on which the layer's tokens lie; leading tokens left over are dropped.
        reshape: a function from the layer's output to `(batch, unit, *places)`, in place of all that.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` `(batch, *places)` over the places of the input; `settings` tell the layer, its call and its
        grid.

    Raises:
        InputError: when the input has no places.
        LayerNotFound: when the selection matches no layer; SelectionError when it matches several.
        RecordError: when the layer did not run, has no such call, or ran several times and none was chosen.
        OptionError: when the layer's output has no places, or the score does not depend on it.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when the map of a sample is zero everywhere.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> eigen_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    options = Options(layer, call, relu, aug_smooth, False, grid, reshape)
    return class_map("eigen_cam", _weighted, model, x, target, options, forward, gradient=False, principal=True)[0]


def _weighted(seat: Seat) -> torch.Tensor:
    return seat.maps
