"""The rules for the first layer: relevance itself, also of inputs that are 0."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .linear_maps import LinearMap
from .rules import LinearRule, WSquare, ZBox


class Share(NamedTuple):
    """One part of the relevance of x: `factor` times what is pulled back from s through `weight`."""

    factor: torch.Tensor | None
    weight: torch.Tensor
    s: torch.Tensor


def first_layer(
    map_: LinearMap, rule: LinearRule, x: torch.Tensor, weight: torch.Tensor, relevance: torch.Tensor
) -> tuple[list[Share], torch.Tensor]:
    """The parts of the relevance of x under flat, w2 or z-box, and what is absorbed, shaped like z.

    Args:
        map_: the linear operation.
        rule: one of `DIRECT`.
        x: its input.
        weight: with the scale of its norm.
        relevance: of its output.
    """
    if isinstance(rule, ZBox):
        low, high = rule.bounds(x, map_.axis)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        above, below = x - low, x - high  # x w - l w+ - h w- by terms of one sign, so that none cancel
        z = map_.apply(above, up).add_(map_.apply(below, down))
        s, absorbed = _share(relevance, z)
        return [Share(above, up, s), Share(below, down, s)], absorbed
    by_input = weight.square() if isinstance(rule, WSquare) else torch.ones_like(weight)
    s, absorbed = _share(relevance, map_.apply(torch.ones_like(x), by_input))
    return [Share(None, by_input, s)], absorbed


def _share(relevance: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    empty = z == 0
    return torch.div(relevance, z, out=z).masked_fill_(empty, 0.0), relevance * empty
