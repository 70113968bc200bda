"""Gradients of the scores of a batch by its leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from layerlens.errors import TargetError

from .inner_gradients import backward_pass, warn_of_cut
from .samples import slopes_by_sample

if TYPE_CHECKING:
    from .scorer import Leaves, Scorer


def gradients(
    scorer: Scorer, values: Mapping[str, torch.Tensor], rows: torch.Tensor | None = None
) -> tuple[torch.Tensor, Leaves]:
    """Return the scores `(n,)` at `values` and their gradients, one per leaf and shaped like it; zero if unused.

    Args:
        scorer: scores a borrowed model.
        values: one tensor `(n, ...)` per leaf.
        rows: sample of the batch that each row belongs to, `(n,)`; None when they are the batch.

    Raises:
        TargetError: when no gradient reaches any leaf.
    """
    if rows is not None and len(rows) > 1 and scorer.apart(values, rows):
        single = [
            gradients(scorer, {n: v[at : at + 1] for n, v in values.items()}, rows[at : at + 1])
            for at in range(len(rows))
        ]
        joined = {name: torch.cat([slopes[name] for _, slopes in single]) for name in values}
        return torch.cat([score for score, _ in single]), joined
    start = {name: value.detach().requires_grad_() for name, value in values.items()}
    scorer.inner.watching = True
    score = scorer(start, rows)
    return score.detach(), slopes_of(scorer, score, start, rows)


def slopes_of(
    scorer: Scorer, score: torch.Tensor, start: Leaves, rows: torch.Tensor | None = None, *, keep: bool = False
) -> Leaves:
    """Return the gradients of scores that a scorer returned for leaves with gradients; zero if unused.

    Args:
        scorer: scores a borrowed model.
        score: the scores, `(n,)`.
        start: the leaves.
        rows: as in `gradients`.
        keep: whether the graph is differentiated once more.

    Raises:
        TargetError: when no gradient reaches any leaf.
    """
    slopes: tuple[torch.Tensor | None, ...] = (None,)
    if score.requires_grad:
        with backward_pass(scorer.model):
            slopes, scorer.interacting = slopes_by_sample(
                score, list(start.values()), scorer.interacting, run=scorer.run, keep=keep
            )
    places = [leaf.place for leaf in scorer.leaves.values()]
    together = len({place.edited for place in places if place}) > 1
    if all(slope is None for slope in slopes) or (together and any(slope is None for slope in slopes)):
        place = next(place for place, slope in zip(places, slopes, strict=False) if slope is None)
        if place is not None:
            raise place.unread(scorer.target.label, together=together)
        raise TargetError(
            f"no gradient flows from the score {scorer.target.label!r} to the input: something on the way cannot be "
            "differentiated (argmax, round, .detach(), .item(), an integer), or the score does not depend on the "
            "input. Score a logit or probability instead."
        )
    pairs = zip(start.items(), slopes, strict=True)
    found = {name: torch.zeros_like(value) if slope is None else slope for (name, value), slope in pairs}
    if (cuts := scorer.inner.take_cuts()) and not score.dtype.itemsize < 4:
        warn_of_cut(cuts, lambda moved: scorer(moved, rows), start, found)
    return found
