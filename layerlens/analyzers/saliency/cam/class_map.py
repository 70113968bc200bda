"""From a layer to a map: weighted units are added up, rectified and enlarged to the input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.messages import of_samples
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import OptionError, SelectionError, warn
from layerlens.inputs.inputs import Forward, Input, Inputs
from layerlens.model.borrowed import borrowed, freeze
from layerlens.model.layers import Layers
from layerlens.model.selection import InputOf, Names
from layerlens.probes.made_edits import Edited
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .layer_choice import Options
from .layer_view import LayerView, choose_view, view_of

Weigh = Callable[[LayerView], torch.Tensor]
"""The units of a view, weighted: `(batch, unit, *places)`."""

FACTORS = (1.0, 0.9, 1.1)


def class_map(
    name: str,
    weigh: Weigh,
    model: nn.Module,
    x: Input,
    target: Spec,
    options: Options,
    forward: Forward | None,
    *,
    gradient: bool = True,
    principal: bool = False,
    conserves: bool = False,
    settings: dict[str, Any] | None = None,
) -> tuple[Attribution, LayerView]:
    """Make a class activation map over the input; also return the view of the layer that it was made at.

    Args:
        name: name of the method.
        weigh: makes the weighted units of a view.
        model: any module.
        x: input of the model.
        target: what to score.
        options: options that all such methods share.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        gradient: whether `weigh` needs the gradient.
        principal: whether to take the first principal component of the weighted units, not their sum.
        conserves: whether to check how far the sum of the map, before it is rectified, is from the score.
        settings: further options as used.
    """
    with borrowed(model):
        freeze(model)
        path, call, tensors = _layer(model, options)
        scorer = Scorer(model, x, target, forward=forward)
        if path is None:
            view = choose_view(scorer, name, options, gradient=gradient)
        else:
            view = view_of(scorer, name, path, options, call=call, tensors=tensors, gradient=gradient)
        view = view.of_tokens()
        cam, checks = _cam(view, weigh, options, principal)
        if conserves:
            total = cam.double().flatten(1).sum(dim=1)
            tiny = torch.finfo(torch.float64).tiny
            checks["conservation gap"] = (total - view.score).abs() / view.score.double().abs().clamp_min(tiny)
        values = view.enlarged(cam.relu() if options.relu else cam)
        if options.aug_smooth:
            others = [
                flip(view.enlarged(part.relu() if options.relu else part))
                for variant, flip in _variants(view)
                for part in [_cam(_same_view(view, variant, name, options, gradient), weigh, options, principal)[0]]
            ]
            values = torch.stack([values, *others]).mean(dim=0)
    _warn_of_zeros(values, cam, name, view)
    used = {
        "layer": view.path,
        "call": view.place[1],
        "size": view.grid.sizes,
        "relu": options.relu,
        "chosen": "automatically" if path is None else "by the caller",
    }
    if len(scorer.inputs.tensors()) > 1:
        used["input"] = view.grid.input
    smooth = {key: True for key in ("aug_smooth", "eigen_smooth") if getattr(options, key)}
    padding = scorer.padding.get(view.grid.input)
    if padding is not None:
        values = padding.zeros(values if values.shape[1] == padding.places.shape[1] else padding.take(values))
    result = Attribution(
        values=values.to(view.activation.dtype),
        axes=("batch", *view.grid.names),
        signed=not options.relu,
        units="score-weighted activation" if gradient else "weighted activation",
        target=scorer.target.label,
        targets=scorer.target.each,
        method=name,
        settings=used | smooth | (settings or {}) | scorer.passes,
        score=view.score,
        checks=checks,
        inputs=scorer.inputs.tensors()[view.grid.input].detach().clone(),
    )
    return result, view


def _layer(model: nn.Module, options: Options) -> tuple[Edited | None, int | None, Names]:
    """The layer, or its input; its call by `call=` or by a name such as `"relu#1"`; a tensor such as `"rnn/output"`.

    Raises:
        OptionError: when a call is given without a layer.
        SelectionError: when the selection matches several layers or calls.
    """
    if options.layer is None:
        if options.call is not None:
            raise OptionError("call= is one of the calls of a layer; say which: layer=...")
        return None, None, None
    of_input = isinstance(options.layer, InputOf)
    layer = options.layer.layer if isinstance(options.layer, InputOf) else options.layer
    chosen = Layers(model).select(layer, calls=True, tensors=True)
    matches = chosen.calls
    if len(matches) > 1:
        listed = ", ".join(list(matches)[:8]) + (", ..." if len(matches) > 8 else "")
        raise SelectionError(f"the selection matches {len(matches)} layers, one is needed: {listed}.")
    ((path, named),) = matches.items()
    if named is not None and (len(named) > 1 or options.call is not None):
        raise SelectionError(f"layer={options.layer!r} and call={options.call!r} must name one call of layer {path!r}.")
    call = options.call if named is None else next(iter(named))
    return InputOf(path) if of_input else path, call, chosen.tensors[path]


def _cam(
    view: LayerView, weigh: Weigh, options: Options, component: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The map on the grid of the layer, `(batch, *places)`."""
    weighted = weigh(view)
    if not (component or options.eigen_smooth):
        return weighted.sum(dim=1), {}
    cam, share = principal_component(weighted)
    return cam, {"share of the component": share}


