"""Names of tensor axes, known from the kind of layer that made the tensor."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Mapping

import torch
from torch import nn

from layerlens.errors import AxesUnknown

from .layout import plain_names
from .provenance.axis import Axes as Followed

Axes = tuple[str, ...]

_SPACE: dict[int, Axes] = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_SPATIAL_NAMES = ("Conv", "BatchNorm", "InstanceNorm", "Pool", "Dropout", "Pad", "Upsample", "PixelShuffle")
_FEATURE_NAMES = ("Linear", "LayerNorm", "RMSNorm", "Embedding", "Conv1D")


def axes_of(module: nn.Module, output: torch.Tensor, name: str = "") -> Axes | None:
    """Return the names of the axes of `output`, the tensor `name` that `module` returned, or None if unknown.

    Known are convolution, pooling, normalization and dropout layers over space (`batch, channel, ...`), linear and
    embedding layers (`batch, ..., feature`, with `token` for the middle of three) and recurrent layers.

    Example:
        >>> axes_of(nn.Conv2d(3, 8, 3), torch.zeros(1, 8, 6, 6))
        ('batch', 'channel', 'height', 'width')
    """
    kind = type(module).__name__
    if isinstance(module, nn.RNNBase):
        if name in ("h_n", "c_n"):
            return {3: ("layer", "batch", "feature"), 2: ("layer", "feature")}.get(output.ndim)
        if output.ndim == 2:
            return ("time", "feature")
        return ("batch", "time", "feature") if module.batch_first else ("time", "batch", "feature")
    if isinstance(module, nn.MultiheadAttention):
        if name == "attn_output_weights":
            return {3: ("batch", "token", "key"), 4: ("batch", "head", "token", "key")}.get(output.ndim)
        if output.ndim != 3:
            return None
        return ("batch", "token", "feature") if module.batch_first else ("token", "batch", "feature")
    return _by_name(kind, output.ndim)


@functools.cache
def _by_name(kind: str, ndim: int) -> Axes | None:
    """The axes of the output of a layer whose class name says what it is."""
    if any(kind.startswith(name) or kind.endswith(name) for name in _FEATURE_NAMES):
        return {2: ("batch", "feature"), 3: ("batch", "token", "feature")}.get(ndim)
    if ndim == 3 and kind.endswith("Dropout"):  # of any axes: mostly tokens and features, where Dropout1d has channels
        return None
    if any(name in kind for name in _SPATIAL_NAMES):
        rank = next((int(digit) for digit in kind if digit in "123"), ndim - 2)
        if rank in _SPACE and ndim == rank + 2:
            return ("batch", "channel", *_SPACE[rank])
    return None


_FOLLOWED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], list[Followed]]] = weakref.WeakKeyDictionary()
"""Layer -> name and number of axes of each tensor that it returned when its axes were followed -> these, by call."""


def remember(module: nn.Module, found: Mapping[tuple[str, int], list[Followed]]) -> None:
    """Remember the axes of the tensors of a layer: name and number of axes -> the axes in each of its calls."""
    _FOLLOWED.setdefault(module, {}).update(found)


def _axis(module: nn.Module, output: torch.Tensor, name: str, wanted: str) -> int | None:
    """The axis that was followed; None if the layer was not followed.

    Raises:
        AxesUnknown: when it was, and the tensor has no such axis, or it is unknown.
    """
    known = _FOLLOWED.get(module, {})
    if (name, output.ndim) not in known:
        return None
    names = {plain_names(axes) for axes in known[name, output.ndim]}
    axes = names.pop() if len(names) == 1 else None  # where its calls differ, none
    what = f"the axes of what {type(module).__name__} returned, of shape {tuple(output.shape)},"
    if axes is None:
        raise AxesUnknown(f"{what} are not known; lens.layers(x) shows them. Name them: Lens(model, axes=...).")
    found = [place for place, axis in enumerate(axes) if axis == wanted]
    found = found or [place for place, axis in enumerate(axes) if wanted in re.split(r"[*+()]", axis)]
    if not found and wanted == "batch":  # it does not depend on the input
        return None
    if len(found) != 1:
        listed = ", ".join(axes)
        raise AxesUnknown(f"{what} are ({listed}): not one is a {wanted} axis. Name them: Lens(model, axes=...).")
    return found[0]


def unit_axis(module: nn.Module, output: torch.Tensor, name: str = "") -> int:
    """Return the axis along which the units of a layer's output, or of the tensor `name` of it, lie.

    Raises:
        AxesUnknown: when the axes were followed, and none or several hold units.
    """
    followed = _axis(module, output, name, "unit")
    if followed is not None:
        return followed
    axes = axes_of(module, output, name)
    known = None if axes is None else next((axes.index(name) for name in ("channel", "feature") if name in axes), None)
    return (1 if output.ndim == 4 else output.ndim - 1) if known is None else known


def batch_axis(module: nn.Module, output: torch.Tensor, name: str = "") -> int:
    """Return the axis of samples.

    Raises:
        AxesUnknown: when the axes were followed, and none or several hold samples.
    """
    followed = _axis(module, output, name, "batch")
    if followed is not None:
        return followed
    axes = axes_of(module, output, name)
    return axes.index("batch") if axes is not None and "batch" in axes else 0
