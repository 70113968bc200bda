"""Run a model once: record the outputs of the selected layers, or return the output when layers are edited."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from layerlens.axes.followed import followed
from layerlens.errors import AxesUnknown, OptionError, TargetError, choose
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import Selection
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from .copies import Copies, written
from .made_edits import Edits
from .probe import Probe
from .record import Record


@public
def capture(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    keep: Literal["auto", "reference", "clone", "cpu"] = "auto",
    inputs: bool = False,
    reduce: Callable[[Any], Any] | None = None,
    gradients: bool = False,
    target: Spec = None,
    stop: bool = False,
    edits: Edits | None = None,
    forward: Forward | None = None,
) -> Record:
    """Run `model` once on `x`, in eval mode, and record every call of the selected layers.

    Args:
        keep: as in `Probe`; `"auto"` (default) keeps references, and copies just those that a later operation is about
            to write into. What another thread overwrites is copied in a second run.
        inputs: record the arguments of each call as well.
        reduce: applied to each output inside the hook; only its result is kept.
        gradients: record the gradient of the score with respect to each output as well, see `Call.gradient`.
        target: ... Used with `gradients` only.
        stop: end the run when every selected layer (or call, as in `"rnn#2"`) has returned once.
        edits: as in `Probe`; their results are recorded.

    Raises:
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is unknown, or when the run would stop before there is a score to differentiate.
        TargetError: when the target does not fit the output, or no gradient leads from it to any of the layers.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
        >>> record = capture(net, -torch.ones(1, 2))
        >>> bool((record["0"] < 0).any() or (record["0"] > 0).any())
        True
    """
    choose("keep policy", keep, ("auto", "reference", "clone", "cpu"))
    if gradients and stop:
        raise OptionError("gradients need the whole run, because the score is at its end; stop=True ends it before.")
    if target is not None and not gradients:
        raise OptionError("a target is the score of gradients: set gradients=True, or give no target.")
    given: Inputs = as_inputs(x)
    known = written(model, (inputs, reduce is None))

    def run(*, watched: bool = False) -> Record:
        policy: Any = keep if keep != "auto" else dict.fromkeys(known.calls, "clone") or "reference"
        with borrowed(model, grad=gradients):
            options: dict[str, Any] = {"inputs": inputs, "reduce": reduce, "gradients": gradients, "stop": stop}
            axes = functools.partial(followed, model, given, forward)
            with Probe(model, layers, keep=policy, edits=edits, followed=axes, **options) as record:
                watched |= not known.layers.issuperset(record.selected)
                with Copies(record) if watched and keep == "auto" else contextlib.nullcontext() as copies:
                    if gradients:
                        _differentiate(model, given, forward, as_target(target).on(given), record)
                    else:
                        given.run(model, forward)
            if copies is not None:
                known.layers.update(record.selected)
                known.calls |= copies.put()
        return record

    record = run()
    if keep == "auto" and (lost := record.overwritten()):  # by what was not seen
        known.calls |= lost
        record = run(watched=True)
    return record


@public
def run(model: nn.Module, x: Input, *, edits: Edits | None = None, forward: Forward | None = None) -> Any:
    """Return the output of `model` for `x`, in eval mode and without gradients, with some of its layers edited.

    Args:
        edits: layer selection -> a function of its output, or one of `layerlens.edits`; as in `Probe`.

    Raises:
        LayerNotFound: when a selection matches no layer.
        OptionError: when an edit does not fit what the layer returns, or its layer (or call) never ran.

    Example:
        >>> import torch
        >>> from layerlens.edits import zero
        >>> net = nn.Sequential(nn.Flatten(), nn.Identity())
        >>> run(net, torch.ones(1, 3), edits={"0": zero(units=1)})
        tensor([[1., 0., 1.]])
    """
    given = as_inputs(x)

    def run_edited(*, again: bool) -> tuple[Any, Record]:
        axes = functools.partial(followed, model, given, forward, again=again)
        with borrowed(model, grad=False), Probe(model, (), edits=edits, followed=axes) as record:
            return given.run(model, forward), record

    try:
        output, record = run_edited(again=False)
    except AxesUnknown:  # another route than when the axes were followed, or unknown ones
        output, record = run_edited(again=True)
    if record.unedited:
        raise OptionError(
            f"these edits were never made, because their layers or calls did not run: {', '.join(record.unedited)}."
        )
    return output


def _differentiate(model: nn.Module, given: Inputs, forward: Forward | None, target: Target, record: Record) -> None:
    """Run the model and differentiate the score by the outputs of the recorded calls.

    Raises:
        TargetError: when the score depends on none of them.
    """
    for parameter in model.parameters():  # so that values computed from token ids have gradients as well
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    output = given.map(lambda x: x.detach().clone().requires_grad_() if x.is_floating_point() else x).run(
        model, forward
    )
    score = target.resolve(output)(output)
    gradients = [call.gradients for call in record.order if call.gradients is not None]
    edges = [edge for one in gradients for edge in one.edges]
    found: tuple[torch.Tensor | None, ...] = ()
    if edges and score.requires_grad:
        found = torch.autograd.grad(score.sum(), edges, allow_unused=True)
    for one in gradients:
        one.edges.clear()  # the record is kept, the graph is not
    if all(gradient is None for gradient in found):
        raise TargetError(f"no gradient leads from the score {target.label!r} to any of the recorded layers.")
