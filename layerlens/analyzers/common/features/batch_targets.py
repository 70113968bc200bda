"""Targets of a data set that is read batch by batch: a target per sample is cut to the samples of each batch."""

from __future__ import annotations

import torch

from layerlens.errors import TargetError
from layerlens.inputs.batches import Batch
from layerlens.targets.target import Target, as_target


def of_batch(aim: Target | None, batch: Batch) -> Target:
    """Return the target of one batch: its rows are places in the whole data set. None is the label of each sample.

    Raises:
        TargetError: when a label is missing, or is not a class index; when a list of targets is too short.
    """
    if aim is not None:
        return aim.on(batch.inputs, torch.arange(batch.start, batch.start + batch.inputs.batch))
    labels = batch.labels
    if labels is None:
        raise TargetError(f"target='label', but sample {batch.start} or one after it has none; give (x, label) pairs.")
    if not all(isinstance(label, int) for label in labels):
        raise TargetError(f"target='label' needs class indices, got {labels[0]!r}.")
    return as_target(torch.tensor(labels))


def check_length(aim: Target | None, count: int) -> None:
    """Check that a target per sample has one for each of `count` samples.

    Raises:
        TargetError: when it does not.
    """
    if aim is not None and aim.each is not None and len(aim.each) != count:
        raise TargetError(f"the target holds {len(aim.each)} classes for {count} samples; give one per sample.")
