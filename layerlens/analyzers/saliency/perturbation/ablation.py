"""Feature ablation and feature permutation: what the score loses when one feature is removed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.input_features import Spec as FeatureSpec, features_of
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import scoring, warn_of_zeros
from layerlens.errors import InputError, OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import seed_torch
from layerlens.model.layers import Selection
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .game import Game, feature_game, mean_and_error


@method(family="perturbation", passes="1 forward pass a feature", needs="a baseline", source="Zeiler & Fergus 2014")
def feature_ablation(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    baseline: Baseline = "zero",
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Measure what the score loses when one feature is replaced by the baseline: S(x) - S(x without it).

    Every value of a feature gets the feature's number. The model needs no gradient.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> feature_ablation(net, torch.tensor([[2.0, 5.0]])).tensor
        tensor([[ 6., -5.]])
    """
    with feature_game(model, x, target, where, features, baseline, batch_size, forward) as game:
        values = game.coalitions.score - game.scores(1 - torch.eye(game.count), "feature ablation")  # (features, batch)
        warn_of_zeros({"": values.T}, "feature_ablation")
        return game.attribution(values.T, method="feature_ablation", settings={})


@method(
    family="perturbation", passes="10 forward passes a feature (draws)", needs="several samples", source="Breiman 2001"
)
def permutation(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    where: Selection = None,
    features: FeatureSpec = None,
    perm_func: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    draws: int = 10,
    until: float | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Measure what the score loses when one feature comes from another sample of the batch, mean over draws.

    S(x) - S(x with feature j of x'), x' another sample drawn independently (Breiman 2001, sec. 10, by
    sample and not by data set). Values stay among those that occur, but not their combinations.

    Args:
        x: ... It has two samples or more.
        perm_func: makes the batch that features are taken from instead, as in captum: from an input `(batch, ...)` and
            a mask of True `(1, ...)` to values shaped like it; called once a draw.
        draws: number of draws of the other sample.

    Returns:
        ... It has its standard error over draws.

    Raises:
        InputError: when there is one sample only.

    Warns:
        UserWarning: when the values of a sample are zero everywhere, as where all samples are the same.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
        >>> permutation(net, torch.tensor([[0.0, 1.0], [2.0, 3.0]])).tensor
        tensor([[-2.,  0.],
                [ 2.,  0.]])
    """
    check_count("draws", draws)
    check_seed(seed)
    with scoring(model, x, target, where=where, forward=forward, grad=False) as scorer:
        if perm_func is not None:
            seed_torch(seed)
        batch = len(scorer.rows)
        if batch < 2:
            other = "samples with as many tokens" if scorer.padding else "samples"
            raise InputError(f"permutation takes features from other {other}; give a batch of two or more.")
        game = Game(scorer, Coalitions(scorer, "zero", batch_size), features_of(scorer, features))
        generator = torch.Generator().manual_seed(seed)
        shifts = torch.randint(1, batch, (draws, batch), generator=generator)
        keep = 1 - torch.eye(game.count)
        drops: list[torch.Tensor] = []
        rounds = Rounds("permutation", "draws", draws, until, first=10)
        for most in rounds:
            for shift in track(shifts[len(drops) : most], "permutation"):
                others = ((torch.arange(batch) + shift) % batch).to(scorer.rows.device)
                game.coalitions.starts = {
                    name: leaf.value[others] if perm_func is None else _permuted(perm_func, leaf.value)
                    for name, leaf in scorer.leaves.items()
                }
                drops.append(game.coalitions.score - game.coalitions.features(game.features, keep, "", progress=False))
            values, error = mean_and_error(torch.stack(drops))  # (features, batch)
            rounds.look({"": values.T}, None if error is None else {"": error.T}, most - 1)
        warn_of_zeros({"": values.T}, "permutation")
        game.coalitions.label = "other samples" if perm_func is None else getattr(perm_func, "__name__", "perm_func")
        return game.attribution(
            values.T,
            method="permutation",
            settings={**rounds.settings, "seed": seed},
            error=None if error is None else error.T,
            degrees=rounds.count - 1,
            checks=rounds.checks(),
        )


def _permuted(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    """A batch as a function of the user changes it.

    Raises:
        OptionError: when it returns something else.
    """
    found = function(value.clone(), torch.ones_like(value[:1], dtype=torch.bool))
    if not isinstance(found, torch.Tensor) or found.shape != value.shape:
        raise OptionError(f"perm_func returned {describe(found)} for {describe(value)}: it must return one like it.")
    return found.to(value)
