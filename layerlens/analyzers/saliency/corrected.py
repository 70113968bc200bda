"""A map of pictures, corrected by what the score does when the places that it puts first are kept or removed."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import baselines
from layerlens.analyzers.common.messages import all_finite
from layerlens.analyzers.common.scorer import Scorer, gradients, scoring
from layerlens.errors import InputError, TargetError
from layerlens.inputs.inputs import Forward, Input
from layerlens.results import Attribution
from layerlens.targets.probability import probability
from layerlens.targets.target import Spec

from .choice import LEAST
from .mean_rank import CHANNEL, ByInput, ranking, ranks, ranks_by_input

STEPS = ((0.2, "blur"), (0.2, "mean"), (0.1, "blur"), (0.4, "mean"))
"""Shares of the places that a step keeps or removes, and what stands for those that are gone; tuned on 32 pictures."""

FEWEST_STEPS, PER_STEP = 3, 2
"""Steps that were measured at least, and gradients that each takes."""

WEIGHT = 3
"""What the ranks of the map count; the ranks of a step count 1."""


def corrected(
    model: nn.Module, x: Input, found: Attribution, steps: int, *, target: Spec = None, forward: Forward | None = None
) -> Attribution:
    """Correct a map of pictures by gradients at pictures in which its first places alone are kept, or are removed.

    A step takes the share of the places that is first by the sum of the ranks so far, the picture u with these alone
    kept, the others replaced by a fill x', and the picture v with these replaced. Its ranks are those of
    (g(u) + g(v)) (x - x'), added over channels, where g is the gradient of the probability of the class, or of the
    score if that is not one of a class. The ranks of the map count three times.

    Args:
        found: a map of x, of the same target, with finite values.
        steps: 1 to 4.

    Returns:
        An `Attribution` as of `mean_rank`, `(batch, *places)`.

    Raises:
        InputError: when a gradient is not finite.

    Example:
        >>> from layerlens import saliency
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
        >>> x = torch.rand(1, 1, 8, 8)
        >>> corrected(net, x, saliency(net, x, target=0, method="relevance"), 3, target=0).tensor.shape
        torch.Size([1, 8, 8])
    """
    total: ByInput = {key: WEIGHT * values.double() for key, values in ranks_by_input(found).items()}
    try:
        with scoring(model, x, probability(target), forward=forward) as scorer:
            _add(scorer, found, total, steps)
            of = "probability"
    except TargetError:  # not the score of one class
        with scoring(model, x, target, forward=forward) as scorer:
            _add(scorer, found, total, steps)
            of = "score"
    taken = [{"share": share, "fill": fill} for share, fill in STEPS[:steps]]
    return ranking(
        found,
        {key: (values / (WEIGHT + steps)).float() for key, values in total.items()},
        method=f"corrected {found.method}",
        settings={"map": {"method": found.method, **found.settings}, "steps": taken, "weight": WEIGHT, "of": of},
        cost=" and ".join([*filter(None, [found.cost]), f"{PER_STEP * steps} gradients to correct it"]),
    )


def _add(scorer: Scorer, found: Attribution, total: ByInput, steps: int) -> None:
    """Add the ranks of the steps to those of the map."""
    own = scorer.values()
    with torch.no_grad():
        scorer(own)  # which finds the target
    keys = {name: name if isinstance(found.values, dict) else None for name in own}
    channels = {name: _channels(found, key) for name, key in keys.items()}
    for share, spec in STEPS[:steps]:
        fill = baselines(scorer, spec)[0]
        first = {
            name: torch.stack([ranks(row) >= 1 - share for row in total[key]])
            .reshape([1 if axis in channels[name] else size for axis, size in enumerate(own[name].shape)])
            .to(own[name].device)
            for name, key in keys.items()
        }
        slopes = {name: torch.zeros_like(value) for name, value in own.items()}
        for kept in (first, {name: ~one for name, one in first.items()}):
            shown = {name: torch.where(kept[name], own[name], fill[name]) for name in own}
            for name, slope in gradients(scorer, shown)[1].items():
                slopes[name] += slope
        for name, key in keys.items():
            if not all_finite(slopes[name]):
                raise InputError(
                    f"the gradient is not finite where {share:.0%} of the picture are kept or replaced ({spec}): the "
                    f"map cannot be corrected. Give a budget below {FEWEST_STEPS * PER_STEP + LEAST}."
                )
            effect = (slopes[name] * (own[name] - fill[name])).double().cpu()
            effect = effect.sum(dim=channels[name]) if channels[name] else effect
            total[key] += torch.stack([ranks(row) for row in effect])


def _channels(found: Attribution, key: str | None) -> list[int]:
    """The axis of the channels, where it is known."""
    axes = found.axes_of(key)
    return [axes.index(CHANNEL)] if axes is not None and CHANNEL in axes[1:] else []
