"""Units of a recorded layer, with the batch first and the units second."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.axes.names import batch_axis, unit_axis
from layerlens.errors import RecordError, TargetError
from layerlens.model.layers import Layers
from layerlens.model.trees import describe, first_tensor

from .record import Record


def read_units(model: nn.Module, record: Record, call: int) -> torch.Tensor:
    """The recorded output of one call of the one layer in `record`, `(batch, unit, *places)`.

    Raises:
        TargetError: when the record holds several layers.
        RecordError: when there is no such call, or it returned no tensor with units.
    """
    paths = list(record)
    if len(paths) != 1:
        raise TargetError(f"a unit is of one layer; the selection matches {len(paths)}: {', '.join(paths[:8])}.")
    calls = record.calls(paths[0])
    if not -len(calls) <= call < len(calls):
        raise RecordError(f"layer {paths[0]!r} ran {len(calls)} time(s); there is no call {call}.")
    output = first_tensor(calls[call].output)
    if output is None or output.ndim < 2:
        raise RecordError(f"layer {paths[0]!r} returned {describe(calls[call].output)}, in which units cannot be told.")
    module = Layers(model)[paths[0]]
    return output.movedim((batch_axis(module, output), unit_axis(module, output)), (0, 1))
