"""Class activation maps made of others: Grad-CAM against similar classes, and times guided backpropagation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.axes.followed import followed
from layerlens.axes.placement import spread
from layerlens.errors import OptionError, TargetError, check_count, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed, freeze
from layerlens.model.layers import Selection
from layerlens.probes.probe import Probe
from layerlens.results import Attribution
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec, Target, as_target

from ..gradient.guided_backprop import guided_backprop
from .class_map import class_map
from .gradient_cams import by_mean_gradient
from .layer_choice import Options, Reshape, places_of
from .layer_view import Hold, LayerView, unchanged


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
    """Make the Grad-CAM of the score of a class less the scores of the classes nearest to it.

    S = sum over d of p_d (y_c - strength y_d) / sum over d of p_d (Zhang et al. 2025), d being the classes whose
    scores are nearest to y_c, weighted by their probabilities as in the authors' code, here held fixed. Any other
    method does the same with `target=contrast(a, b)`.

    Args:
        similar: number of nearest classes to compare with, or the classes.
        strength: how much of their scores to take off: 0 is Grad-CAM.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> finer_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    _check(similar, strength)
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    compared = _compared(as_target(target), similar, strength)
    settings = {"similar": similar, "strength": strength}
    return class_map("finer_cam", by_mean_gradient, model, x, compared, options, forward, settings=settings)[0]


def _compared(target: Target, similar: int | Sequence[int], strength: float) -> Target:
    """The target less those like it, which are found on the first output.

    Raises:
        TargetError: when the target is not a class, or the output has no other.
        OptionError: when `similar` holds the class itself, or one that the output does not have.
    """
    if target.at is not None:
        raise TargetError(f"finer_cam compares classes, and {target.label!r} is not one. grad_cam takes any target.")

    def choose(output: Any) -> Target:
        base = target.resolve(output)
        base = base.logit or base
        rows = torch.arange(len(main_output(output)))
        logits = base.all_scores(output, rows).detach()
        own = base(output).detach()
        near = (logits - own.unsqueeze(1)).abs().argsort(dim=1, stable=True)  # (batch, class), itself first
        if logits.shape[1] < 2 or not torch.equal(logits.gather(1, near[:, :1]).squeeze(1), own):
            raise TargetError(
                f"finer_cam compares a class with others like it, and {base.label!r} is not one of the "
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
            scores = base.all_scores(output, rows).gather(1, others[rows])
            return base(output, rows) - strength * (weights[rows] * scores).sum(dim=1)

        return Target(score, f"{base.label} beyond {others.shape[1]} like it", each=base.each)

    def bind(inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        return dataclasses.replace(_compared(target.on(inputs, samples), similar, strength), binder=None)

    return Target(target.function, target.label, choose, each=target.each, binder=bind)


def _check(similar: int | Sequence[int], strength: float) -> None:
    """Check the options.

    Raises:
        OptionError: when one is out of range.
    """
    if isinstance(similar, int):
        check_count("similar", similar, also="a list of classes")
    elif not similar or isinstance(similar, str) or not all(isinstance(index, int) for index in similar):
        raise OptionError(f"similar must be a number of classes or a list of them, got {similar!r}.")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < float("inf"):
        raise OptionError(f"strength must be a number of at least 0, got {strength!r}.")


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

    Selvaraju et al. 2017, sec. 3.3. The product is as sharp as guided backpropagation, and its detail depends as
    little on the weights (Adebayo et al. 2018).

    Returns:
        An `Attribution` shaped like the input, `(batch, token)` for token ids; of several inputs one for each that the
        layer reads with the same places.

    Warns:
        UserWarning: when the model has no rectifier, the map of a sample is zero everywhere, or an input is left out.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> _ = [parameter.data.fill_(0.1) for parameter in net.parameters()]
        >>> guided_grad_cam(net, x, target=0).values.shape
        torch.Size([1, 1, 8, 8])
    """
    inputs = as_inputs(x)
    options = Options(layer, call, grid=grid, reshape=reshape)
    grad_cam, view = class_map("guided_grad_cam", by_mean_gradient, model, inputs, target, options, forward)
    guided = guided_backprop(model, inputs, target=view.scorer.target, forward=forward)
    values = guided.values if isinstance(guided.values, dict) else {view.grid.input: guided.values}
    tensors, maps = inputs.tensors(), grad_cam.tensor
    shown = {name: values[name] * spread(maps, view.grid, values[name].ndim).to(values[name].dtype)
             for name in _under(view, list(values))}  # fmt: skip
    axes = {name: axes for name in shown if (axes := guided.axes_of(name)) is not None}
    return dataclasses.replace(
        guided,
        values=next(iter(shown.values())) if len(shown) == 1 else shown,
        axes=axes if len(shown) > 1 else axes.get(view.grid.input),
        method="guided_grad_cam",
        units="guided gradient x weighted activation",
        settings={**grad_cam.settings, **guided.settings} | ({"input": ", ".join(shown)} if len(shown) > 1 else {}),
        inputs={name: tensors[name].detach().clone() for name in shown}
        if len(shown) > 1
        else tensors[view.grid.input].detach().clone(),
    )


def _under(view: LayerView, names: list[str]) -> list[str]:
    """The inputs over which the map of a layer lies: those that it reads, with places as the input of its grid.

    Warns:
        UserWarning: when it lies over some of them only.
    """
    scorer, own = view.scorer, view.grid.input
    found = followed(scorer.model, scorer.inputs, scorer.forward)
    alike = [name for name in names if name != own and places_of(found, name) == places_of(found, own)]
    if alike:
        hold = Hold("hold", unchanged, wanted=lambda place: place == view.place)
        with borrowed(scorer.model), Probe(scorer.model, (), edits={view.edited: hold}):
            freeze(scorer.model)
            leaves = scorer.start()
            scorer(leaves)
            output = hold.held[view.place]
            starts = [leaves[name] for name in alike]
            slopes = torch.autograd.grad(output.sum(), starts, allow_unused=True) if output.requires_grad else ()
        alike = [name for name, slope in zip(alike, slopes, strict=False) if slope is not None]
    if left := [name for name in names if name != own and name not in alike]:
        warn(
            f"guided_grad_cam: the map of layer {view.path!r} lies over input {', '.join([own, *alike])}, not over "
            f"{', '.join(left)}, which the layer does not read place by place, so {', '.join(left)} is left out. Name "
            "a layer that reads it, or take guided_backprop."
        )
    return [name for name in names if name == own or name in alike]
