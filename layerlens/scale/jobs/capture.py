"""The outputs of every layer, sample by sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.errors import OptionError, RecordError
from layerlens.inputs.batches import Batch
from layerlens.inputs.inputs import Forward
from layerlens.model.layers import Selection
from layerlens.model.trees import describe, first_tensor
from layerlens.probes.call import sample_axis
from layerlens.probes.export import named_outputs
from layerlens.probes.made_edits import Edits
from layerlens.probes.run import capture

from ..store.fingerprint import as_json
from .base import RowsJob, cast


@dataclasses.dataclass
class Capture(RowsJob):
    """The outputs of layers; a column for each call, `"rnn#1"` for the second."""

    layers: Selection
    reduce: Callable[[Any], Any] | None
    edits: Edits | None
    dtype: torch.dtype | None
    paths: tuple[str, ...]
    forward: Forward | None
    kind = "capture"

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON."""
        return {
            "layers": list(self.paths),
            "reduce": as_json(self.reduce),
            "edits": as_json(dict(self.edits) if self.edits else None),
            "dtype": as_json(self.dtype),
        }

    def rows(self, model: nn.Module, batch: Batch) -> tuple[dict[str, torch.Tensor], Callable[[], dict[str, Any]]]:
        """Return the outputs for one batch.

        Raises:
            OptionError: when `reduce` returns something other than tensors.
            RecordError: when an output has no rows.
        """
        size = batch.inputs.batch
        record = capture(model, batch.inputs, self.layers, reduce=self.reduce, edits=self.edits, forward=self.forward)
        for call in record.order if self.reduce is not None else ():
            if first_tensor(call.output) is None:
                raise OptionError(
                    f"reduce returned {describe(call.output)} for layer {call.layer!r}; it must return tensors, "
                    "samples first."
                )
        found: dict[str, torch.Tensor] = {}
        for name, call, tensor in named_outputs(record):
            if name in found:
                raise RecordError(f"two tensors of layer {call.layer!r} have the name {name!r}; reduce them to one.")
            if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized:
                raise RecordError(f"layer {call.layer!r}: {describe(tensor)} has no rows; give reduce= for it.")
            axis = sample_axis(call, tensor, size)
            rows = tensor.expand(size, *tensor.shape[1:]) if axis is None else tensor.movedim(axis, 0)
            found[name] = cast(rows, self.dtype)
        return found, dict
