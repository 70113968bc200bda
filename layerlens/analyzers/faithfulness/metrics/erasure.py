"""Comprehensiveness and sufficiency: the score without the most important places, and with them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.targets.target import Spec

from .curves import removal
from .input_places import Given

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Of the places: the bins of DeYoung et al. 2020, sec. 4."""


def comprehensiveness(model: nn.Module, x: Input, attribution: Given, **options: Any) -> torch.Tensor:
    """How far the score falls without the most important places, `(batch,)`; higher is better.

    The mean over shares k of S(x) - S(x without the first k) (DeYoung et al. 2020, eq. 1 and 3).

    Args:
        model: any module; no gradient is needed.
        x: its input, `(batch, ...)`; for token ids the places are tokens.
        attribution: a map of x, as in `insertion`.
        **options: `target`, `fill`, `measure`, `seed`, `batch_size` and `forward` as in `insertion`, and `shares`, of
            the places, each above 0 and below 1; at least one place is removed.

    Raises:
        InputError: when the map does not fit the input.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Example:
        >>> model = nn.Linear(10, 1, bias=False)
        >>> comprehensiveness(model, torch.ones(2, 10), torch.rand(2, 10), target=0).shape
        torch.Size([2])
    """
    return _mean_fall(model, x, attribution, keep=False, **options)


def sufficiency(model: nn.Module, x: Input, attribution: Given, **options: Any) -> torch.Tensor:
    """How far the score falls when only the most important places are kept, `(batch,)`; lower is better.

    The mean over shares k of S(x) - S(the first k alone) (DeYoung et al. 2020, eq. 2 and 3).

    Args:
        model: any module; no gradient is needed.
        x: its input, `(batch, ...)`.
        attribution: a map of x, as in `insertion`.
        **options: as in `comprehensiveness`.

    Raises:
        InputError: when the map does not fit the input.
        OptionError: when an option is out of range.
        TargetError: when the target does not fit the output.

    Example:
        >>> model = nn.Linear(10, 1, bias=False)
        >>> sufficiency(model, torch.ones(2, 10), torch.rand(2, 10), target=0).shape
        torch.Size([2])
    """
    return _mean_fall(model, x, attribution, keep=True, **options)


def _mean_fall(
    model: nn.Module,
    x: Input,
    attribution: Given,
    *,
    keep: bool,
    target: Spec = None,
    fill: Any = "zero",
    shares: Sequence[float] = SHARES,
    measure: str = "auto",
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> torch.Tensor:
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError(f"shares lie above 0 and below 1, got {shares!r}.")
    with removal(model, x, target, fill, measure=measure, batch_size=batch_size, forward=forward) as own:
        least = torch.tensor(shares).double().clamp_min(1 / own.features.count)
        label = "sufficiency" if keep else "comprehensiveness"
        scores = own.scores(own.ranks(attribution, seed), least, keep=keep, label=label)
        return (own.ends[0].unsqueeze(1) - scores).double().mean(dim=1)
