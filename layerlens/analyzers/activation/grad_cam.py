"""Grad-CAM: the channels of a layer, weighted by how much the score rises with each, laid over the image."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...borrow import borrowed
from ...errors import InputError, OptionError, RecordError
from ...layers import LayerPath, Layers, Selection
from ...nested import describe, map_tensors
from ...probe import Edit, Probe
from ...results import Attribution
from ...target import Spec
from ..score import Scorer, backward_pass
from .grid import Grid, grid_of, patch_grids
from .survey import Seen, call_index, one_layer, seen, watch

Place = tuple[LayerPath, int]
Candidate = tuple[Seen, Grid]
Found = tuple[torch.Tensor, Candidate, torch.Tensor, torch.Tensor]
"""Scores, layer, activation, gradient."""

GROUP = 8
"""Layers whose gradient is taken in one run when the layer is chosen automatically."""


def grad_cam(
    model: nn.Module,
    x: Any,
    layer: Selection = None,
    *,
    target: Spec = None,
    call: int | None = None,
    relu: bool = True,
    forward: Callable[..., Any] | None = None,
) -> Attribution:
    """Weight the channels of a layer by the mean gradient of the score and add them up.

    a_k = mean over places of dS/dA_k; L = ReLU(sum over k of a_k A_k) (Selvaraju et al. 2017, eq. 1 and 2), where A is
    what the layer returned, before any operation that later writes into it. Tokens of a vision transformer are laid out
    on the grid of patches, class and other leading tokens left out. The map is enlarged to the image bilinearly.

    Args:
        model: any module that takes an image.
        x: its input, `(batch, channel, height, width)`, alone or with others.
        layer: a path, or any selection that matches one layer; None for the last layer (of those that are no linear
            projections of tokens) whose output has several places on which the score depends.
        target: what to score, as in `layerlens.target.as_target`; None is the predicted class.
        call: which call of a layer that runs several times.
        relu: whether to keep positive evidence only, as published; False gives a signed map.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` with values `(batch, height, width)` of the image; `settings` tell the layer, its call and the
        size of its grid.

    Raises:
        InputError: when no input is an image.
        LayerNotFound: when the selection matches no layer.
        SelectionError: when it matches several.
        RecordError: when the layer did not run, has no such call, or ran several times and none was chosen.
        OptionError: when the layer's output has no places, or the score does not depend on it.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when the map of a sample is zero everywhere.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> result = grad_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False)
        >>> result.values.shape, result.settings["layer"], result.settings["size"]
        (torch.Size([1, 8, 8]), '1', (6, 6))
    """
    path = None if layer is None else one_layer(model, layer)
    with borrowed(model):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)  # the graph then starts at the layer; given back by borrowed
        scorer = Scorer(model, x, target, forward=forward)
        image = _image(scorer)
        size = (image.shape[-2], image.shape[-1])
        if path is None:
            score, (where, grid), activation, gradient = _choose(scorer, size)
        else:
            score, (where, grid), activation, gradient = _at(scorer, path, call, size)
        wide = torch.promote_types(activation.dtype, torch.float32)
        maps = grid.view(activation.detach()).to(wide)  # (batch, unit, height, width)
        weights = grid.view(gradient).to(wide).mean(dim=(-2, -1), keepdim=True)  # eq. 1, (batch, unit, 1, 1)
        cam = (weights * maps).sum(dim=1, keepdim=True)  # eq. 2, (batch, 1, height, width)
        cam = cam.relu() if relu else cam
        values = nn.functional.interpolate(cam, size=size, mode="bilinear", align_corners=False)[:, 0]
    _warn_of_zeros(values, where, relu)
    return Attribution(
        values=values.to(activation.dtype),
        axes=("batch", "height", "width"),
        signed=not relu,
        units="score-weighted activation",
        target=scorer.target.label,
        method="grad_cam",
        settings={
            "layer": where.path,
            "call": where.index,
            "size": (grid.height, grid.width),
            "relu": relu,
            "chosen": "automatically" if path is None else "by the caller",
        },
        score=score.detach(),
        inputs=image.detach().clone(),
    )


def _image(scorer: Scorer) -> torch.Tensor:
    for leaf in scorer.leaves.values():
        if leaf.layer is None and leaf.value.ndim == 4 and leaf.value.shape[-2] * leaf.value.shape[-1] > 1:
            return leaf.value
    given = ", ".join(f"{name} {describe(x)}" for name, x in scorer.inputs.tensors().items())
    raise InputError(f"grad_cam needs an image input (batch, channel, height, width); got {given}.")


def _values(scorer: Scorer) -> dict[str, torch.Tensor]:
    return {name: leaf.value for name, leaf in scorer.leaves.items()}


def _at(scorer: Scorer, path: LayerPath, call: int | None, image: tuple[int, int]) -> Found:
    """Activation and gradient at the layer that the caller chose."""
    with watch(scorer.model) as shapes:
        score, held = _run(scorer, {path}, lambda place: True)
    calls = [one for one in seen(scorer.model, shapes) if one.path == path]
    if call is None and len(calls) > 1:
        raise RecordError(f"layer {path!r} ran {len(calls)} times; say which: call=0 to {len(calls) - 1} (-1: last).")
    where = calls[call_index(path, len(calls), 0 if call is None else call)]
    known = patch_grids((one.shape, one.axes) for one in seen(scorer.model, shapes))
    grid = None if where.shape is None or where.axes is None else grid_of(where.shape, where.axes, image, known)
    if grid is None or not where.floating:
        returned = "no tensor" if where.shape is None else f"shape {where.shape}"
        raise OptionError(
            f"layer {path!r} returned {returned}, which is no grid of places: grad_cam needs (batch, channel, height, "
            "width), or (batch, token, feature) whose tokens, but for leading class tokens, are patches of the "
            f"{image[0]} x {image[1]} image. layer=None finds one; lens.layers(x) lists the shapes."
        )
    place = (path, where.index)
    (gradient,) = _gradients(scorer.model, score, [held[place]])
    if gradient is None:
        raise OptionError(f"the score {scorer.target.label!r} does not depend on layer {path!r}, call {where.index}.")
    return score, (where, grid), held[place], gradient


def _choose(scorer: Scorer, image: tuple[int, int]) -> Found:
    """Activation and gradient at the last layer with a grid of places on which the score depends."""
    with torch.no_grad(), watch(scorer.model) as shapes:
        scorer(_values(scorer))
    candidates = _candidates(scorer, seen(scorer.model, shapes), image)
    if not candidates:
        raise OptionError(
            f"no layer of {type(scorer.model).__name__} returns (batch, channel, height, width) or patch tokens with "
            "more than one place, which grad_cam needs; saliency(...) works on any model."
        )
    flat: Found | None = None  # the score depends on it, with a gradient of zero
    for start in range(len(candidates), 0, -GROUP):
        group = candidates[max(0, start - GROUP) : start]
        places = [(where.path, where.index) for where, _ in group]
        score, held = _run(scorer, {path for path, _ in places}, set(places).__contains__)
        found = _gradients(scorer.model, score, [held[place] for place in places])
        for candidate, place, gradient in reversed(list(zip(group, places, found, strict=True))):
            if gradient is None:
                continue
            if bool(candidate[1].view(gradient).any()):
                return score, candidate, held[place], gradient
            flat = flat or (score, candidate, held[place], gradient)
    if flat is not None:
        return flat
    raise OptionError(
        f"the score {scorer.target.label!r} depends on no layer with places ({len(candidates)} tried), or cannot be "
        "differentiated. Try another target."
    )


def _candidates(scorer: Scorer, calls: list[Seen], image: tuple[int, int]) -> list[Candidate]:
    """The calls whose output is a grid, in the order of their ends; no attention matrices, no token projections."""
    layers = Layers(scorer.model)
    batch = len(scorer.rows)
    lengths = {one.shape[1] for one in calls if one.shape is not None and len(one.shape) == 3}
    known = patch_grids((one.shape, one.axes) for one in calls)
    chosen: list[Candidate] = []
    for one in calls:
        if one.shape is None or one.axes is None or not one.floating or not one.path or one.shape[0] != batch:
            continue
        if len(one.shape) == 4 and one.shape[-1] == one.shape[-2] and one.shape[-1] in lengths:
            continue  # (batch, head, token, token)
        if len(one.shape) == 3 and isinstance(layers[one.path], nn.Linear):
            continue
        grid = grid_of(one.shape, one.axes, image, known)
        if grid is not None:
            chosen.append((one, grid))
    return chosen


def _run(
    scorer: Scorer, paths: set[LayerPath], wanted: Callable[[Place], bool]
) -> tuple[torch.Tensor, dict[Place, torch.Tensor]]:
    """The scores, and the outputs of the wanted calls as the layers returned them, inside the graph.

    The model goes on with a copy of each, so that an in-place operation after the layer cannot change it.
    """
    held: dict[Place, torch.Tensor] = {}

    def tap(path: LayerPath) -> Edit:
        count = itertools.count()

        def edit(output: Any) -> Any:
            place = (path, next(count))
            return map_tensors(output, lambda tensor: hold(place, tensor)) if wanted(place) else output

        return edit

    def hold(place: Place, tensor: torch.Tensor) -> torch.Tensor:
        if place in held or not tensor.is_floating_point():
            return tensor
        held[place] = tensor.clone() if tensor.requires_grad else tensor.detach().clone().requires_grad_()
        return held[place].clone()

    with Probe(scorer.model, (), edits={path: tap(path) for path in paths}):
        score = scorer(_values(scorer))
    return score, held


def _gradients(model: nn.Module, score: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    if not score.requires_grad:
        return (None,) * len(tensors)
    with backward_pass(model):
        return torch.autograd.grad(score.sum(), tensors, allow_unused=True)


def _warn_of_zeros(values: torch.Tensor, where: Seen, relu: bool) -> None:
    empty = values.flatten(1).eq(0).all(dim=1).nonzero().flatten().tolist()
    if empty:
        why = (
            "the weighted channels are negative everywhere, so relu=True keeps nothing; relu=False shows them"
            if relu
            else "its gradient or its activation vanishes"
        )
        warnings.warn(
            f"grad_cam: the map of sample(s) {', '.join(map(str, empty[:8]))} at layer {where.path!r} is zero "
            f"everywhere: {why}.",
            stacklevel=3,
        )
