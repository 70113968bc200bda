"""Whether the first axis of an input counts samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.inputs.misfit import one_sample
from layerlens.model.trees import first_tensor

from .followed import followed
from .layout import role


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


def check_batch_axis(model: nn.Module, inputs: Inputs, forward: Forward | None = None, output: Any = None) -> None:
    """Check that the first axis of an input is the batch; no run of the model may be recorded meanwhile.

    An output with a row for each sample and another axis is enough. For others the axes are followed, once for a model
    and these shapes; where their first axis is not known to count samples, an experiment decides, see `one_sample`.

    Args:
        model: a model that runs on the input.
        inputs: the input.
        forward: called instead of the model.
        output: the output, where it is known.

    Raises:
        InputError: when the batch axis is missing.
        OutOfMemoryError: as torch raises it.
    """
    tensors, first = [one for one in inputs.tensors().values() if one.ndim], first_tensor(output)
    if not tensors or (first is not None and first.ndim > 1 and len(first) == len(tensors[0])):
        return
    try:
        axes = next(iter(followed(model, inputs, forward).output.values()), ())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the model raises: it will again where its output is wanted
        return
    if not (axes and role(axes[0]) == "batch") and (error := one_sample(model, inputs, forward)) is not None:
        raise error
