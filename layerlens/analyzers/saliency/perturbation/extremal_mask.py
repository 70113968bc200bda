"""Extremal perturbations: the smooth mask of a given area that keeps the score highest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Scorer, gradients, scoring
from layerlens.errors import InputError, OptionError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec


@method(
    family="perturbation",
    passes="320 gradients (areas x steps)",
    needs="an image; gradients",
    source="Fong, Patrick & Vedaldi 2019",
)
def extremal_mask(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    areas: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    steps: int = 80,
    cells: int = 14,
    baseline: Baseline = "blur",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Find the smooth masks of given areas that keep the score highest, and average them over the areas.

    max over m of S(m x + (1 - m) x') - strength |sort(m) - r_a|^2, r_a the step function of area a (Fong et al. 2019,
    eq. 2 and 3), by Adam from a flat mask; m is a grid of cells enlarged smoothly. The strength grows a thousandfold
    over the run, so that the score chooses the places first and the area holds at the end.

    Args:
        x: ... One tensor `(batch, channel, height, width)`.
        where: None for the input, or a layer, or a call of one, whose output (of an image's axes) is masked.
        areas: shares of the places that a mask keeps.
        steps: steps of the optimization, for each area.
        cells: cells of the mask along the shorter side.
        baseline: ... It is shown where the mask is 0.

    Returns:
        An `Attribution` shaped like the input: the mean mask, 0 to 1, the same in all channels. Its checks are the
        score that each mask keeps, `"score at area 0.05"` and so on.

    Raises:
        InputError: when the input is not an image.
        OptionError: when an option is out of range, or the baseline does not fit.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))
        >>> _ = net[1].weight.data.zero_()[0, :8].fill_(1.0)
        >>> result = extremal_mask(net, torch.ones(1, 1, 8, 8), target=0, areas=[0.125], cells=8, baseline="zero")
        >>> bool(result.tensor[0, 0, 0].mean() > result.tensor[0, 0, 1:].mean())
        True
    """
    check_count("steps", steps)
    check_count("cells", cells)
    if not list(areas) or not all(0 < area < 1 for area in areas):
        raise OptionError(f"areas are shares between 0 and 1, one or more; got {areas!r}.")
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        ((name, leaf), *others) = scorer.leaves.items()
        if others or leaf.layer is not None or leaf.value.ndim != 4:
            listed = ", ".join(f"{key} {describe(one.value)}" for key, one in scorer.leaves.items())
            raise InputError(
                f"extremal_mask needs one image (batch, channel, height, width); got {listed}. "
                f"{_instead(scorer)}"
                f"{'shapley_sampling takes several inputs' if others else 'rise and shapley_sampling take any input'}."
            )
        score, _ = gradients(scorer, scorer.start())
        scorer.refuse_joint("extremal_mask")
        starts, label = baselines(scorer, baseline)
        size = (leaf.value.shape[-2], leaf.value.shape[-1])
        grid = [max(1, round(cells * side / min(size))) for side in size]
        mean_mask, checks = torch.zeros(len(score), 1, *size), {}
        for area in track(list(areas), "extremal masks"):
            mask = _optimized(scorer, name, leaf.value, starts[name], score, area, steps, grid)
            mean_mask += mask.cpu() / len(areas)
            with torch.no_grad():
                checks[f"score at area {area:g}"] = scorer({name: torch.lerp(starts[name], leaf.value, mask)})
        return scorer.attribution(
            {name: mean_mask.to(leaf.value).expand(leaf.value.shape).clone()},
            method="extremal_mask",
            settings={"areas": tuple(areas), "steps": steps, "cells": cells, "baseline": label},
            score=score,
            signed=False,
            units="share of masks that keep it",
            checks=checks,
        )


def _instead(scorer: Scorer) -> str:
    """Say how to hold all inputs but the only image, if there is one."""
    images = [name for name, leaf in scorer.leaves.items() if leaf.is_picture]
    held = [name for name in scorer.leaves if name not in images]
    return f"For the image alone, hold={held[0] if len(held) == 1 else held!r}; " if len(images) == 1 and held else ""


def _optimized(
    scorer: Scorer,
    name: str,
    end: torch.Tensor,
    start: torch.Tensor,
    score: torch.Tensor,
    area: float,
    steps: int,
    grid: list[int],
) -> torch.Tensor:
    """The mask `(batch, 1, height, width)`."""
    with torch.enable_grad():
        weights = torch.zeros(len(end), 1, *grid, device=end.device, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.2)
        count = end.shape[-2] * end.shape[-1]
        goal = (torch.arange(count, device=end.device) >= (1 - area) * count).float()
        scale = score.detach().abs().clamp_min(1e-6).reshape(-1, 1, 1, 1).float()
        for step in range(steps):
            mask = _mask(weights, (end.shape[-2], end.shape[-1]))
            mixed = torch.lerp(start, end, mask.to(end.dtype).expand_as(end))
            _, slopes = gradients(scorer, {name: mixed})
            strength = 0.1 * 1000 ** (step / steps)
            order = mask.flatten(1).sort(dim=1).values
            penalty = strength * (order - goal).square().mean(dim=1).sum()
            optimizer.zero_grad()
            slope = (slopes[name] * (end - start)).sum(dim=1, keepdim=True).float()  # of the score, by the mask
            (penalty - (slope / scale * mask).sum()).backward()
            optimizer.step()
        return _mask(weights, (end.shape[-2], end.shape[-1])).detach().to(end.dtype)


def _mask(weights: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.sigmoid(F.interpolate(weights, size=size, mode="bicubic", align_corners=False))
