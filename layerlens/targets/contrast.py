"""Contrasts: targets that ask why this and not that."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.errors import TargetError
from layerlens.signatures import public

from .base import joined
from .names import Names, short_label
from .target import Spec, Target, as_target


@public
def contrast(positive: Spec, negative: Spec = None, *, names: Names = None) -> Target:
    """Return the score of `positive` minus the score of `negative`: why this and not that.

    Args:
        positive: target, see `as_target`; a list holds one per sample.
        negative: another; None for the mean score of all other classes (contrastive relevance: Gu et al. 2018, ACCV),
            along the last axis of the output if `positive` is a `(position, class)`.
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
        return joined(_against_others, read_later(positive, names))
    return read_later(positive, names) - read_later(negative, names)


def _against_others(chosen: Target) -> Target:
    """The score of a class minus the mean score of all others at the same place."""
    chosen = chosen.logit or chosen

    def score(output: object, rows: torch.Tensor) -> torch.Tensor:
        scores = chosen.all_scores(output, rows)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise TargetError(
                f"a contrast with the other classes needs two classes or more, got scores {tuple(scores.shape)}."
            )
        own = chosen(output, rows)
        return own - (scores.sum(dim=1) - own) / (scores.shape[1] - 1)

    return Target(score, f"{chosen.label} - mean of the others")


def read_later(spec: Spec, names: Names) -> Target:
    """Return the target, which is read again when class names are known."""
    if names is not None or isinstance(spec, Target):
        return as_target(spec, names=names)

    def reader(names: Names) -> Target:
        return as_target(spec, names=names)

    if _has_names(spec):  # and they are not known yet
        labels = list(map(str, spec)) if isinstance(spec, list) else [str(spec)]
        each = tuple(labels) if isinstance(spec, list) else None
        return Target(lambda output, rows: reader(None)(output, rows), short_label(labels), None, reader, each)
    return dataclasses.replace(reader(None), reader=reader)


def _has_names(spec: Spec) -> bool:
    """Whether a target is given by a name of a class, alone, in a place or in a list."""
    return isinstance(spec, str) or (isinstance(spec, (list, tuple)) and any(map(_has_names, spec)))
