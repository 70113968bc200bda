"""Parts of layers: which outputs of a tensor parallel model a record holds in part only."""

from __future__ import annotations

from collections.abc import Container

import torch.distributed as dist
from torch import nn

from layerlens.errors import warn
from layerlens.model.layers import LayerPath
from layerlens.model.placement import parts
from layerlens.model.trees import first_tensor

from .record import Record


def mark_parts(model: nn.Module, record: Record, edited: Container[LayerPath], *, reduced: bool) -> None:
    """Say which layers of a tensor parallel model have shown, or got edited in, the part of this process only.

    Args:
        model: that was probed.
        record: of the probe; gets `parts`.
        edited: the layers that it edited.
        reduced: whether the record holds something else than outputs.
    """
    known = parts(model) if dist.is_available() and dist.is_initialized() else {}
    for path, sizes in known.items():
        calls = record.calls(path) if path in record.selected else []
        shown = [None if reduced else first_tensor(call.value) for call in calls]
        partial = any(sizes is None or value is None or value.shape[-1] == sizes[1] for value in shown)
        if path in edited or partial:
            record.parts = (*record.parts, path)
    if record.parts:
        named = ", ".join(map(repr, record.parts[:4])) + ", ..." * (len(record.parts) > 4)
        warn(
            f"the model is tensor parallel: what layers {named} return (record.parts has all) is the part of this "
            "process, such as its columns, and units are numbered within it.",
        )
