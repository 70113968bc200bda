"""What `similarity` says of its numbers: what they mean, and what would mislead."""

from __future__ import annotations

import torch

from layerlens.analyzers.common.features.feature_batches import worth_telling
from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.errors import warn

from .similarity_measures import Sums

ENOUGH = 64
"""Samples below which similarities are too uncertain to be read without their errors."""


def explained(measure: str, two: bool) -> tuple[str, str]:
    """What the numbers of a measure mean, and what they do not, of one model or of two."""
    means = {
        "cka": "Each value says how alike two layers place the samples to each other, up to rotation and scale: 1 is "
        "the same arrangement, 0 is what unrelated layers have on average.",
        "rsa": "Each value is the correlation, between two layers, of the distances of all pairs of samples.",
        "neighbors": "Each value is the share of a sample's nearest samples in one layer that are nearest in the other "
        "as well; unrelated layers share the null.",
    }[measure]
    return means, (
        "Alike does not mean doing the same or being as good: a few directions of large spread set the value, and "
        "first layers are alike even with an untrained twin"
        + (", so compare with that too." if two else "; compare with one by other=.")
    )


def warn_of(
    sums: Sums,
    values: torch.Tensor,
    names: tuple[list[str], list[str]],
    widths: list[dict[str, int]],
    debiased: bool,
    left_out: dict[str, str],
    explicit: bool,
) -> None:
    """Say what would mislead."""
    warn_left_out("similarity", worth_telling(left_out, explicit), explicit)
    n = sums.samples
    if n < ENOUGH:
        warn(f"similarity: {n} samples are few; read the errors and the null, or give 64 or more.")
    if not debiased:
        size = n // sums.batches
        wide = [name for known in widths for name, width in known.items() if 2 * width >= size]
        if wide:
            warn(
                f"similarity: with {size} samples in a minibatch the biased CKA of {listed(wide)} is high for anything "
                "(see the null); use debiased=True.",
            )
    flat = [name for name, row in zip(names[0], values.isnan().all(dim=1).tolist(), strict=True) if row]
    flat += [name for name, column in zip(names[1], values.isnan().all(dim=0).tolist(), strict=True) if column]
    if flat:
        warn(
            f"similarity: {listed(list(dict.fromkeys(flat)))} does not tell these samples apart (it is constant, or "
            "too few samples differ), so it is like nothing: NaN.",
        )
