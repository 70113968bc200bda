"""Feature visualization: gradient ascent on the input, robust to transformations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError, OptionError, TargetError, check_count, check_seed, warn
from layerlens.inputs.inputs import Forward
from layerlens.model.borrowed import borrowed
from layerlens.model.placement import home
from layerlens.progress import track
from layerlens.results import FeatureVisualization
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from .canvas import Canvas, Parametrization
from .objectives import Objectives, similarity_of_copies
from .transforms import Transforms

BatchSize = int | Literal["auto"]

CPU_VALUES = 2**17
"""Values of the inputs in one pass on a CPU: one image of 224 x 224 alone took half the time of each of eight."""


@public
def feature_visualization(
    model: nn.Module,
    target: Spec | list[Spec] | list[Target],
    shape: Sequence[int],
    *,
    axes: Sequence[str] | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    count: int = 1,
    steps: int = 320,
    learning_rate: float = 0.2,
    parametrization: Parametrization = "auto",
    decay: float = 1.5,
    decorrelate: bool = True,
    spread: float = 0.02,
    shift: float = 0.1,
    rotate: float = 20.0,
    zoom: tuple[float, float] = (0.6, 1.2),
    noise: float = 0.1,
    total_variation: float = 0.0,
    l2: float = 0.0,
    diversity: float = 0.0,
    diversity_layer: str | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    preprocess: Callable[[torch.Tensor], torch.Tensor] | None = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> FeatureVisualization:
    """Make inputs that raise the score of a class, a unit, a direction or a whole layer.

    Adam climbs the score from noise. Images are parametrized by their frequencies, each scaled by 1/f^decay, and by
    decorrelated colors; before each pass they are shifted, turned, zoomed and made noisy at random, so that the
    result is not a pattern of single pixels (Olah, Mordvintsev & Schubert 2017, Feature visualization, Distill). The
    step size falls along a half cosine. A copy of a target gets the same random numbers whatever else is in the batch.

    Args:
        model: ... It has one floating-point input.
        target: what to raise: a class, `neuron(layer, unit)` (a channel; with `place=` a neuron), `direction(layer,
            vector)`, `deep_dream(layer)`, a function of the output; or a list of such targets.
        shape: shape of one input, without the batch: `(3, 224, 224)`.
        axes: names of its axes; None is `(feature,)`, `(channel, length)`, `(channel, height, width)` or `(channel,
            depth, height, width)` by their number. Give `("time", "feature")` for a recurrent model.
        bounds: range of the values of the input, kept by a sigmoid: `(-1, 1)` for EfficientNet-Lite; None for free
            values, such as latents.
        count: number of inputs per target.
        steps: number of steps of Adam.
        learning_rate: step size of Adam, in standard deviations of the values before the sigmoid.
        parametrization: `"fourier"`, `"plain"` (the values themselves), or `"auto"`: Fourier wherever there are places.
        decay: exponent of the spectrum; larger is smoother.
        decorrelate: whether to decorrelate three channels as colors.
        spread: standard deviation of the values before the sigmoid, at the start; 1 for latents of a generator.
        shift: largest shift, as a part of each axis of places.
        rotate: largest turn of an image, in degrees.
        zoom: smallest and largest magnification.
        noise: standard deviation of the noise, as a part of the range of values.
        total_variation: penalty on the mean difference of neighbors, in score per range.
        l2: penalty on half the mean square of the values, for bounded ones of their distance from the middle.
        diversity: penalty on the similarity of the copies of a target: the mean cosine of their Gram matrices.
        diversity_layer: layer whose activations make the Gram matrices; None is the layer of the target.
        batch_size: ... `"auto"` takes as many as hold 2^17 values on a CPU, where more are no faster, and 64 elsewhere.
            The copies of a target stay together where they have to differ.
        preprocess: function from the input within `bounds` to what the model takes, such as a standardization.

    Returns:
        A `FeatureVisualization`, with the score of each input as it is and under fresh transformations.

    Raises:
        InputError: when the model takes more than one input.
        OptionError: when an option is out of range.
        TargetError: when a target does not fit, depends on the prediction, or no gradient of it reaches the input.

    Warns:
        UserWarning: when the score of an input ended no higher than that of noise.

    Source: Erhan et al. 2009; Olah, Mordvintsev & Schubert 2017.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        >>> made = feature_visualization(net, [1, 3], (1, 8, 8), steps=20)
        >>> made.images.shape, made.targets
        (torch.Size([2, 1, 8, 8]), ('class 1', 'class 3'))
    """
    for name, value in (("count", count), ("steps", steps)):
        check_count(name, value)
    check_seed(seed)
    targets = _targets(target)
    transforms = Transforms(shift, rotate, (zoom[0], zoom[1]), noise)
    if bounds is not None and not bounds[0] < bounds[1]:
        raise OptionError(f"bounds={bounds!r}; give the smallest and the largest value of the input, or None.")
    options = AscentOptions(steps, learning_rate, transforms, total_variation, l2, diversity, progress)
    floating = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    place = home(model) or floating.device
    wide = torch.float64 if floating.dtype == torch.float64 else torch.float32
    with torch.inference_mode(False):  # its tensors go into graphs, even if the caller is in inference mode
        canvas = Canvas(
            shape, axes, parametrization, decay=decay, decorrelate=decorrelate, bounds=bounds, spread=spread,
            dtype=wide, device=place,
        )  # fmt: skip
    compared = _diversity_layer(targets, count, diversity, diversity_layer)

    def run(held: nn.Module, x: torch.Tensor) -> Any:
        given = (x if preprocess is None else preprocess(x)).to(floating.dtype)
        if forward is not None:
            return forward(held, given)
        try:
            return held(given)
        except TypeError as error:
            if "required positional argument" not in str(error):
                raise
            raise InputError(
                f"feature_visualization makes one input, and {type(held).__name__} takes more ({error}). Give the "
                "others yourself: forward=lambda model, x: model(x, other)."
            ) from error

    parts: list[tuple[torch.Tensor, ...]] = []
    most = _at_once(batch_size, math.prod(shape), place)
    rows = [(index, copy) for index in range(len(targets)) for copy in range(count)]
    size = max(1, most // count) * count if diversity else most
    with borrowed(model):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        objectives = Objectives(model, targets, run, compared)
        for first in range(0, len(rows), size):
            parts.append(ascend(canvas, objectives, options, rows[first : first + size], seed))
    images, curve, score, after, before = (torch.cat(column) for column in zip(*parts, strict=True))
    if bool((after <= before).any()):
        failed = [targets[rows[k][0]].label for k in (after <= before).nonzero().flatten().tolist()]
        warn(
            f"feature_visualization: {', '.join(dict.fromkeys(failed))} ended no higher than noise. The unit may "
            "be inactive for every input, the steps too few, or the penalties too strong.",
        )
    settings = {
        "count": count, "steps": steps, "learning_rate": learning_rate, "parametrization": canvas.kind, "decay": decay,
        "decorrelate": decorrelate, "spread": spread, **dataclasses.asdict(transforms), "l2": l2,
        "total_variation": total_variation, "diversity": diversity, "diversity_layer": diversity_layer, "seed": seed,
    }  # fmt: skip
    labels = tuple(targets[index].label for index, _ in rows)
    return FeatureVisualization(
        images, ("batch", *canvas.axes), bounds, labels, curve, score, "score", settings,
        {"transformed": after, "noise": before},
    )  # fmt: skip


def _at_once(batch_size: BatchSize, values: int, device: torch.device) -> int:
    """Return how many inputs of `values` numbers run together."""
    if batch_size != "auto":
        check_count("batch_size", batch_size, also="'auto'")
        return int(batch_size)
    return max(1, min(64, CPU_VALUES // values)) if device.type == "cpu" else 64


def _targets(target: Spec | list[Spec] | list[Target]) -> list[Target]:
    """Read one target, or a list of targets.

    Raises:
        OptionError: when there is none.
        TargetError: when one depends on the output.
    """
    targets = [as_target(spec) for spec in (target if isinstance(target, list) else [target])]
    if not targets:
        raise OptionError("target=[] asks for nothing; give one target or more.")
    for one in targets:
        if one.chooser is not None:
            raise TargetError(f"{one.label!r} depends on the input to be made; give a class or a unit.")
    return targets


def _diversity_layer(targets: list[Target], count: int, diversity: float, layer: str | None) -> tuple[Any, int] | None:
    """Return the layer at which copies are compared; None where they need not differ.

    Raises:
        OptionError: when there is only one copy, or no single layer.
    """
    if not diversity:
        return None
    if count < 2:
        raise OptionError("diversity= makes the copies of a target differ; ask for several: count=4.")
    places = {target.at for target in targets}
    if layer is not None:
        return layer, 0
    (place, *others) = places
    if others or place is None:
        raise OptionError("diversity= compares the copies at a layer: name it with diversity_layer=...")
    return place


FINAL_TRANSFORMS = 8
"""Number of new transformations that the finished inputs are scored under."""


@dataclasses.dataclass(frozen=True)
class AscentOptions:
    """Options of the ascent."""

    steps: int
    learning_rate: float
    transforms: Transforms
    total_variation: float
    l2: float
    diversity: float
    progress: bool | None


def ascend(
    canvas: Canvas, objectives: Objectives, options: AscentOptions, rows: list[tuple[int, int]], seed: int
) -> tuple[torch.Tensor, ...]:
    """Return inputs, their curve `(n, step)`, final score, and score under new transformations, after and before.

    Raises:
        TargetError: when the score is not finite, or has no gradient.
    """
    groups, places = [index for index, _ in rows], len(canvas.sizes)
    span = 1.0 if canvas.bounds is None else canvas.bounds[1] - canvas.bounds[0]
    middle = 0.0 if canvas.bounds is None else sum(canvas.bounds) / 2
    generators = [torch.Generator().manual_seed(seed + copy) for _, copy in rows]
    parameters = torch.stack([canvas.start(generator) for generator in generators])
    first = parameters.clone()
    optimizer = torch.optim.Adam([parameters], lr=options.learning_rate)
    curve: list[torch.Tensor] = []
    for step in track(range(options.steps), "feature_visualization", enabled=options.progress):
        optimizer.param_groups[0]["lr"] = options.learning_rate * (
            0.02 + 0.49 * (1 + math.cos(math.pi * step / options.steps))
        )
        leaf = parameters.detach().requires_grad_()
        drawn = canvas.draw(leaf)
        scores, features = objectives(canvas.to_input_axes(options.transforms(drawn, generators, places, span)), groups)
        if not bool(torch.isfinite(scores).all()):
            raise TargetError(f"the score is not finite at step {step}: {scores.tolist()[:8]}. Try a smaller step.")
        loss = -scores.sum()
        if options.total_variation:
            slopes = [drawn.diff(dim=-1 - axis).abs().flatten(1).mean(dim=1).sum() for axis in range(places)]
            loss = loss + options.total_variation * sum(slopes) / span
        if options.l2:
            loss = loss + 0.5 * options.l2 * (drawn - middle).square().flatten(1).mean(dim=1).sum()
        if options.diversity and features is not None:
            loss = loss + options.diversity * similarity_of_copies(features, groups)
        if not scores.requires_grad:
            raise TargetError(f"no gradient flows from {objectives.targets[0].label!r} to the input.")
        with backward_pass(objectives.model):
            (parameters.grad,) = torch.autograd.grad(loss, leaf)
        optimizer.step()
        curve.append(scores.detach())
    with torch.no_grad():
        images = canvas.to_input_axes(canvas.draw(parameters)).contiguous()
        score = objectives(images, groups)[0]
        ends = []
        for state in (parameters, first):
            fresh = [torch.Generator().manual_seed(2**31 + seed + copy) for _, copy in rows]
            drawn = canvas.draw(state)
            seen = [
                canvas.to_input_axes(options.transforms(drawn, fresh, places, span)) for _ in range(FINAL_TRANSFORMS)
            ]
            ends.append(torch.stack([objectives(x, groups)[0] for x in seen]).mean(dim=0))
    return images, torch.stack(curve, dim=1), score, ends[0], ends[1]
