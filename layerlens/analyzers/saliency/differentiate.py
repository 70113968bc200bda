"""What the gradient methods share: gradients of the scores, and how many samples to run at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from ...errors import TargetError, check_count
from ..score import Scorer, backward_pass
from ..warn import warn_of_zeros as warn_of_zeros

Leaves = dict[str, torch.Tensor]
BatchSize = int | Literal["auto"]

MEMORY = 2**30
"""Bytes of saved activations that one pass may hold when the batch size is chosen automatically."""

SMALL = 2**24
"""Bytes of saved activations that are never worth splitting."""

AT_ONCE = {"cpu": 8}
"""Samples in one pass by kind of device: a processor gains nothing from more; others run 64."""

REUSED = 2**25
"""Bytes of the largest activation of a pass on a processor: larger blocks come fresh from the system each time, page by
page (32 MiB is the most that glibc's allocator keeps). EfficientNet-Lite0: 15 ms per gradient below, 18 to 25 above."""


def freeze(model: nn.Module) -> None:
    """Switch off parameter gradients of a borrowed model.

    Linear layers then save no inputs: a ViT keeps 37 % fewer bytes; a convolution net keeps as many.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)


def gradients(
    scorer: Scorer, values: Mapping[str, torch.Tensor], rows: torch.Tensor | None = None
) -> tuple[torch.Tensor, Leaves]:
    """The scores `(n,)` at `values` and their gradients, one per leaf and shaped like it; zero where it is unused.

    Args:
        scorer: scores a borrowed model.
        values: one tensor `(n, ...)` per leaf.
        rows: which sample of the batch each row belongs to, `(n,)`; None when they are the batch.

    Raises:
        TargetError: when no gradient reaches any leaf.
    """
    start = {name: value.detach().requires_grad_() for name, value in values.items()}
    score = scorer(start, rows)
    found: tuple[torch.Tensor | None, ...] = (None,)
    if score.requires_grad:
        with backward_pass(scorer.model):
            found = torch.autograd.grad(score.sum(), list(start.values()), allow_unused=True)
    if all(gradient is None for gradient in found):
        place = next(iter(scorer.leaves.values())).place
        if place is not None:
            raise TargetError(
                f"the score {scorer.target.label!r} does not depend on what layer {place.name!r} returned (its first "
                "floating-point tensor), or not in a way that can be differentiated. Choose another layer."
            )
        raise TargetError(
            f"no gradient flows from the score {scorer.target.label!r} to the input: something on the way cannot be "
            "differentiated (argmax, round, .detach(), .item(), an integer), or the score does not depend on the "
            "input. Score a logit or probability instead."
        )
    pairs = zip(start.items(), found, strict=True)
    return score.detach(), {
        name: torch.zeros_like(value) if gradient is None else gradient for (name, value), gradient in pairs
    }


def first_score(scorer: Scorer, values: Leaves, batch_size: BatchSize) -> tuple[torch.Tensor, int]:
    """The scores of the batch as it is, and how many samples to run at once.

    `"auto"` reads what autograd saves for a sample: as many samples as fit `MEMORY`, at most `AT_ONCE` of the device
    and with no tensor above `REUSED`, unless all of it is small.

    Raises:
        OptionError: when the batch size is neither `"auto"` nor a positive number.
    """
    if batch_size != "auto":
        check_count("batch_size", batch_size, also="'auto'")
        with torch.no_grad():
            return scorer(values), int(batch_size)
    limit = AT_ONCE.get(scorer.rows.device.type, 64)
    count = len(scorer.rows)
    if count <= limit:  # the one forward pass that is needed anyway
        score, saved, largest = _measured(scorer, values, None)
        saved, largest = saved / count, largest / count
    else:
        with torch.no_grad():
            score = scorer(values)
        one = {name: value[:1] for name, value in values.items()}
        _, saved, largest = _measured(scorer, one, scorer.rows[:1])
    saved, largest = max(saved, 1.0), max(largest, 1.0)
    if scorer.rows.device.type == "cpu":
        limit = min(limit, int(REUSED / largest))
    return score, max(1, min(int(MEMORY / saved), max(limit, int(SMALL / saved)), 1024))


def _measured(scorer: Scorer, values: Leaves, rows: torch.Tensor | None) -> tuple[torch.Tensor, float, float]:
    """The scores, the bytes of the activations that autograd would save, no parameters, and those of the largest."""
    held = [*scorer.model.parameters(), *scorer.model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in held if tensor.layout is torch.strided}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> None:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage  # held, so that no later tensor gets the same address

    def unpack(nothing: object) -> torch.Tensor:
        raise RuntimeError("no backward pass runs through a measured graph")

    start = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        score = scorer(start, rows).detach()
    sizes = [storage.nbytes() for storage in saved.values()]
    return score, float(sum(sizes)), float(max(sizes, default=0))


def completeness_gap(values: Mapping[str, torch.Tensor], score: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
    """|sum - (S(x) - S(x'))| over |S(x) - S(x')|, `(batch,)`; a difference within rounding of S counts as that."""
    total = torch.stack([value.double().reshape(len(value), -1).sum(dim=1) for value in values.values()]).sum(dim=0)
    change = score.double() - bottom.double()
    rounding = 100 * torch.finfo(score.dtype).eps * torch.maximum(score.double().abs(), bottom.double().abs())
    tiny = torch.finfo(torch.float64).tiny
    return (total - change).abs() / torch.maximum(change.abs(), rounding).clamp_min(tiny)
