"""Where the heads of every attention lie side by side, and can be read and changed."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.axes.follow import Followed
from layerlens.axes.layout import heads, role, roles
from layerlens.axes.tracing import tracing
from layerlens.errors import OptionError
from layerlens.model.call_tracking import Running
from layerlens.model.layers import LayerPath
from layerlens.model.selection import Names

_FUSED = inspect.signature(F.multi_head_attention_forward)


@dataclasses.dataclass(frozen=True)
class HeadSite:
    """The heads of one attention, side by side along an axis of units.

    Attributes:
        attention: path of the layer that keeps the heads apart.
        kind: whether they are an argument of a layer, or lie inside of an `nn.MultiheadAttention`, before its output
            projection, which is not a call of a layer.
        path: path of that layer.
        tensor: name of the argument.
        axis: number of the axis of units.
        count: number of heads.
    """

    attention: LayerPath
    kind: Literal["input", "attention"]
    path: LayerPath
    tensor: str
    axis: int
    count: int


def head_sites(model: nn.Module, followed: Followed) -> list[HeadSite]:
    """Return where the output projection of each attention reads its heads, in the order of execution.

    An attention is what keeps blocks of units apart while it mixes places; its projection is the innermost layer
    that takes the blocks side by side and returns units that mix them.
    """
    found: dict[tuple[LayerPath, LayerPath], HeadSite] = {}
    for site in followed.calls:
        for name, axes in site.inputs.items():
            for place, axis in enumerate(axes):
                known = heads(axis) if role(axis) == "unit" else None
                kept = any(heads(one) == known for out in site.outputs.values() for one in out)
                inside = any(one.path.startswith(f"{site.path}.") for one in found.values())
                if known is not None and not kept and not inside:
                    place_of = HeadSite(known.layer, "input", site.path, name, place, known.count)
                    found.setdefault((known.layer, site.path), place_of)
    labels = {one.attention for one in found.values()}
    for site in followed.calls:
        module = model.get_submodule(site.path)
        if isinstance(module, nn.MultiheadAttention) and site.path not in labels:
            inner = HeadSite(site.path, "attention", site.path, "", -1, module.num_heads)
            found.setdefault((site.path, site.path), inner)
    order = {site.path: number for number, site in reversed(list(enumerate(followed.calls)))}
    return sorted(found.values(), key=lambda one: order[one.path])


def own_heads(known: Followed, path: LayerPath, tensors: Names = None) -> int | None:
    """Return the number of heads that lie in what a layer returned; None if none do.

    Args:
        known: the axes of a run.
        path: path of the layer.
        tensors: names of the tensors of its output that count; None for all.

    Raises:
        OptionError: when its tensors have different numbers of heads.
    """
    outputs = known.site(path).outputs
    chosen = [axes for name, axes in outputs.items() if tensors is None or name in tensors]
    if tensors is None:  # the weights of an attention lie next to what it returns, whose heads are mixed by then
        chosen = [axes for axes in chosen if "key" not in roles(axes)] or chosen
    counts: set[int] = set()
    for axes in chosen:
        own = {axis.size for axis in axes if role(axis) == "head"}
        units = [heads(axis) for axis in axes if role(axis) == "unit"]
        own |= {found.count for found in units if found is not None}
        if units and not own:
            return None
        counts |= own
    if len(counts) > 1:
        numbers = " and ".join(map(str, sorted(counts)))
        raise OptionError(f"layer {path!r} returned tensors with {numbers} heads: name one of its tensors.")
    return next(iter(counts), None)


class InsideAttention(TorchFunctionMode):
    """Split the output projection off `F.multi_head_attention_forward`, and call `function` on its input.

    The call itself projects with the identity, which changes no number.

    Args:
        running: tracker of the running layers.
        paths: layers of which this is wanted.
        function: from the layer, the index of the call, and the heads side by side to the value to continue with.
    """

    def __init__(
        self, running: Running, paths: set[LayerPath], function: Callable[[LayerPath, int, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self._running, self._paths, self._function = running, paths, function
        self._counts: Counter[LayerPath] = Counter()

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        frame = self._running.frame
        fused = function is F.multi_head_attention_forward and not tracing()
        if not fused or frame is None or frame.layer not in self._paths:
            return function(*args, **kwargs)
        given = _FUSED.bind(*args, **kwargs).arguments
        weight, bias = given["out_proj_weight"], given["out_proj_bias"]
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        side_by_side, weights = function(**{**given, "out_proj_weight": identity, "out_proj_bias": None})
        index = self._counts[frame.layer]
        self._counts[frame.layer] += 1
        return F.linear(self._function(frame.layer, index, side_by_side), weight, bias), weights


@contextlib.contextmanager
def reading_inside(
    model: nn.Module, paths: set[LayerPath], function: Callable[[LayerPath, int, torch.Tensor], torch.Tensor]
) -> Iterator[Running]:
    """Call `function` on what the output projections of some attentions are given, as `InsideAttention` does.

    Yields:
        The tracker of running layers.
    """
    with Running(model) as running, InsideAttention(running, paths, function):
        yield running


def attention_of(model: nn.Module, projection: LayerPath) -> LayerPath | None:
    """Return the `nn.MultiheadAttention` whose output projection a layer is; None if it is none."""
    path, _, name = projection.rpartition(".")
    return path if name == "out_proj" and isinstance(model.get_submodule(path), nn.MultiheadAttention) else None
