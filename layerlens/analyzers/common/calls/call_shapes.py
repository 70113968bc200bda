"""The one layer, and the one call of it, that an analyzer is asked for."""

from __future__ import annotations

from torch import nn

from layerlens.errors import RecordError, SelectionError
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.selection import Matches


def one_layer(model: nn.Module, layer: Selection) -> LayerPath:
    """Return the path of the one layer that a selection names.

    Raises:
        LayerNotFound: when it matches none.
        SelectionError: when it matches several, or is None, or names a call or a tensor.
    """
    return one_match(model, layer, calls=False, tensors=False)[0]


def one_match(model: nn.Module, layer: Selection, *, calls: bool = True, tensors: bool = True) -> Matches:
    """Return the match of a selection that names one layer, with the calls and tensors that it names.

    Raises:
        LayerNotFound: when it matches none.
        SelectionError: when it matches several, or is None.
    """
    if layer is None:
        raise SelectionError("layer=None selects every layer; name one. List all: lens.layers()")
    matches = Layers(model).select(layer, calls=calls, tensors=tensors)
    if len(matches) > 1:
        listed = ", ".join(matches[:8]) + (", ..." if len(matches) > 8 else "")
        raise SelectionError(f"the selection matches {len(matches)} layers, one is needed: {listed}.")
    return matches


def call_index(path: LayerPath, count: int, call: int) -> int:
    """Return the index, counted from the start, of a call of a layer that ran `count` times.

    Raises:
        RecordError: when there is no such call.
    """
    if not count:
        raise RecordError(f"layer {path!r} did not run: the run took another route, or its parent calls it by parts.")
    if isinstance(call, bool) or not isinstance(call, int) or not -count <= call < count:
        times = "once" if count == 1 else f"{count} times"
        raise RecordError(f"layer {path!r} ran {times} (calls 0 to {count - 1}); there is no call {call!r}.")
    return call % count