def principal_component(weighted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The projection of each place's units on their first right singular vector, not centered.

    The sign of a singular vector is arbitrary; here the map agrees with the sum of the units.

    Args:
        weighted: `(batch, unit, *places)`.

    Returns:
        The maps `(batch, *places)`, and the part of the sum of squares that each holds, `(batch,)`.
    """
    matrix = weighted.flatten(2).mT  # (batch, place, unit)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    cam = left[:, :, 0] * values[:, :1]  # (batch, place)
    agrees = (cam * matrix.sum(dim=2)).sum(dim=1, keepdim=True)
    cam = torch.where(agrees < 0, -cam, cam)
    squares = values.square()
    share = squares[:, 0] / squares.sum(dim=1).clamp_min(torch.finfo(squares.dtype).tiny)
    return cam.reshape(len(cam), *weighted.shape[2:]), share


def _variants(view: LayerView) -> list[tuple[Inputs, Callable[[torch.Tensor], torch.Tensor]]]:
    """The image mirrored or not, times 0.9, 1 and 1.1, except itself; each with how to mirror its map back.

    Raises:
        OptionError: when the input is not an image.
    """
    if view.grid.names[-2:] != ("height", "width"):
        raise OptionError(f"aug_smooth mirrors images; input {view.grid.input!r} has axes {view.grid.names}.")
    image = view.scorer.inputs.tensors()[view.grid.input].detach()
    made: list[tuple[Inputs, Callable[[torch.Tensor], torch.Tensor]]] = []
    for mirrored, factor in list(itertools.product((False, True), FACTORS))[1:]:
        changed = (image.flip(-1) if mirrored else image) * factor
        back = (lambda maps: maps.flip(-1)) if mirrored else (lambda maps: maps)
        made.append((view.scorer.inputs.replace({view.grid.input: changed}), back))
    return made


def _same_view(view: LayerView, inputs: Inputs, name: str, options: Options, gradient: bool) -> LayerView:
    """The view of the same layer in a run on another input."""
    scorer = Scorer(view.scorer.model, inputs, view.scorer.target, forward=view.scorer.forward)
    scorer.interacting = view.scorer.interacting
    return view_of(
        scorer, name, view.edited, options, call=view.place[1], tensors=frozenset((view.place[2],)), gradient=gradient
    )


def _warn_of_zeros(values: torch.Tensor, cam: torch.Tensor, name: str, view: LayerView) -> None:
    """Warn of maps that are zero everywhere, and say whether all was negative or nothing was there."""
    empty, some = values.flatten(1).eq(0).all(dim=1), cam.flatten(1).ne(0).any(dim=1)
    negative = "the weighted channels are negative everywhere, so relu=True keeps nothing; relu=False shows them"
    for rows, why in ((empty & some, negative), (empty & ~some, "its gradient or its activation vanishes")):
        if listed := rows.nonzero().flatten().tolist():
            of = of_samples(listed, len(values))
            warn(f"{name}: the map{of} at layer {view.path!r} is zero everywhere: {why}.")
