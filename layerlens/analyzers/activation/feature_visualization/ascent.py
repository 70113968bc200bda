"""Gradient ascent on a canvas, under random transformations."""

from __future__ import annotations

import dataclasses
import math

import torch

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import TargetError
from layerlens.progress import track

from .canvas import Canvas
from .objectives import Objectives, likeness
from .transforms import Transforms

FRESH = 8
"""Transformations that the finished inputs are scored under."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the ascent needs besides its canvas and its objectives."""

    steps: int
    learning_rate: float
    transforms: Transforms
    total_variation: float
    l2: float
    diversity: float
    progress: bool | None


def ascend(
    canvas: Canvas, objectives: Objectives, plan: Plan, rows: list[tuple[int, int]], seed: int
) -> tuple[torch.Tensor, ...]:
    """Inputs, their curve `(n, step)`, final score, and score under fresh transformations, after and before."""
    groups, places = [index for index, _ in rows], len(canvas.sizes)
    span = 1.0 if canvas.bounds is None else canvas.bounds[1] - canvas.bounds[0]
    middle = 0.0 if canvas.bounds is None else sum(canvas.bounds) / 2
    generators = [torch.Generator().manual_seed(seed + copy) for _, copy in rows]
    parameters = torch.stack([canvas.start(generator) for generator in generators])
    first = parameters.clone()
    optimiser = torch.optim.Adam([parameters], lr=plan.learning_rate)
    curve: list[torch.Tensor] = []
    for step in track(range(plan.steps), "feature_visualization", enabled=plan.progress):
        optimiser.param_groups[0]["lr"] = plan.learning_rate * (
            0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.steps))
        )
        leaf = parameters.detach().requires_grad_()
        drawn = canvas.draw(leaf)
        scores, features = objectives(canvas.laid_out(plan.transforms(drawn, generators, places, span)), groups)
        if not bool(torch.isfinite(scores).all()):
            raise TargetError(f"the score is not finite at step {step}: {scores.tolist()[:8]}. Try a smaller step.")
        loss = -scores.sum()
        if plan.total_variation:
            slopes = [drawn.diff(dim=-1 - axis).abs().flatten(1).mean(dim=1).sum() for axis in range(places)]
            loss = loss + plan.total_variation * sum(slopes) / span
        if plan.l2:
            loss = loss + 0.5 * plan.l2 * (drawn - middle).square().flatten(1).mean(dim=1).sum()
        if plan.diversity and features is not None:
            loss = loss + plan.diversity * likeness(features, groups)
        if not scores.requires_grad:
            raise TargetError(f"no gradient flows from {objectives.targets[0].label!r} to the input.")
        with backward_pass(objectives.model):
            (parameters.grad,) = torch.autograd.grad(loss, leaf)
        optimiser.step()
        curve.append(scores.detach())
    with torch.no_grad():
        images = canvas.laid_out(canvas.draw(parameters)).contiguous()
        score = objectives(images, groups)[0]
        ends = []
        for state in (parameters, first):
            fresh = [torch.Generator().manual_seed(2**31 + seed + copy) for _, copy in rows]
            drawn = canvas.draw(state)
            seen = [canvas.laid_out(plan.transforms(drawn, fresh, places, span)) for _ in range(FRESH)]
            ends.append(torch.stack([objectives(x, groups)[0] for x in seen]).mean(dim=0))
    return images, torch.stack(curve, dim=1), score, ends[0], ends[1]
