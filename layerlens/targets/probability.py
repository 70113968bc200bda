"""The probability of a class as a target."""

from __future__ import annotations

import torch

from layerlens.errors import TargetError
from layerlens.signatures import public

from .base import joined
from .contrast import read_later
from .names import Names
from .outputs import are_probabilities
from .target import Spec, Target


@public
def probability(spec: Spec = None, *, names: Names = None) -> Target:
    """Return the softmax probability of a class as the target, instead of its score.

    exp(S_c) / sum over classes k of exp(S_k). Scores that are probabilities already (none below 0, sum 1) are kept.

    Args:
        spec: a class, a name, a `(position, class)`, a list of those, one per sample, or None for the predicted class;
            see `as_target`.
        names: class names by index; None for those of the `Lens` that uses the target.

    Raises:
        TargetError: when it cannot be read, is not the score of one class, or there are fewer than two classes.

    Example:
        >>> probability(1)(torch.tensor([[0.0, 0.0]]))
        tensor([0.5000])
    """
    return joined(_probability, read_later(spec, names))


def _probability(chosen: Target) -> Target:
    """The probability of the class that a target scores, among those at the same place of the output."""
    chosen = chosen.logit or chosen

    def normalized(output: object, rows: torch.Tensor) -> torch.Tensor:
        scores = chosen.all_scores(output, rows)
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise TargetError(f"a probability needs two classes or more, got scores {tuple(scores.shape)}.")
        own = chosen(output, rows)
        if not bool((scores == own.unsqueeze(1)).any(dim=1).all()):
            raise TargetError(f"a probability needs one class, and {chosen.label!r} is not the score of one.")
        return own if are_probabilities(scores) else (own - scores.logsumexp(dim=1)).exp()

    return Target(normalized, f"probability of {chosen.label}")
