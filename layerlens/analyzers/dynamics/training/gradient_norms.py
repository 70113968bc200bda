"""The norms of the gradients of a score by the outputs of layers, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import row_norms
from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.features.batch_targets import of_batch
from layerlens.axes.names import batch_axis
from layerlens.inputs.batches import Batch
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.layers import LayerPath
from layerlens.probes.run import capture
from layerlens.targets.outputs import class_scores
from layerlens.targets.target import Target


def loss(batch: Batch) -> Target:
    """The cross-entropy of the label of each sample."""
    chosen = of_batch(None, batch)

    def entropy(output: Any, rows: torch.Tensor) -> torch.Tensor:
        return class_scores(output).logsumexp(dim=1) - chosen(output, rows)

    return Target(entropy, "cross-entropy")


def gradient_norms(
    model: nn.Module,
    inputs: Inputs,
    layers: list[LayerPath],
    score: Target,
    forward: Forward | None,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Call of a layer -> norm of the gradient of each sample's score, `(batch,)`."""
    found: dict[str, torch.Tensor] = {}
    with borrowed(model), layers_called():
        torch.manual_seed(seed)
        record = capture(
            model, inputs, layers, keep="reference", reduce=lambda output: None, gradients=True, target=score,
            forward=forward,
        )  # fmt: skip
        for call in record.order:
            parts = {} if call.gradients is None else call.gradients.found
            gradient = next((part for part in parts.values() if part is not None), None)
            if gradient is None or not gradient.ndim:
                continue
            axis = batch_axis(model.get_submodule(call.layer), gradient)
            if gradient.shape[axis] == inputs.batch:
                name = f"{call.layer} #{call.index}" if call.index else call.layer
                found[name] = row_norms(gradient, axis, inputs.batch)
    return found
