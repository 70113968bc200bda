"""Targets of a data set that is read batch by batch: lists of classes are cut to the samples of each batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.inputs.batches import Batch
from layerlens.targets.target import Target, as_target


def class_lists(aim: Target | None) -> list[tuple[str, ...]]:
    """Return the labels of each list of classes, one per sample, in a target or in those that it joins.

    Raises:
        TargetError: when a list is joined with a class that is predicted batch by batch.
    """
    lists = list(_lists_in(aim))
    if aim is not None and aim.chooser is not None and lists:
        raise TargetError(
            f"target {aim.label!r} joins the class predicted for each sample with a list of classes, which cannot be "
            "read batch by batch. Give the predicted classes as a list as well."
        )
    return lists


def _lists_in(part: Any) -> Iterator[tuple[str, ...]]:
    if not isinstance(part, Target):
        return
    if part.each is not None:
        yield part.each
        return
    for cell in getattr(part.function, "__closure__", None) or ():  # where a joined target holds those it was made of
        yield from _lists_in(cell.cell_contents)


def of_batch(aim: Target | None, batch: Batch) -> Target:
    """Return the target of one batch: its rows are places in the whole data set. None is the label of each sample.

    Raises:
        TargetError: when a label is missing, or is not a class index; when a list of classes is too short.
    """
    if aim is None:
        labels = batch.labels
        if labels is None:
            raise TargetError(
                f"target='label', but sample {batch.start} or one after it has none; give (x, label) pairs."
            )
        if not all(isinstance(label, int) for label in labels):
            raise TargetError(f"target='label' needs class indices, got {labels[0]!r}.")
        return as_target(torch.tensor(labels))
    if aim.chooser is not None:
        return aim
    start, stop = batch.start, batch.start + batch.inputs.batch
    if aim.each is not None and len(aim.each) < stop:
        raise TargetError(
            f"the target holds {len(aim.each)} classes, and the data at least {stop} samples; give one per sample."
        )
    each = None if aim.each is None else aim.each[start:stop]
    return dataclasses.replace(aim, function=lambda output, rows: aim.function(output, rows + start), each=each)


def check_length(lists: Sequence[tuple[str, ...]], count: int) -> None:
    """Check that each list holds a class for each of `count` samples.

    Raises:
        TargetError: when one does not.
    """
    for each in lists:
        if len(each) != count:
            raise TargetError(f"the target holds {len(each)} classes for {count} samples; give one per sample.")
