"""DeepSHAP: DeepLIFT from several references, averaged."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.references import Baselines, references
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.samples import warn_of_joint_scores
from layerlens.analyzers.common.scorer import scoring, warn_of_zeros
from layerlens.errors import check_seed, choose, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from ..path.completeness import completeness_gap
from .combine import Combine, attributed, check_combine, combine_setting, units_of
from .deep_lift import RULES, compare, missed


@method(
    family="path",
    passes="1 gradient and 1 forward pass a reference",
    needs="references (noise when none are given)",
    source="Lundberg & Lee 2017",
    by_lengths=True,
)
def deep_shap(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    baselines: Baselines = None,
    rule: Literal["rescale", "reveal_cancel"] = "rescale",
    multiply_by_inputs: bool = True,
    custom_attribution_func: Combine | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Average DeepLIFT over references x' (Lundberg & Lee 2017, sec. 4.2); it sums to S(x) - E[S(x')].

    Args:
        rule: rule of nonlinearities, as in `deep_lift`.

    Returns:
        ... It has the standard error over references, as a sample of those there could be; its check is the relative
        `"completeness gap"`.

    Warns:
        UserWarning: as `deep_lift`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> deep_shap(net, torch.ones(1, 3), target=1, baselines=torch.zeros(2, 3)).tensor.shape
        torch.Size([1, 3])
    """
    check_seed(seed)
    choose("rule", rule, RULES)
    check_combine(custom_attribution_func, multiply_by_inputs)
    with scoring(model, x, target, where=where, forward=forward) as scorer:
        warn_of_joint_scores(scorer, scorer.start(), "contribution", run=scorer.run)
        scorer.refuse_joint("deep_shap")
        starts, label = references(scorer, baselines, seed)
        comparisons = [compare(scorer, start, rule) for start in track(starts, "deep_shap")]
        ends = scorer.values()
        shown = [
            attributed(one.multipliers, ends, start, one.values, multiply_by_inputs, custom_attribution_func)
            for one, start in zip(comparisons, starts, strict=True)
        ]
        parts = {name: torch.stack([one[name] for one in shown]).double() for name in ends}
        means = {name: part.mean(dim=0) for name, part in parts.items()}
        products = {name: torch.stack([one.values[name] for one in comparisons]).double().mean(dim=0) for name in ends}
        baseline_score = torch.stack([one.baseline_score for one in comparisons]).mean(dim=0)
        gap = completeness_gap(products, comparisons[0].score, baseline_score)
        moved = list(dict.fromkeys(name for one in comparisons for name in one.moved))
        if said := missed("deep_shap", gap, dataclasses.replace(comparisons[0], moved=moved)):
            warn(said)
        warn_of_zeros(means, "deep_shap")
        tokens = [name for name, leaf in scorer.leaves.items() if leaf.layer is not None]
        numbers = {name: part.sum(dim=-1) if name in tokens else part for name, part in parts.items()}
        several = len(comparisons) > 1
        errors = {name: part.std(dim=0) / len(comparisons) ** 0.5 for name, part in numbers.items() if several}
        return scorer.attribution(
            {name: mean.to(scorer.leaves[name].value.dtype) for name, mean in means.items()},
            method="deep_shap",
            settings={
                "baselines": label,
                "rule": rule,
                "multiply_by_inputs": multiply_by_inputs,
                **combine_setting(custom_attribution_func),
                "seed": seed,
            },
            units=units_of(multiply_by_inputs, custom_attribution_func),
            score=comparisons[0].score,
            checks={"completeness gap": gap},
            standard_error=errors if several else None,
            degrees=len(comparisons) - 1,
        )
