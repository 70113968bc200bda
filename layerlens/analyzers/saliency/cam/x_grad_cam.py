"""XGrad-CAM: Grad-CAM whose weights are chosen by axioms."""

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


@method(family="cam", passes="1 gradient", needs="a layer with places", source="Fu et al. 2020")
def x_grad_cam(
    model: nn.Module,
    x: Input,
    layer: Selection = None,
    *,
    target: Spec = None,
    call: int | None = None,
    relu: bool = True,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    grid: tuple[int, ...] | None = None,
    reshape: Reshape | None = None,
    forward: Forward | None = None,
) -> Attribution:
    """Weight the units of a layer by the mean of the gradient where each is active, and add them up.

    w_k = sum over places of A_k / (sum over places of A_k) dS/dA_k (Fu et al. 2020), the weights that come closest to
    sensitivity (removing a unit changes the score by its map) and conservation (the map sums to the score). A unit
    whose sum is zero gets no weight.

    Args:
        model: any module whose input has places: an image, a volume, a series, token ids.
        x: its input, `(batch, ...)`, alone or with others.
        layer: where, as in `grad_cam`: one layer, or a call of one (`"relu#1"`); None chooses the last with places.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        call: which call of a layer that runs several times.
        relu: whether to keep the positive part only; False gives a signed map.
        aug_smooth: average over the image mirrored and made 10 % weaker and stronger, six runs in all.
        eigen_smooth: take the first principal component of the weighted units in place of their sum.
        grid: (height, width), or one length, on which the layer's tokens lie; leading tokens left over are dropped.
        reshape: a function from the layer's output to `(batch, unit, *places)`, in place of all that.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` `(batch, *places)` over the places of the input; `settings` tell the layer, its call and its
        grid. `checks["conservation gap"]` is |sum of the map on that grid, before ReLU, - score| / |score|.

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
        >>> x_grad_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    return class_map("x_grad_cam", _weighted, model, x, target, options, forward, conserves=True)[0]


def _weighted(seat: Seat) -> torch.Tensor:
    maps, slopes = seat.maps, seat.slopes
    places = tuple(range(2, maps.ndim))
    total = maps.sum(dim=places, keepdim=True)
    weights = (maps * slopes).sum(dim=places, keepdim=True) / total
    return torch.where(total == 0, torch.zeros_like(total), weights) * maps
