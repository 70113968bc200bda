"""Cells that a model calls in a loop: every call is one step."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.errors import RecordError
from layerlens.model.layers import LayerPath
from layerlens.probes.call import Call

from .steps import Quantities, from_input, read, step_of


def cell_states(
    path: LayerPath, module: nn.RNNCellBase, calls: list[Call]
) -> tuple[dict[str, Quantities], torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of all calls as steps, lengths, and for each sample the difference from the output and its size.

    Raises:
        RecordError: when the calls differ in their number of samples.
    """
    step, found, apart, sizes = step_of(module), list[Quantities](), [], []
    for call in calls:
        args, kwargs = call.inputs
        x = args[0] if args else kwargs["input"]
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        x = x[None] if x.ndim == 1 else x
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = () if state is None else state if isinstance(state, tuple) else (state,)
        start = {name: part.reshape(len(x), -1).to(x) for name, part in zip(("hidden", "cell"), parts, strict=False)}
        zeros = x.new_zeros(len(x), module.hidden_size)
        weights = read(module, "", x.dtype)
        made = step(weights, from_input(weights, x), {"hidden": zeros, "cell": zeros, **start})
        returned = call.output if isinstance(call.output, tuple) else (call.output,)
        for name, part in zip(("hidden", "cell"), returned, strict=False):
            theirs = part.reshape(len(x), -1).to(x)
            apart.append((made[name] - theirs).abs().amax(dim=1))
            sizes.append(theirs.abs().amax(dim=1))
        found.append(made)
    batches = {len(made["hidden"]) for made in found}
    if len(batches) > 1:
        raise RecordError(
            f"the calls of cell {path!r} have {', '.join(map(str, sorted(batches)))} samples; its steps form no "
            "sequence. Run samples of one length together, or one by one."
        )
    states = {name: torch.stack([made[name] for made in found], dim=1) for name in found[0]}
    lengths = torch.full((batches.pop(),), len(calls))
    return {"layer 0": states}, lengths, torch.stack(apart).amax(dim=0), torch.stack(sizes).amax(dim=0)
