"""Whether the first axis of an input counts samples."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.inputs.misfit import one_sample, rows_reach_others, series_of_rows
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.trees import entries, first_tensor

from .followed import followed, names_of, run_key
from .layout import role

_APART: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()
"""Runs whose rows do not influence each other."""


def refuse_lists(model: nn.Module, inputs: Inputs, forward: Forward | None) -> None:
    """Refuse samples in a list, such as pictures for a detection model: their first axis does not count samples.

    Raises:
        InputError: when they are; says how to give them as one batch.
    """
    listed = [name for name in inputs.floating() if "." in name and name.rpartition(".")[2].isdigit()]
    axes = followed(model, inputs, forward).inputs if listed else {}
    if not listed or any(role(axis) == "batch" for name in listed for axis in axes[name]):
        return
    shape = tuple(inputs.tensors()[listed[0]].shape)
    raise InputError(
        f"the input holds a list of {len(listed)} sample(s), and the first axis of each, {shape}, does not count them. "
        "Give a batch, and make the list in forward=: x = torch.stack(samples), forward=lambda model, x: "
        "model(list(x)). Samples of different sizes are given one at a time: x = sample[None]."
    )


def check_batch_axis(
    model: nn.Module, inputs: Inputs, forward: Forward | None = None, output: Any = None, *, apart: bool = False
) -> None:
    """Check that the first axis of an input is the batch; no run of the model may be recorded meanwhile.

    Of an output with a row for each sample and another axis, rows that influence each other may be places of one
    sample, see `refuse_series`; that they do not is found once for a model and these shapes. For other outputs the axes
    are followed, once as well; where their first axis is not known to count samples, an experiment decides, see
    `one_sample`.

    Args:
        model: a model that runs on the input.
        inputs: the input.
        forward: called instead of the model.
        output: the output, where it is known.
        apart: whether the caller finds out itself whether rows influence each other.

    Raises:
        InputError: when the batch axis is missing.
        OutOfMemoryError: as torch raises it.
    """
    tensors, first = (
        [one for one in inputs.tensors().values() if one.ndim],
        None if entries(output) else first_tensor(output),
    )
    if not tensors:
        return
    if first is not None and first.ndim > 1 and len(first) == len(tensors[0]):
        if apart or len(first) < 2:
            return
        key = run_key(model, inputs, forward)
        if key in _APART.setdefault(model, set()):
            return
        if rows_reach_others(model, inputs, forward, first.detach()):
            refuse_series(model, inputs, forward)
        _APART[model].add(key)  # or are samples all the same
        return
    try:
        axes = next(iter(followed(model, inputs, forward).output.values()), ())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the model raises: it will again where its output is wanted
        return
    if not (axes and role(axes[0]) == "batch") and (error := one_sample(model, inputs, forward)) is not None:
        raise error


def refuse_series(model: nn.Module, inputs: Inputs, forward: Forward | None = None) -> None:
    """Refuse an input whose rows influence each other, where they are places of one sample, such as steps of a series.

    The followed axes must show that the first one does not count samples, as the steps of a recurrent layer, what is
    attended to, and channels do not: other rows, such as the nodes of a graph, may be samples that influence each
    other. An axis that the user named the batch is believed.

    Raises:
        InputError: when they are; says how to give the sample, and what to say if the rows are samples.
    """
    name, tensor = next(iter(inputs.tensors().items()))
    if names_of(model).get(name, ("",))[0] == "batch" or not tensor.ndim or len(tensor) < 2:
        return
    states = generator_states()
    try:
        axes = followed(model, inputs, forward).inputs.get(name, ())
        shown = bool(axes) and role(axes[0]) not in ("batch", "unknown")
        if shown and (error := series_of_rows(model, inputs, forward)) is not None:
            raise error
    finally:
        restore_generators(states)
