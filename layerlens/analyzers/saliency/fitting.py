"""Which methods of attribution fit a model and an input, and what each of them costs there."""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from layerlens.analyzers.common.features.input_features import features_of
from layerlens.analyzers.common.features.references import DRAWN
from layerlens.analyzers.common.registry import METHODS, Method
from layerlens.analyzers.common.samples import or_none
from layerlens.analyzers.common.scorer import gradients, scoring
from layerlens.axes.followed import followed
from layerlens.axes.layout import only
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.layers import LayerPath
from layerlens.results import Attribution, MethodTable
from layerlens.targets.target import Spec

from .auto import choose_method
from .saliency import cost_with

WINDOWS: Final = 225
"""Windows of `occlusion` on an image."""

_CLAUSE: Final = re.compile(r"(\d+) (gradient|forward)(?: pass)?(?:e?s)?(?: or more)?(?: (?:a|per) (\w+))?")
_BRACKETS: Final = re.compile(r" \([^()]*(?:\([^()]*\)[^()]*)*\)")


@dataclasses.dataclass(frozen=True)
class Fit:
    """What decides which methods fit a model and an input, found by running it.

    Attributes:
        samples: samples of the batch.
        tokens: token ids of a sample.
        places: sizes of the axes along which the values of an input lie: 2 of an image, 1 of a series.
        image: whether every input is an image of 1 or 3 channels.
        features: features of the input that are removed together by default.
        differentiable: whether a gradient reaches the input.
        rectified: whether the gradient passes a ReLU or a ReLU6.
        pooled: whether the model ends in global average pooling and a linear layer.
        cam_layer: layer that class activation maps take; None if none fits.
        cam_units: its units.
        forward: seconds of one forward pass of the batch.
        gradient: seconds of a forward and a backward pass of the batch.
    """

    samples: int
    tokens: int
    places: tuple[int, ...]
    image: bool
    features: int
    differentiable: bool
    rectified: bool
    pooled: bool
    cam_layer: LayerPath | None
    cam_units: int
    forward: float
    gradient: float

    def passes(self, cost: str, **more: int) -> tuple[float, float] | None:
        """Return forward passes and gradients per sample of a cost, as `Method.passes` writes it; None if unknown.

        Args:
            cost: such as `"25 gradients (samples)"` and `"1 forward pass a feature"`.
            **more: what else is counted, such as `block=12`.

        Example:
            >>> fit = Fit(1, 0, (8, 8), True, 64, True, True, True, "conv", 16, 0.1, 0.3)
            >>> fit.passes("1 gradient and 1 forward pass a feature")
            (64.0, 1.0)
        """
        counts = {
            "": 1,
            "feature": self.features,
            "token": self.tokens,
            "part": max(0, self.features - self.tokens),
            "unit": self.cam_units,
            "window": WINDOWS if self.image else self.features,
            "reference": DRAWN,
            **more,
        }
        found = _CLAUSE.findall(_BRACKETS.sub("", cost))
        if not found or any(per not in counts for _, _, per in found):
            return None
        sums = {"forward": 0.0, "gradient": 0.0}
        for number, kind, per in found:
            sums[kind] += int(number) * counts[per]
        return sums["forward"], sums["gradient"]

    def seconds(self, cost: str, **more: int) -> float | None:
        """Return the seconds that a cost takes for the whole batch; None if it is unknown, see `passes`."""
        passes = self.passes(cost, **more)
        return None if passes is None else passes[0] * self.forward + passes[1] * self.gradient

    def lacks(self, method: Method) -> str:
        """Return what a method needs and this model or input does not have; empty if it fits."""
        needs = re.split(r"[,;] ", method.needs) if method.needs else []
        missing = [need for need in needs if (fits := NEEDS.get(need)) is not None and not fits(self)]
        if not (self.differentiable or missing) and re.match(r"(about )?\d+ gradient", method.passes):
            missing.append("a gradient")
        return ", ".join(missing)


NEEDS: Final[Mapping[str, Callable[[Fit], bool]]] = {
    "token ids": lambda fit: fit.tokens > 0,
    "several samples": lambda fit: fit.samples > 1,
    "an image": lambda fit: fit.image,
    "an image or a volume or a series": lambda fit: len(fit.places) > 0,
    "gradients": lambda fit: fit.differentiable,
    "a layer with places": lambda fit: fit.cam_layer is not None,
    "an end of global average pooling and one linear layer": lambda fit: fit.pooled,
    "ReLU or ReLU6": lambda fit: fit.rectified,
}
"""What methods need -> whether it is there; anything else that they name (a baseline, a layer) is for the caller."""


