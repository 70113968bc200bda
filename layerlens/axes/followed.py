"""The axes of a run of a model: followed once for a model and the shapes of its input, then reused."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable

from torch import nn

from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed, modules_of
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import LayerPath

from .follow import AxisNames, Followed, follow
from .names import remember
from .provenance.axis import Axes

_KEPT = 8
"""Number of shapes that are remembered for each model."""

_followed: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Followed]] = weakref.WeakKeyDictionary()
_names: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[str, ...]]] = weakref.WeakKeyDictionary()


def name_axes(model: nn.Module, axes: AxisNames) -> None:
    """Name axes that cannot be followed, or that have a better name; every analyzer of this model uses them.

    Args:
        model: any `torch.nn.Module`.
        axes: input tensor (`"0"` for the first positional one), layer, or `layer/tensor` -> a name for every axis of
            it: `batch`, `unit`, an axis of the input such as `height` or `token`, or any other word.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> name_axes(net, {"0": ("batch", "time", "sensor")})
    """
    _names[model] = {**_names.get(model, {}), **{key: tuple(value) for key, value in axes.items()}}
    _followed.pop(model, None)


def followed(model: nn.Module, inputs: Inputs, forward: Forward | None = None, *, again: bool = False) -> Followed:
    """Return the axes of every tensor of a run; the model runs once in eval mode, unless these shapes are known.

    Args:
        model: any module.
        inputs: its arguments.
        forward: called instead of the model.
        again: follow them also if these shapes are known, because the model took another route than then.

    Raises:
        InputError: when axes that the user named do not fit.
    """
    known = _followed.setdefault(model, OrderedDict())
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.tensors().items())
    key = (shapes, forward, hash(tuple(map(id, modules_of(model)))))
    new = again or key not in known
    latest = next(reversed(known), None)
    if new:
        with borrowed(model, grad=False), layers_called():
            try:
                known[key] = follow(model, inputs, forward, _names.get(model))
            except RuntimeError as error:
                if "not require grad" not in str(error):
                    raise
                known[key] = Followed({}, (), {}, {"autograd.grad": "the model differentiates inside of its forward"})
    if new or key != latest:  # the layers know the axes of the latest run, also if it was followed before
        _remember(model, known[key])
    known.move_to_end(key)
    while len(known) > _KEPT:
        known.popitem(last=False)
    return known[key]


def _remember(model: nn.Module, found: Followed) -> None:
    """Let the layers know the axes of what they returned."""
    calls: dict[LayerPath, dict[tuple[str, int], list[Axes]]] = {}
    for site in found.calls:
        known = calls.setdefault(site.path, {})
        for name, axes in site.outputs.items():
            for short in {name, name if len(site.outputs) > 1 else ""}:
                known.setdefault((short, len(axes)), []).append(axes)
    modules = dict(model.named_modules())
    for path, known in calls.items():
        remember(modules[path], known)
