"""Capture: run a model once and keep what every selected layer returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from .borrow import borrowed
from .errors import choose
from .inputs import Inputs, as_inputs
from .layers import LayerPath, Selection
from .probe import Keep, Probe
from .record import Record


def capture(
    model: nn.Module,
    x: Any,
    layers: Selection = None,
    *,
    keep: Literal["auto", "reference", "clone", "cpu"] = "auto",
    inputs: bool = False,
    reduce: Callable[[Any], Any] | None = None,
    forward: Callable[..., Any] | None = None,
) -> Record:
    """Run `model` once on `x`, without gradients and in eval mode, and record every call of the selected layers.

    Args:
        model: any module.
        x: its input: a tensor, a tuple of arguments, or a dict of keyword arguments.
        layers: see `Selection`; None for every layer.
        keep: as in `Probe`; `"auto"` (default) keeps references, and when a later operation wrote into some of them
            in place it runs the model once more and copies just those.
        inputs: record the arguments of each call as well.
        reduce: applied to each output inside the hook; only what it returns is kept.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        The `Record`.

    Raises:
        LayerNotFound: when the selection matches no layer.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
        >>> record = capture(net, -torch.ones(1, 2))
        >>> bool((record["0"] < 0).any() or (record["0"] > 0).any())
        True
    """
    choose("keep policy", keep, ("auto", "reference", "clone", "cpu"))
    given: Inputs = as_inputs(x)
    policy: Keep | dict[LayerPath, Keep] = "reference" if keep == "auto" else keep
    with borrowed(model, grad=False):
        record = _run(model, given, layers, policy, inputs, reduce, forward)
        lost: dict[LayerPath, Keep] = {call.layer: "clone" for call in record.order if call.overwritten}
    if keep == "auto" and lost:
        with borrowed(model, grad=False):
            record = _run(model, given, layers, lost, inputs, reduce, forward)
    return record


def _run(
    model: nn.Module,
    given: Inputs,
    layers: Selection,
    keep: Keep | Mapping[LayerPath, Keep],
    inputs: bool,
    reduce: Callable[[Any], Any] | None,
    forward: Callable[..., Any] | None,
) -> Record:
    with Probe(model, layers, keep=keep, inputs=inputs, reduce=reduce) as record:
        given.run(model, forward)
    return record
