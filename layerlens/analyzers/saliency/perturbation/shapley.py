"""Shapley values by sampling orders of the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import warn_of_zeros
from layerlens.errors import OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .run_and_check import efficiency_gap, game, mean_and_error, settled


@method(
    family="perturbation",
    passes="26 forward passes a feature (permutations)",
    needs="a baseline",
    source="Castro, Gomez & Tejada 2009; Strumbelj & Kononenko 2010",
)
def shapley_sampling(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    baseline: Any = "zero",
    permutations: int = 26,
    tolerance: float | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
) -> Attribution:
    """Shapley values: a feature's mean contribution when features join one by one in random order.

    phi_j = mean over orders of S(those before j and j) - S(those before j) (Castro et al. 2009, eq. 4). Orders are
    drawn in pairs, one the reverse of the other, which cancels part of the noise (Mitchell et al. 2022, sec. 4.1). The
    values of each order sum to S(x) - S(baseline) exactly.

    Args:
        model: any module.
        x: its input, `(batch, ...)`.
        target: what to score, as in `layerlens.as_target`; None is the predicted class.
        where: None for the input, or a layer, or a call of one (`"rnn#1"`), whose output is attributed to.
        features: as in `feature_ablation`.
        baseline: what replaces a feature that has not joined, as in `integrated_gradients`.
        permutations: orders, at most; the same for all samples.
        tolerance: stop when every standard error is below this share of the sample's largest value; None for never.
        seed: of the orders.
        batch_size: rows in one forward pass.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` shaped like the input, in units of the score, with its standard error over pairs of orders;
        every value of a feature gets the feature's number. Its check is the relative `"efficiency gap"`.

    Raises:
        OptionError: when an option is out of range, or features or baseline do not fit the input.
        TargetError: when the target does not fit the output.

    Warns:
        UserWarning: when the values of a sample are zero everywhere.

    Example:
        >>> class Product(nn.Module):
        ...     def forward(self, x):
        ...         return x.prod(dim=1, keepdim=True)
        >>> shapley_sampling(Product(), torch.tensor([[2.0, 3.0]]), target=0).tensor
        tensor([[3., 3.]])
    """
    check_count("permutations", permutations)
    check_seed(seed)
    if tolerance is not None and not tolerance > 0:
        raise OptionError(f"tolerance must be above 0 or None, got {tolerance!r}.")
    with game(model, x, target, where, features, baseline, batch_size, forward) as own:
        count, generator = own.count, torch.Generator().manual_seed(seed)
        bottom = own.coalitions.bottom()
        found: list[torch.Tensor] = []  # one (batch, features) for each pair of orders
        used = 0
        values, error = torch.zeros(0), None
        for _ in track(range((permutations + 1) // 2), "Shapley sampling"):
            order = torch.randperm(count, generator=generator)
            orders = [order, order.flip(0)][: min(2, permutations - used)]
            one = torch.stack([_marginals(own, order, bottom) for order in orders])
            found.append(one.mean(dim=0))
            used += len(orders)
            values, error = mean_and_error(torch.stack(found))
            if settled(error, values, tolerance):
                break
        warn_of_zeros({"": values}, "shapley_sampling")
        return own.attribution(
            values,
            method="shapley_sampling",
            settings={"permutations": used, "tolerance": tolerance, "seed": seed},
            error=error,
            checks={"efficiency gap": efficiency_gap(values, own.coalitions.score, bottom)},
        )


def _marginals(own: Any, order: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
    """What each feature adds in one order, `(batch, features)`."""
    count = len(order)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    keep = (rank[None] <= torch.arange(count - 1)[:, None]).float()  # coalition k holds the first k + 1 features
    inner = own.coalitions.features(own.features, keep, "", progress=False) if count > 1 else bottom[None][:0]
    path = torch.cat([bottom[None], inner, own.coalitions.score[None]])  # (features + 1, batch)
    steps = (path[1:] - path[:-1]).double()
    return steps[rank.to(steps.device)].T
