"""Expected gradients (GradientSHAP): integrated gradients from baselines drawn at random."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.references import Baselines, references
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, gradients, scoring, warn_of_zeros
from layerlens.errors import check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from ..gradient.noise import SHARE, Deviations, noise_scales, noisy_copies
from .completeness import completeness_gap


@method(
    family="path",
    passes="64 gradients (samples), 1 forward pass a reference",
    needs="references (noise when none are given)",
    source="Lundberg & Lee 2017; Erion et al. 2021",
    by_lengths=True,
)
def gradient_shap(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baselines: Baselines = None,
    samples: int = 64,
    stdevs: Deviations = 0.0,
    multiply_by_inputs: bool = True,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Average integrated gradients over references x', by random points; the values sum to S(x) - E[S(x')].

    E over x' and a of (x_i - x'_i) dS/dx_i at x' + a (x - x'), a uniform in 0..1 (Erion et al. 2021, eq. 3). Every
    reference gets equally many points, one in each of equal parts of the path: the same expectation as with independent
    draws, with a smaller error. `captum.attr.GradientShap` draws both independently, and runs all samples in one pass.

    Args:
        samples: number of points for each sample of the batch, rounded up to a multiple of the references.

    Returns:
        ... It has the standard error of its values (not for token ids): of one reference from second differences along
        the path, of several from all points as if independent, which is too large; its check is the relative
        `"completeness gap"`.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> gradient_shap(net, torch.tensor([[2.0, 5.0]]), baselines=torch.tensor([[1.0, 1.0], [1.0, 3.0]])).tensor
        tensor([[ 3., -3.]])
    """
    check_count("samples", samples)
    check_seed(seed)
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        ends = scorer.values()
        score, batch = first_score(scorer, ends, batch_size)
        starts, label = references(scorer, baselines, seed)
        each = -(-samples // len(starts))
        generator = torch.Generator().manual_seed(seed)
        points = (torch.arange(each) + torch.rand(len(starts), each, generator=generator, dtype=torch.float64)) / each
        scales = noise_scales("gradient_shap", scorer, ends, SHARE, 0.0 if stdevs is None else stdevs)
        noisy = any(bool(scale.any()) for scale in scales.values())
        total = {name: torch.zeros_like(end, dtype=torch.float64) for name, end in ends.items()}
        products = {name: torch.zeros_like(part) for name, part in total.items()}
        squares = {name: torch.zeros_like(part) for name, part in total.items()}
        even = len(starts) == 1 and each > 2  # one path of evenly spread points
        baseline_score = torch.zeros(len(scorer.rows), dtype=torch.float64, device=scorer.rows.device)
        end_score = torch.zeros_like(baseline_score)
        for rows in torch.split(scorer.rows, batch):
            generator = torch.Generator().manual_seed(seed ^ 1)  # other bits than those of the points
            together = max(1, batch // len(rows))
            for own in torch.split(torch.arange(len(starts)), together):
                values = {name: part.flatten(0, 1) for name, part in _stacked(starts, own, rows).items()}
                with torch.no_grad():
                    scores = scorer(values, rows.repeat(len(own)))
                baseline_score[rows] += scores.double().reshape(len(own), len(rows)).sum(dim=0) / len(starts)
            before: dict[str, torch.Tensor] = {}
            for own in track(torch.split(torch.arange(points.numel()), together), "gradient_shap"):
                tops = {name: end[rows].repeat(len(own), *[1] * (end.ndim - 1)) for name, end in ends.items()}
                if noisy:
                    tops = noisy_copies(ends, scales, rows, len(own), generator)
                    with torch.no_grad():
                        scores = scorer(tops, rows.repeat(len(own)))
                    end_score[rows] += scores.double().reshape(len(own), len(rows)).sum(dim=0)
                slopes, spans = _gradients(scorer, tops, starts, rows, own // each, points.flatten()[own])
                last: dict[str, torch.Tensor] = {}
                for name, slope in slopes.items():
                    product = slope * spans[name]
                    part = product if multiply_by_inputs else slope
                    total[name][rows] += part.sum(dim=0)
                    if even:
                        part = torch.cat([before[name], part]) if before else part
                        squares[name][rows] += part.diff(n=2, dim=0).square().sum(dim=0) / 6
                    else:
                        squares[name][rows] += part.square().sum(dim=0)
                    last[name] = part[-2:]
                    if not multiply_by_inputs:
                        products[name][rows] += product.sum(dim=0)
                before = last
        count = each * len(starts)
        means = {name: part / count for name, part in total.items()}
        errors = {
            name: (squares[name] / (each - 2) / each).sqrt()
            if even
            else ((squares[name] / count - mean.square()).clamp_min(0) / max(1, count - 1)).sqrt()
            for name, mean in means.items()
        }
        complete = means if multiply_by_inputs else {name: part / count for name, part in products.items()}
        gap = completeness_gap(complete, end_score / count if noisy else score, baseline_score)
        warn_of_zeros(means, "gradient_shap")
        return scorer.attribution(
            {name: part.to(ends[name].dtype) for name, part in means.items()},
            method="gradient_shap",
            settings={
                "baselines": label,
                "samples": count,
                "stdevs": stdevs,
                "multiply_by_inputs": multiply_by_inputs,
                "seed": seed,
                "batch_size": batch,
            },
            score=score,
            units="score" if multiply_by_inputs else "score per unit of input",
            checks={"completeness gap": gap},
            standard_error=errors if count > 1 and all(leaf.layer is None for leaf in scorer.leaves.values()) else None,
            degrees=count - 1,
        )


def _stacked(starts: list[Leaves], chosen: torch.Tensor, rows: torch.Tensor) -> Leaves:
    """The samples `rows` of the chosen references, `(chosen, rows, ...)` by leaf."""
    return {name: torch.stack([starts[place][name][rows] for place in chosen.tolist()]) for name in starts[0]}


def _gradients(
    scorer: Scorer,
    tops: Leaves,
    starts: list[Leaves],
    rows: torch.Tensor,
    chosen: torch.Tensor,
    fractions: torch.Tensor,
) -> tuple[Leaves, Leaves]:
    """dS/dx at points and x - x', each on the path from its reference, `(points, rows, ...)` by leaf, in float64."""
    wide = {name: start.double() for name, start in _stacked(starts, chosen, rows).items()}
    tall = {name: top.double().reshape(wide[name].shape) for name, top in tops.items()}
    mixed = {}
    for name, end in tall.items():
        own = fractions.to(end.device).reshape(-1, *[1] * (end.ndim - 1))
        mixed[name] = torch.lerp(wide[name], end, own).flatten(0, 1).to(tops[name].dtype)
    slopes = gradients(scorer, mixed, rows.repeat(len(fractions)))[1]
    return (
        {name: slope.double().reshape(wide[name].shape) for name, slope in slopes.items()},
        {name: end - wide[name] for name, end in tall.items()},
    )
