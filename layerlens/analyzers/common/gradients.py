"""What the gradient methods share: gradients of the scores, and how many samples to run at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import TargetError, check_count
from layerlens.model.layers import LayerPath
from layerlens.model.placement import local
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe

from .scorer import Scorer, backward_pass
from .warnings import warn_of_zeros as warn_of_zeros

Leaves = dict[str, torch.Tensor]
BatchSize = int | Literal["auto"]

MEMORY = 2**30
"""Bytes of saved activations that one pass may hold when the batch size is chosen automatically."""

SMALL = 2**24
"""Bytes of saved activations that are never worth splitting."""

AT_ONCE = {"cpu": 32}
"""Samples in one pass by kind of device: a processor gains nothing from more; others run 64."""

REUSED = 2**25
"""Bytes of most activations of a gradient on a processor: larger blocks come fresh from the system each time, page by
page (32 MiB is the most that glibc's allocator keeps). EfficientNet-Lite0: 15 ms per gradient below, 18 to 25 above."""

PASSING = 2**24
"""The same for a forward pass alone. It frees each activation soon, and glibc gives back what lies free beyond 64 MiB,
about four blocks: input and output of a layer, and its kernel's copies of both. EfficientNet-Lite0: 21 ms per sample
with two at once, 35 with eight."""

ROUND = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batches that are taken: others are slower in some kernels."""


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


def first_score(
    scorer: Scorer, values: Leaves, batch_size: BatchSize, *, gradient: bool = True
) -> tuple[torch.Tensor, int]:
    """The scores of the batch as it is, and how many samples to run at once.

    `"auto"` reads the bytes that this pass makes, so that the same call takes the same batches, and gives the same
    bits, every time: as many samples as fit `MEMORY`, at most `AT_ONCE` of the device, and on a processor with most
    activations below `REUSED` (`PASSING` without gradients), unless all of them are small. Those bounds are where the
    measured time per sample of convolutional nets, transformers and recurrent nets stops falling, or rises.

    Args:
        scorer: scores a borrowed model.
        values: the leaves as they are.
        batch_size: samples in one pass, or `"auto"`.
        gradient: whether the passes to come are gradients, whose activations are kept, or forward passes alone.

    Raises:
        OptionError: when the batch size is neither `"auto"` nor a positive number.
    """
    if batch_size != "auto":
        check_count("batch_size", batch_size, also="'auto'")
        with torch.no_grad():
            return scorer(values), int(batch_size)
    count, measured = len(scorer.rows), _saved if gradient else _made
    limit = AT_ONCE.get(scorer.rows.device.type, 64)
    _keep_what_is_freed()
    if count <= limit:  # the one forward pass that is needed anyway
        score, sizes = measured(scorer, values, None)
    else:
        with torch.no_grad():
            score = scorer(values)
        _, sizes = measured(scorer, {name: value[:1] for name, value in values.items()}, scorer.rows[:1])
        count = 1
    total, largest = max(1.0, sum(sizes) / count), max([1, *sizes]) / count
    if scorer.rows.device.type == "cpu":
        room = (REUSED if gradient else PASSING) * count / _usual(sizes)
        limit = max((size for size in ROUND if size <= min(limit, room)), default=1)
    held = total if gradient else 4 * largest  # of a forward pass: a layer's input and output, and its kernel's copies
    return score, max(1, min(int(MEMORY / held), max(limit, int(SMALL / total)), 1024))


def _keep_what_is_freed() -> None:
    """Let glibc keep the blocks that a pass frees for the next one.

    It hands blocks back to the system, to fetch them again page by page, from the size of the largest one on that it
    has seen freed, 32 MiB at most. So one is freed here, which nothing was written to. In a process that had freed
    none so large, EfficientNet-Lite0 took 41 ms for a forward pass before this and 30 ms after.
    """
    torch.empty(REUSED - 2**16, dtype=torch.uint8)


def _usual(sizes: list[int]) -> int:
    """The size that an eighth of all bytes exceed: one large activation, such as all logits of a text, is no matter."""
    rest = sum(sizes) / 8
    for size in sorted(sizes, reverse=True):
        rest -= size
        if rest < 0:
            return size
    return 1


def _saved(scorer: Scorer, values: Leaves, rows: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
    """The scores, and the bytes of each activation that autograd would save; no parameters."""
    held = [local(tensor) for tensor in (*scorer.model.parameters(), *scorer.model.buffers())]
    own = {tensor.untyped_storage().data_ptr() for tensor in held if tensor.layout is torch.strided}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> None:
        tensor = local(tensor)
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage  # held, so that no later tensor gets the same address

    def unpack(nothing: object) -> torch.Tensor:
        raise RuntimeError("no backward pass runs through a measured graph")

    start = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        score = scorer(start, rows).detach()
    return score, [storage.nbytes() for storage in saved.values()]


def _made(scorer: Scorer, values: Leaves, rows: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
    """The scores, and the bytes of the largest tensor that each call of an innermost layer takes or returns."""
    taken: list[int] = []
    returned: list[int] = []

    def note(sizes: list[int]) -> Callable[[Any], None]:
        return lambda given: sizes.append(max((tensor.nbytes for _, tensor in named_tensors(given)), default=0))

    def innermost(path: LayerPath, module: nn.Module) -> bool:
        return not next(module.children(), None)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="the model is tensor parallel")  # sizes alone are read
        with Probe(scorer.model, innermost, inputs=note(taken), reduce=note(returned)):
            score = scorer(values, rows)
    return score, [max(pair) for pair in zip(taken, returned, strict=True)]


def completeness_gap(values: Mapping[str, torch.Tensor], score: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
    """|sum - (S(x) - S(x'))| over |S(x) - S(x')|, `(batch,)`; a difference within rounding of S counts as that."""
    total = torch.stack([value.double().reshape(len(value), -1).sum(dim=1) for value in values.values()]).sum(dim=0)
    change = score.double() - bottom.double()
    rounding = 100 * torch.finfo(score.dtype).eps * torch.maximum(score.double().abs(), bottom.double().abs())
    tiny = torch.finfo(torch.float64).tiny
    return (total - change).abs() / torch.maximum(change.abs(), rounding).clamp_min(tiny)
