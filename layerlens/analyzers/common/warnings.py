"""Warnings of values that explain nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from layerlens.errors import warn

FLAT = "the score does not change with the input there (units that are off or saturated, or a step that is flat)"


def whose(rows: Sequence[int | str], count: int) -> str:
    """The samples that a warning is about, in words; nothing where the batch holds only that one.

    Example:
        >>> whose([1, 3], 8), whose([0], 1)
        (' of sample(s) 1, 3', '')
    """
    return f" of sample(s) {', '.join(map(str, rows[:8]))}" if count > 1 else ""


def warn_of_zeros(values: Mapping[str, torch.Tensor], method: str, why: str = FLAT) -> None:
    """Warn when the values of some sample are zero everywhere: an empty map means a dead path, not 'unimportant'."""
    empty = torch.stack([value.reshape(len(value), -1).eq(0).all(dim=1) for value in values.values()]).all(dim=0)
    if bool(empty.any()):
        of = whose(empty.nonzero().flatten().tolist(), len(empty))
        warn(
            f"{method}: the values{of} are zero everywhere, so they explain nothing: {why}.",
        )


def warn_of_not_finite(values: Mapping[str, torch.Tensor], method: str) -> None:
    """Warn when some value of a sample is NaN or infinite."""
    bad = torch.stack([~value.isfinite().reshape(len(value), -1).all(dim=1) for value in values.values()]).any(dim=0)
    if bool(bad.any()):
        of = whose(bad.nonzero().flatten().tolist(), len(bad))
        warn(
            f"{method}: the values{of} hold NaN or infinity: a gradient or a score on the way is "
            "not finite (a root or logarithm of 0, a division by 0, an overflow); another baseline keeps away from it.",
        )


def warn_of_cancelling(values: Mapping[str, torch.Tensor], method: str) -> None:
    """Warn when the values of embeddings, `(..., feature)`, sum to nothing but rounding error for every token.

    A LayerNorm behind the embedding sees neither its mean over features nor its size, so the gradient sums to zero over
    them, and so does its product with the embedding where nothing is added in between.
    """
    for name, value in values.items():
        size, total = value.float().norm(dim=-1), value.float().sum(dim=-1).abs()
        rounding = max(16 * torch.finfo(value.dtype).eps, 1e-4)
        if bool((size > 0).any()) and bool((total <= rounding * size).all()):
            warn(
                f"{method}: the values of each token of {name!r} cancel over the features of its embedding, as they do "
                "where a LayerNorm follows it; their sum is rounding error and says nothing. Take gradient or "
                "smooth_grad with magnitude=True, or leave_one_out.",
            )
