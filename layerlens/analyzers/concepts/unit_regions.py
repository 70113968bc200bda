"""The region of the input that a unit sees at a place: where its gradient is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.scorer import Scorer, backward_pass
from layerlens.axes.call_site import CallSite
from layerlens.errors import RecordError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath, Layers
from layerlens.model.selection import split_tensor
from layerlens.model.trees import describe
from layerlens.probes.probe import Probe
from layerlens.signatures import public
from layerlens.targets.target import Target


@public
def input_regions(
    model: nn.Module,
    inputs: Inputs,
    layer: LayerPath,
    pick: Callable[[torch.Tensor], torch.Tensor],
    *,
    call: int = 0,
    level: float = 0.0,
    forward: Forward | None = None,
) -> torch.Tensor | None:
    """Find the smallest box of each input that holds the gradient of one value of a layer, in one backward pass.

    With `level=0` it is the receptive field as this input uses it: all places with a gradient that is not zero. In deep
    layers that soon is the whole input, though places at its edge hardly count (Luo et al. 2016, Understanding the
    effective receptive field in deep convolutional neural networks, NeurIPS); `level` leaves those out.

    Args:
        inputs: inputs of the model, `(batch, ...)`.
        layer: path of the layer, or of a tensor of its output.
        pick: takes one value per sample, `(batch,)`, out of the layer's output tensor.
        level: a place counts if its gradient, summed in magnitude over the other axes, exceeds this share of the
            largest along that axis.

    Returns:
        `(batch, axis, 2)`: start and stop along each axis of a sample, both 0 where there is no gradient. None if the
        model has several inputs.

    Raises:
        InputError: if the input cannot carry a gradient.

    Example:
        >>> from layerlens.inputs.inputs import as_inputs
        >>> net = nn.Conv1d(1, 2, 3)
        >>> x = as_inputs(torch.ones(1, 1, 9))
        >>> input_regions(nn.Sequential(net), x, "0", lambda out: out[:, 0, 4])
        tensor([[[0, 1],
                 [4, 7]]])
    """
    path = split_tensor(layer, Layers(model))[0]
    with borrowed(model):

        def value(output: Any) -> torch.Tensor:
            found = record.calls(path)[call].single()
            assert found is not None
            return pick(found[1])

        scorer = Scorer(model, inputs, Target(lambda output, rows: value(output), layer), forward=forward)
        if len(scorer.leaves) > 1:
            return None
        leaves = scorer.start()
        with Probe(model, layer, graph=True) as record:
            score = scorer(leaves)
        (leaf,) = leaves.values()
        gradient = None
        if score.requires_grad:  # not where the layer does not depend on the input, such as position embeddings
            with backward_pass(model):
                (gradient,) = torch.autograd.grad(score.sum(), leaf, allow_unused=True)
    sizes = torch.zeros_like(leaf) if gradient is None else gradient.detach().abs()
    if next(iter(scorer.leaves.values())).layer is not None:
        sizes = sizes.sum(dim=-1)  # (batch, token)
    return torch.stack([_box(sample, level) for sample in sizes])


def unit_maps(site: CallSite, output: torch.Tensor, batch: int, name: str = "") -> torch.Tensor:
    """Return what a layer returned, or its relevance, as `(batch, unit, *places)`; without units as one unit.

    Args:
        site: the call of the layer.
        output: its output, or the relevance of it.
        batch: number of samples.
        name: name of the tensor among several that the layer returned.

    Raises:
        AxesUnknown: if the axis of samples, or of units, is not known.
        RecordError: if it has no batch axis of this length.
    """
    sample, unit = site.batch_axis(output, name), site.unit_axis(output, name)
    if sample is None or output.shape[sample] != batch:
        raise RecordError(
            f"layer {site.path!r} returned {describe(output)} for {batch} sample(s): no axis distinguishes them."
        )
    return output.movedim(sample, 0).unsqueeze(1) if unit is None else output.movedim((sample, unit), (0, 1))


def _box(size: torch.Tensor, level: float) -> torch.Tensor:
    """Start and stop along each axis, `(axis, 2)`."""
    box = torch.zeros(size.ndim, 2, dtype=torch.int64)
    for axis in range(size.ndim):
        along = size.movedim(axis, 0).reshape(size.shape[axis], -1).double().sum(dim=1)
        seen = (along > level * along.max()).nonzero()
        if len(seen):
            box[axis] = torch.tensor([int(seen[0]), int(seen[-1]) + 1])
    return box