def fit_of(model: nn.Module, x: Input, *, target: Spec = None, forward: Forward | None = None) -> Fit:
    """Find out what decides which methods fit; about ten passes, two of which are timed.

    Raises:
        InputError: when the input holds nothing to attribute to.
        TargetError: when the output has no score, or the target does not fit it.
    """
    inputs = as_inputs(x).named_for(model, forward)
    with scoring(model, inputs, target, forward=forward, grad=False) as scorer:
        scorer(scorer.values())
        seconds = _timed(lambda: scorer(scorer.values()))
        leaves, features = scorer.leaves, features_of(scorer).count
        known = followed(model, inputs, forward).inputs
    with scoring(model, inputs, target, forward=forward) as scorer:
        gradient = or_none(lambda: _timed(lambda: gradients(scorer, scorer.values())))

    def tried(name: str) -> Attribution | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Attribution | None = or_none(lambda: METHODS[name].function(model, inputs, target=target, **given))
        return found

    given: dict[str, Any] = {"forward": forward}
    differentiable = gradient is not None
    mapped = tried("grad_cam" if differentiable else "eigen_cam")
    guided = tried("guided_backprop") if differentiable else None
    tokens = [leaf.value.shape[1] for leaf in leaves.values() if leaf.layer is not None and leaf.value.ndim == 3]
    own = {name: leaf.value for name, leaf in leaves.items() if leaf.is_input}
    sizes = [tuple(axis.size for axis in known[name][1:] if _is_place(axis)) for name in own if name in known]
    layer = None if mapped is None else str(mapped.settings["layer"])
    return Fit(
        samples=inputs.batch,
        tokens=sum(tokens),
        places=max(sizes, key=len, default=()),
        image=bool(own) and len(own) == len(leaves) and all(x.ndim == 4 and x.shape[1] in (1, 3) for x in own.values()),
        features=features,
        differentiable=differentiable,
        rectified=guided is not None and guided.settings["rectifiers"] > 0,
        pooled=differentiable and tried("cam") is not None,
        cam_layer=layer,
        cam_units=0 if mapped is None or layer is None else _units(model, inputs, forward, layer),
        forward=seconds,
        gradient=seconds if gradient is None else gradient,
    )


def fitting_methods(
    model: nn.Module, x: Input, *, target: Spec = None, forward: Forward | None = None, fit: Fit | None = None
) -> MethodTable:
    """List the methods that fit a model and an input: the one that `auto` takes first, then by time.

    Args:
        model: any `torch.nn.Module`.
        x: input of the model.
        target: what to score; it is known by then whether a gradient reaches the input.
        forward: called instead of the model.
        fit: what is known of both, if it is.

    Returns:
        A `MethodTable` with the seconds of each method for this batch; its notes say what `auto` takes and why, and
        what was left out.
    """
    fit = fit or fit_of(model, x, target=target, forward=forward)
    inputs = as_inputs(x).named_for(model, forward)
    choice = choose_method(model, inputs, target=target, forward=forward)
    name, options = choice.name, choice.options
    taken = METHODS[name]
    costs = {row.name: row.passes for row in METHODS.values()}
    costs[name] = costs["auto"] = cost_with(taken.passes, options)
    lacking = {row.name: fit.lacks(row) for row in METHODS.values()}
    seconds = {row: fit.seconds(cost) for row, cost in costs.items()}
    order = sorted((row for row in METHODS if not lacking[row]), key=lambda row: _rank(row, name, seconds[row]))
    left: dict[str, list[str]] = {}
    for row, need in lacking.items():
        if need:
            left.setdefault(need, []).append(row)
    given = ", ".join([f'method="{name}"', *(f"{key}={value!r}" for key, value in options.items())])
    return MethodTable(
        {row: (METHODS[row].family, costs[row], METHODS[row].needs, METHODS[row].source) for row in order},
        seconds={row: seconds[row] for row in order},
        notes=(
            f"auto takes {given}: {choice.chosen()}",
            *(f"left out, without {need}: {', '.join(left[need])}" for need in left),
        ),
    )


def _rank(name: str, chosen: str, seconds: float | None) -> tuple[bool, bool, float, str]:
    return name != "auto", name != chosen, float("inf") if seconds is None else seconds, name


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _is_place(axis: Any) -> bool:
    return axis.size > 1 and all(
        part.source.name not in ("batch", "unit", "channel", "feature") for part in axis.parts()
    )


def _units(model: nn.Module, inputs: Inputs, forward: Forward | None, layer: LayerPath) -> int:
    """Return the units of a layer, 0 if they are not known."""
    for site in followed(model, inputs, forward).calls:
        for axes in site.outputs.values() if site.path == layer else ():
            unit = only(axes, "unit")
            if unit is not None:
                return int(axes[unit].size)
    return 0
