"""Finer-CAM: what speaks for a class and not for those that are like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.errors import OptionError, TargetError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.outputs import class_scores
from layerlens.targets.target import Spec, Target, as_target

from .class_map import class_map
from .grad_cam import weighted
from .grid import Reshape
from .layer_choice import Options


@method(family="cam", passes="1 gradient", needs="a layer with places", source="Zhang et al. 2025")
def finer_cam(
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
    similar: int | Sequence[int] = 3,
    strength: float = 1.0,
    forward: Forward | None = None,
) -> Attribution:
    """Grad-CAM of the score of a class less the scores of the classes nearest to it.

    S = sum over d of p_d (y_c - strength y_d) / sum over d of p_d (Zhang et al. 2025), d being the classes whose
    scores are nearest to y_c, weighted by their probabilities as in the authors' code, here held fixed. Any other
    method does the same with `target=contrast(a, b)`.

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
        similar: how many of the nearest classes to compare with, or which classes.
        strength: how much of their scores to take off: 0 is Grad-CAM.
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
        >>> finer_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    _check(similar, strength)
    used = {"similar": similar, "strength": strength}
    aim = _compared(as_target(target), similar, strength)
    return class_map("finer_cam", weighted, model, x, aim, options, forward, settings=used)[0]


def _compared(target: Target, similar: int | Sequence[int], strength: float) -> Target:
    """The target less those like it, which are found on the first output."""
    if target.at is not None:
        raise TargetError(f"finer_cam compares classes, and {target.label!r} is none. grad_cam takes any target.")

    def choose(output: Any) -> Target:
        base = target.resolve(output)
        logits = class_scores(output).detach()
        own = base(output).detach()
        near = (logits - own.unsqueeze(1)).abs().argsort(dim=1, stable=True)  # (batch, class), itself first
        if logits.shape[1] < 2 or not torch.equal(logits.gather(1, near[:, :1]).squeeze(1), own):
            raise TargetError(
                f"finer_cam compares a class with others like it, and {base.label!r} is none of the "
                f"{logits.shape[1]} class(es). grad_cam(target=contrast(a, b)) compares any two targets."
            )
        if isinstance(similar, int):
            others = near[:, 1 : 1 + similar]
        else:
            others = torch.tensor([list(similar)], device=near.device).expand(len(near), -1)
            if bool(((others < 0) | (others >= logits.shape[1])).any()):
                raise OptionError(f"similar={similar!r}: the output has {logits.shape[1]} classes.")
            if bool((others == near[:, :1]).any()):
                raise OptionError(f"similar={similar!r} holds the class {base.label!r} itself.")
        weights = logits.softmax(dim=1).gather(1, others)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)

        def score(output: Any, rows: torch.Tensor) -> torch.Tensor:
            scores = class_scores(output).gather(1, others[rows])
            return base(output, rows) - strength * (weights[rows] * scores).sum(dim=1)

        return Target(score, f"{base.label} beyond {others.shape[1]} like it", each=base.each)

    return Target(target.function, target.label, choose, each=target.each)


def _check(similar: int | Sequence[int], strength: float) -> None:
    if isinstance(similar, int):
        check_count("similar", similar, also="a list of classes")
    elif not similar or isinstance(similar, str) or not all(isinstance(index, int) for index in similar):
        raise OptionError(f"similar must be a number of classes or a list of them, got {similar!r}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < float("inf"):
        raise OptionError(f"strength must be a number of at least 0, got {strength!r}.")
