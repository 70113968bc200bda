"""Where values are read and replaced: what layers return, what they are given, and the heads inside an attention."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.model.call_tracking import Running
from layerlens.model.layers import LayerPath
from layerlens.model.trees import map_tensors, named_tensors
from layerlens.probes.made_edits import Edit
from layerlens.probes.probe import Probe

Kind = Literal["output", "input", "attention"]
"""What a layer returned; the first floating-point tensor that it is given; what the heads of `nn.MultiheadAttention`
returned, side by side, before its output projection."""

Key = tuple[Kind, LayerPath, int]
"""Kind, layer, and index of its call."""

Replace = Callable[[Key, Any], Any]
"""From the value of a call to the value to continue with."""

_FUSED = inspect.signature(F.multi_head_attention_forward)


@contextlib.contextmanager
def hooked(model: nn.Module, places: Iterable[tuple[Kind, LayerPath]], function: Replace) -> Iterator[Running | None]:
    """Call `function` on every value at some places while a `with` block runs the model once.

    Yields:
        The tracker of running layers if attentions are among the places, else None.
    """
    by_kind: dict[str, list[LayerPath]] = {"output": [], "input": [], "attention": []}
    for kind, path in dict.fromkeys(places):
        by_kind[kind].append(path)
    after = {path: _output_edit(path, function) for path in by_kind["output"]}
    before = {path: _input_edit(path, function) for path in by_kind["input"]}
    with contextlib.ExitStack() as stack:
        stack.enter_context(Probe(model, (), edits=after, arguments=before))
        running = None
        if by_kind["attention"]:
            running = stack.enter_context(Running(model))
            stack.enter_context(_Attention(running, set(by_kind["attention"]), function))
        yield running


def _output_edit(path: LayerPath, function: Replace) -> Edit:
    calls = itertools.count()
    return lambda output: function(("output", path, next(calls)), output)


def _input_edit(path: LayerPath, function: Replace) -> Edit:
    calls = itertools.count()

    def edit(given: Any) -> Any:
        old = next((tensor for _, tensor in named_tensors(given) if tensor.is_floating_point()), None)
        key: Key = ("input", path, next(calls))
        if old is None:
            return given
        new = function(key, old)
        return given if new is old else map_tensors(given, lambda tensor: new if tensor is old else tensor)

    return edit


class _Attention(TorchFunctionMode):
    """Splits the output projection off `F.multi_head_attention_forward`, and calls `function` on its input.

    The call itself projects with the identity, which changes no number.
    """

    def __init__(self, running: Running, paths: set[LayerPath], function: Replace) -> None:
        super().__init__()
        self._running, self._paths, self._function = running, paths, function
        self._counts: Counter[LayerPath] = Counter()

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        frame = self._running.frame
        if function is not F.multi_head_attention_forward or frame is None or frame.layer not in self._paths:
            return function(*args, **kwargs)
        given = _FUSED.bind(*args, **kwargs).arguments
        weight, bias = given["out_proj_weight"], given["out_proj_bias"]
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        heads, weights = function(**{**given, "out_proj_weight": identity, "out_proj_bias": None})
        index = self._counts[frame.layer]
        self._counts[frame.layer] += 1
        return F.linear(self._function(("attention", frame.layer, index), heads), weight, bias), weights
