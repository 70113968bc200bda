"""Score-CAM: each unit of a layer, weighted by the score of the input seen through it."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.gradients import BatchSize
from layerlens.analyzers.common.registry import method
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .class_map import class_map
from .grid import Reshape
from .layer_choice import Options
from .layer_view import Seat, leaf_values
from .unit_ablation import Trials


@method(family="cam", passes="1 forward per unit of the layer", needs="a layer with places", source="Wang et al. 2020")
def score_cam(
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
    units: int | None = None,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """Weight the units of a layer by the scores of the input masked by each, and add them up.

    w = softmax over k of S(X o H_k), H_k = A_k enlarged to the input and scaled to [0, 1] (Wang et al. 2020). The
    score of a blank input, which the paper takes off, is the same for all units and leaves the softmax as it is.
    Units whose map is constant have no mask, and no part in it. Token ids are masked in their embeddings. No gradient
    is used, except to choose the layer.

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
        units: how many units to try, those whose map varies most; None for all.
        batch_size: how many runs at once; `"auto"` by what one needs in memory.
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
        >>> score_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    trials = Trials("score_cam", units, batch_size)
    used = {"units": units, "batch_size": batch_size}
    return class_map(
        "score_cam",
        lambda seat: _weighted(seat, trials),
        model,
        x,
        target,
        options,
        forward,
        gradient=False,
        settings=used,
    )[0]


def _weighted(seat: Seat, trials: Trials) -> torch.Tensor:
    maps, leaves = seat.maps, leaf_values(seat.scorer)
    flat = maps.flatten(2)
    low, high = flat.amin(dim=2), flat.amax(dim=2)  # (batch, unit)

    def scores(rows: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        mask = seat.extent.enlarge(maps[rows, units])  # (n, *size), within the range of the map
        shape = (-1, *[1] * (mask.ndim - 1))
        bottom, top = mask.flatten(1).amin(dim=1).reshape(shape), mask.flatten(1).amax(dim=1).reshape(shape)
        mask = (mask - bottom) / (top - bottom)
        values = {name: leaf[rows] for name, leaf in leaves.items()}
        masked = values[seat.extent.name]
        values[seat.extent.name] = masked * seat.extent.spread(mask, masked.ndim).to(masked.dtype)
        return seat.scorer(values, rows)

    found, tried = trials.run(seat, scores, high > low)
    weights = found.masked_fill(~tried, -torch.inf).softmax(dim=1).nan_to_num(0.0)
    return weights.reshape(*weights.shape, *[1] * (maps.ndim - 2)) * maps
