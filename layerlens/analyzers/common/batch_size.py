"""The number of samples per pass, chosen by the memory that one pass takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import check_count
from layerlens.model.layers import LayerPath
from layerlens.model.placement import local
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe

from .scorer import Leaves, Scorer

BatchSize = int | Literal["auto"]

MEMORY = 2**30
"""Bytes of saved activations that one pass may hold when the batch size is chosen automatically."""

SMALL = 2**24
"""Bytes of saved activations that are never worth splitting."""

AT_ONCE = {"cpu": 32}
"""Samples per pass by kind of device: a processor gains nothing from more; others run 64."""

REUSED = 2**25
"""Bytes of most activations of a gradient on a processor: larger blocks come fresh from the system each time, page by
page (32 MiB is the most that glibc's allocator keeps). EfficientNet-Lite0: 15 ms per gradient below, 18 to 25 above."""

PASSING = 2**24
"""As `REUSED`, for a forward pass alone. It frees each activation soon, and glibc returns what is free beyond 64 MiB,
about four blocks: input and output of a layer, and its kernel's copies of both. EfficientNet-Lite0: 21 ms per sample
with two at once, 35 with eight."""

ROUND = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes to choose from: others are slower in some kernels."""


def first_score(
    scorer: Scorer, values: Leaves, batch_size: BatchSize, *, gradient: bool = True
) -> tuple[torch.Tensor, int]:
    """Return the scores of the batch as it is, and how many samples to run at once.

    `"auto"` reads the bytes that this pass makes, so that the same call takes the same batches, and gives the same
    bits, every time: as many samples as fit `MEMORY`, at most `AT_ONCE` of the device, and on a processor with most
    activations below `REUSED` (`PASSING` without gradients), unless all of them are small. Those bounds are where the
    measured time per sample of convolutional nets, transformers and recurrent nets stops falling, or rises.

    Args:
        scorer: scores a borrowed model.
        values: the leaves as they are.
        batch_size: samples in one pass, or `"auto"`.
        gradient: whether the passes to come keep activations for gradients, or are forward passes alone.

    Raises:
        OptionError: when the batch size is neither `"auto"` nor a positive number.
    """
    if batch_size != "auto":
        check_count("batch_size", batch_size, also="'auto'")
        with torch.no_grad():
            return scorer(values), int(batch_size)
    count, measured = len(scorer.rows), _saved_sizes if gradient else _forward_sizes
    limit = AT_ONCE.get(scorer.rows.device.type, 64)
    _keep_what_is_freed()
    if count <= limit:  # the one forward pass that is needed anyway
        score, sizes = measured(scorer, values, None)
    else:
        with torch.no_grad():
            score = scorer(values)
        one = {name: value[:1] for name, value in values.items()}
        scorer.apart(one, scorer.rows[:1])  # its passes do not count
        _, sizes = measured(scorer, one, scorer.rows[:1])
        count = 1
    total, largest = max(1.0, sum(sizes) / count), max([1, *sizes]) / count
    if scorer.rows.device.type == "cpu":
        room = (REUSED if gradient else PASSING) * count / _typical_size(sizes)
        limit = max((size for size in ROUND if size <= min(limit, room)), default=1)
    held = total if gradient else 4 * largest  # of a forward pass: a layer's input and output, and its kernel's copies
    return score, max(1, min(int(MEMORY / held), max(limit, int(SMALL / total)), 1024))


@cache
def _keep_what_is_freed() -> None:
    """Let glibc keep the blocks that a pass frees for the next one.

    It hands blocks back to the system, to fetch them again page by page, from the size of the largest one on that it
    has seen freed, 32 MiB at most. So one is freed here, which nothing was written to. In a process that had freed
    none so large, EfficientNet-Lite0 took 41 ms for a forward pass before this and 30 ms after. Once is enough, and
    each further time would widen the heap by as much, since small objects then lie where the block was: a heap wider
    than the memory of the machine cannot be forked, and a `DataLoader` starts no more processes.
    """
    torch.empty(REUSED - 2**16, dtype=torch.uint8)


def _typical_size(sizes: list[int]) -> int:
    """The size that an eighth of all bytes exceed: one large tensor, such as the logits of a text, does not count."""
    rest = sum(sizes) / 8
    for size in sorted(sizes, reverse=True):
        rest -= size
        if rest < 0:
            return size
    return 1


def _saved_sizes(scorer: Scorer, values: Leaves, rows: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
    """The scores, and the bytes of each activation that autograd would save; no parameters."""
    held = [local(tensor) for tensor in (*scorer.model.parameters(), *scorer.model.buffers())]
    own = {tensor.untyped_storage().data_ptr() for tensor in held if tensor.layout is torch.strided}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        part = local(tensor)
        if part.layout is torch.strided:
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage  # held, so that no later tensor gets the same address
        return tensor.detach()  # an operation that saves its own result would be kept by itself for ever

    start = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):  # a model may differentiate itself
        score = scorer(start, rows).detach()
    return score, [storage.nbytes() for storage in saved.values()]


def _forward_sizes(scorer: Scorer, values: Leaves, rows: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
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
    # a check of the first run may try the model on what a layer does not take
    return score, [max(pair) for pair in zip(taken, returned, strict=False)]
