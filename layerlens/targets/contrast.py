"""Contrasts: targets that ask why this and not that."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.signatures import public

from .outputs import class_scores
from .target import Names, Spec, Target, as_target, by_place


@public
def contrast(positive: Spec, negative: Spec = None, *, names: Names = None) -> Target:
    """Return the score of `positive` minus the score of `negative`: why this and not that.

    Args:
        positive: target, see `as_target`.
        negative: target, see `as_target`; None for the mean score of all other classes (contrastive relevance: Gu et
            al. 2018, ACCV), along the last axis of the output if `positive` is a `(position, class)`.
        names: class names by index; None for those of the `Lens` that uses the contrast.

    Raises:
        TargetError: when one cannot be read; for an unknown name, at the latest on use.

    Example:
        >>> contrast(0, 1)(torch.tensor([[3.0, 1.0]]))
        tensor([2.])
        >>> as_target(contrast("dog", "cat"), names=["cat", "dog"])(torch.tensor([[3.0, 1.0]]))
        tensor([-2.])
        >>> contrast(0)(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([1.5000])
    """
    if negative is None:
        place = positive[:-1] if isinstance(positive, tuple) else ()
        return _against_others(read_later(positive, names), place)
    return read_later(positive, names) - read_later(negative, names)


def _against_others(chosen: Target, place: tuple[Any, ...]) -> Target:
    """The score of a class minus the mean score of all others at the same place."""

    def others(output: object, rows: torch.Tensor) -> torch.Tensor:
        scores = by_place(output, (*place, slice(None))) if place else class_scores(output)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise TargetError(
                f"a contrast with the other classes needs two classes or more, got scores {tuple(scores.shape)}."
            )
        return (scores.sum(dim=1) - chosen(output, rows)) / (scores.shape[1] - 1)

    def against_others(reread: Target) -> Target:
        return _against_others(reread, place)

    choose, read = chosen.chooser, chosen.reader
    return Target(
        lambda output, rows: chosen(output, rows) - others(output, rows),
        f"{chosen.label} - mean of the others",
        None if choose is None else (lambda output: against_others(choose(output))),
        None if read is None else (lambda names: against_others(read(names))),
        None if chosen.each is None else tuple(f"{label} - mean of the others" for label in chosen.each),
    )


def read_later(spec: Spec, names: Names) -> Target:
    """Return the target, which is read again when class names are known."""
    if names is not None or spec is None or isinstance(spec, Target):
        return as_target(spec, names=names)

    def reader(names: Names) -> Target:
        return as_target(spec, names=names)

    if isinstance(spec, str):  # no names yet
        return Target(lambda output, rows: reader(None)(output, rows), spec, None, reader)
    return dataclasses.replace(reader(None), reader=reader)
