"""CAM: the class activation map of a model that ends in global average pooling and one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.model.trees import first_tensor
from layerlens.probes.probe import Probe
from layerlens.results import Attribution
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec

from .class_map import class_map
from .grid import Reshape
from .layer_choice import Options
from .layer_view import Seat


@method(
    family="cam",
    passes="1 gradient",
    needs="an end of global average pooling and one linear layer",
    source="Zhou et al. 2016",
)
def cam(
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
    """Weight the units of the last layer with places by the weights of the linear layer that reads their means.

    M(x, y) = sum over k of w_k A_k(x, y) (Zhou et al. 2016, eq. 2). The weights w of any target that the linear
    layer's output makes are the gradient with respect to the pooled units; those of a class are its row of the
    matrix. That the linear layer reads the mean of this layer's units, and makes the output, is checked in the run.

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
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    return class_map("cam", _weighted, model, x, target, options, forward)[0]


def _weighted(seat: Seat) -> torch.Tensor:
    places = tuple(range(2, seat.maps.ndim))
    _check_head(seat)
    return seat.slopes.sum(dim=places, keepdim=True) * seat.maps  # eq. 2


def _check_head(seat: Seat) -> None:
    """See that the model's output is a linear layer's, and that this layer read the mean of the units."""
    scorer, mean = seat.scorer, seat.maps.flatten(2).mean(dim=2)
    linear = any(isinstance(module, nn.Linear) for module in scorer.model.modules())
    with torch.no_grad(), Probe(scorer.model, nn.Linear if linear else (), inputs=True) as record:
        output = main_output(scorer.inputs.run(scorer.model, scorer.forward))
    for call in record.order:
        made, read = call.output, first_tensor(call.inputs)
        if made.shape == output.shape and torch.equal(made, output) and read is not None and read.shape == mean.shape:
            loose = max(1e-5, 8 * torch.finfo(made.dtype).eps)
            if torch.allclose(read.to(mean.dtype), mean, rtol=loose, atol=loose * float(mean.abs().max())):
                return
    raise OptionError(
        f"{type(scorer.model).__name__} does not end in the mean over the places of layer {seat.where.path!r} and one "
        "linear layer, which cam needs. Name the layer before the pooling; grad_cam works on other "
        "models, and is the same on such ones."
    )
