"""The axes of a run of a model: followed once for a model and the shapes of its input, then reused."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from torch import nn

from layerlens.errors import AGAIN
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed, modules_of
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import LayerPath

from .follow import AxisNames, Followed, Until, follow

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


def names_of(model: nn.Module) -> AxisNames:
    """Return the axes of a model that were named."""
    return _names.get(model, {})


def run_key(model: nn.Module, inputs: Inputs, forward: Forward | None) -> Hashable:
    """Return what the structure of a run depends on: shapes and types of the input, modules, and `forward`."""
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.tensors().items())
    return shapes, forward, hash(tuple(map(id, modules_of(model))))


def followed(
    model: nn.Module,
    inputs: Inputs,
    forward: Forward | None = None,
    *,
    again: bool = False,
    until: Until = frozenset(),
) -> Followed:
    """Return the axes of every tensor of a run; the model runs once in eval mode, unless these shapes are known.

    Args:
        model: any module.
        inputs: its arguments.
        forward: called instead of the model.
        again: follow them also if these shapes are known, because the model took another route than then.
        until: calls of layers, by path and index, after which the run may end.

    Raises:
        InputError: when axes that the user named do not fit.
    """
    known = _followed.setdefault(model, OrderedDict())
    key = run_key(model, inputs, forward)
    if until and (again or key not in known):
        key = (key, until)
    if again or key not in known:
        with borrowed(model, grad=False), layers_called():
            try:
                known[key] = follow(model, inputs, forward, names_of(model), until=until)
            except RuntimeError as error:  # a model that differentiates inside of its forward is known by then
                if not getattr(error, AGAIN, False):
                    raise
                known[key] = follow(model, inputs, forward, names_of(model), until=until)
    known.move_to_end(key)
    while len(known) > _KEPT:
        known.popitem(last=False)
    return known[key]


def followed_for(
    model: nn.Module, inputs: Inputs, forward: Forward | None, calls: Iterable[tuple[LayerPath, int]]
) -> Followed:
    """Return the axes of a run that made some calls: followed again if the model took another route than when it was.

    Args:
        model: any module.
        inputs: its arguments.
        forward: called instead of the model.
        calls: calls of layers, by path and index, that these inputs were seen to make.
    """
    known = followed(model, inputs, forward)
    seen = {(site.path, site.index) for site in known.calls}
    return known if not seen or seen.issuperset(calls) else followed(model, inputs, forward, again=True)
