"""Integrated gradients: gradients gathered on the straight path from a baseline to the input."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring, warn_of_zeros
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .completeness import Done, Quadrature, Steps, quadrature as points_of, scores_at, until_complete, wide


@method(
    family="path",
    passes="50 gradients or more (steps, until it is complete)",
    needs="a baseline",
    source="Sundararajan, Taly & Yan 2017",
)
def integrated_gradients(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baseline: Baseline = "zero",
    steps: int = 50,
    tolerance: float = 0.05,
    max_steps: int = 200,
    quadrature: Quadrature = "gausslegendre",
    multiply_by_inputs: bool = True,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Integrate the gradient of the score from a baseline x' to the input x; the values sum to S(x) - S(x').

    IG_i = (x_i - x'_i) * integral over a in 0..1 of dS/dx_i at x' + a (x - x') (Sundararajan, Taly & Yan 2017, eq. 1),
    by a rule of quadrature. The distance of the sum from S(x) - S(x') is reported; samples beyond the tolerance
    get twice the steps until they meet it.

    Args:
        steps: number of gradients along the path, at first.

    Returns:
        ... Its checks are the relative `"completeness gap"` and the `"steps"` of each sample.

    Warns:
        UserWarning: when the tolerance is not reached, or the values of a sample are zero everywhere.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> result = integrated_gradients(net, torch.ones(1, 2))
        >>> bool(torch.isclose(result.tensor.sum(), net.weight.sum()))
        True
    """
    path = Steps(steps, tolerance, max_steps)
    points_of(steps, quadrature)
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        starts, label = baselines(scorer, baseline)
        baseline_score = scores_at(scorer, starts, batch)

        def integrate(rows: torch.Tensor, count: int, done: Done) -> Leaves:
            weighted = points_of(count, quadrature)
            return _integrate(scorer, ends, starts, rows, weighted, batch, done, multiply_by_inputs)

        values, checks = until_complete(
            "integrated_gradients", scorer.rows, integrate, ends, score, baseline_score, path, batch,
            None if multiply_by_inputs else {name: end - starts[name] for name, end in ends.items()},
        )  # fmt: skip
        warn_of_zeros(values, "integrated_gradients")
        return scorer.attribution(
            {name: value.to(ends[name].dtype) for name, value in values.items()},
            method="integrated_gradients",
            settings={
                "baseline": label,
                **dataclasses.asdict(path),
                "quadrature": quadrature,
                "multiply_by_inputs": multiply_by_inputs,
                "batch_size": batch,
            },
            score=score,
            units="score" if multiply_by_inputs else "score per unit of input",
            checks=checks,
        )


def _integrate(
    scorer: Scorer,
    ends: Leaves,
    starts: Leaves,
    rows: torch.Tensor,
    weighted: tuple[torch.Tensor, torch.Tensor],
    batch: int,
    done: Done,
    multiply: bool,
) -> dict[str, torch.Tensor]:
    """Integrated gradients of the samples `rows`, at most `batch` points in one pass; float32 or wider.

    `weighted` are the points and weights of the integral, `multiply` whether it is multiplied by x - x'.
    """
    spans = {name: end[rows] - starts[name][rows] for name, end in ends.items()}
    totals = {name: torch.zeros_like(span, dtype=wide(span)) for name, span in spans.items()}
    together = max(1, batch // len(rows))
    for fractions, shares in zip(*(torch.split(part, together) for part in weighted), strict=True):
        points = {}
        for name, span in spans.items():
            part = fractions.to(span).reshape(-1, *[1] * span.ndim)
            points[name] = (starts[name][rows] + part * span).flatten(0, 1)
        _, slopes = gradients(scorer, points, rows.repeat(len(shares)))
        for name, total in totals.items():
            each = slopes[name].to(total.dtype).reshape(len(shares), -1)
            total += (shares.to(each) @ each).reshape(total.shape)
        done(len(rows) * len(shares))
    return {name: total * spans[name] for name, total in totals.items()} if multiply else totals
