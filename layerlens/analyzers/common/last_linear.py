"""The linear layer that makes the output of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.probes.probe import Probe
from layerlens.targets.outputs import main_output


def last_linear(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Return the paths of linear layers whose output is the main output, `(batch, outputs)`, of a run; "" is the model.

    Args:
        model: a model inside `borrowed`.
        run: runs it.
    """
    linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    with torch.no_grad(), Probe(model, linear or None) as record:
        output = main_output(run())
    if output.ndim != 2:
        return []
    return [
        name for name in linear
        if name in record and any(torch.equal(one.output, output) for one in record.calls(name))
    ]  # fmt: skip
