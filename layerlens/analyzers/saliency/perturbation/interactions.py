"""Interactions: what several features give together, beyond what each gives by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline
from layerlens.analyzers.common.features.column_groups import column_names, is_groups
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec
from layerlens.analyzers.common.features.references import Baselines
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import Scorer
from layerlens.errors import InputError, OptionError, check_count, check_seed, choose, need
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.inputs.sequences import sequences
from layerlens.results import Matrix, Ranking
from layerlens.signatures import public
from layerlens.targets.target import Spec
from layerlens.targets.tokens import place_names

from .game import Game, feature_game
from .interaction_sampling import PARTS, least_budget, sampled_interactions

Index = Literal["k-SII", "SII", "STII", "FSII"]
INDICES = ("k-SII", "SII", "STII", "FSII")

Parts = dict[tuple[int, ...], float]
"""A number by group of features."""

EXPLANATION = (
    "Off the diagonal: what two features give together beyond what each gives by itself; on it: what one gives alone.",
    "They hold for this sample and baseline, and say that features interact in the model, not in the world.",
)
SAMPLED = "They are estimated from a sample of coalitions: .error is their standard error over the draws."


@public
def interactions(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    features: FeatureSpec = None,
    order: int = 2,
    index: Index = "k-SII",
    budget: int = 4096,
    until: float | None = None,
    baseline: Baseline = "zero",
    baselines: Baselines = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
    tokenizer: Callable[..., Any] | None = None,
) -> Matrix | Ranking:
    """Divide the score of one sample among its features, and among the pairs or larger groups that interact.

    The score of every coalition of features, with the others at the baseline, is a game; shapiq computes its
    interaction index exactly where all 2^d coalitions fit in `budget`. Otherwise a polynomial of features and groups is
    fitted to a sample of coalitions, and what it leaves is estimated by strata of the size of a coalition, as in
    SVARM-IQ (Kolpaczki et al. 2024). On a network of 10 columns pairs have a ninth of the error of shapiq's SVARM-IQ at
    a third of the coalitions; on products of up to 12 columns, far from a polynomial of pairs, 1.3 times its error.

    - `"k-SII"`: Shapley interactions whose sum is S(x) - S(baseline) (Bordt & von Luxburg 2023).
    - `"SII"`: Shapley interactions (Grabisch & Roubens 1999): mean over contexts of S(ij) - S(i) - S(j) + S().
    - `"STII"`: Shapley-Taylor interactions (Sundararajan et al. 2020): pairs get all that goes beyond single ones.
    - `"FSII"`: the additive model of features and pairs that fits all coalitions best (Tsai et al. 2023).

    Cost: `budget` forward passes, or 2^d if these are fewer. It needs `pip install 'layerlens-torch[interactions]'`.

    Args:
        x: ... It holds one sample.
        features: what is kept and removed together, see `features` of `kernel_shap`; groups of columns take names.
        order: largest number of features in a group; above 2 the result is a `Ranking` of groups.
        index: how the score is divided.
        budget: most coalitions that are evaluated.
        until: draw in rounds until the 90 % interval of every value reaches at most this share of the largest absolute
            value to either side; the most coalitions are `budget`. None: all at once.
        baseline: what removed values become, see `baseline` in `integrated_gradients`.
        baselines: several baselines over which the score is averaged.
        tokenizer: names tokens by their position and what they read, `"3 Italy"`; None for `"token 3"`.

    Returns:
        A symmetric `Matrix` (features, features), with what each feature gives alone on the diagonal. Its check
        `"efficiency gap"` is the difference of all parts and S(x) - S(baseline), relative to that. Values from a sample
        have their standard error over the draws, `.interval(0.9)` and `.settled(0.9)`; a `Ranking` has `.error` and
        `.degrees`.

    Raises:
        InputError: if x holds more than one sample.
        OptionError: if an option is out of range, there are fewer features than `order`, or the budget is too small.
        MissingPackage: if shapiq is not installed.

    Source: Muschalik et al. 2024, "shapiq: Shapley interactions for machine learning".

    Example:
        >>> class Products(nn.Module):
        ...     def forward(self, x):
        ...         return (x[:, 0] * x[:, 1] + 2 * x[:, 2])[:, None]
        >>> interactions(Products(), torch.tensor([[2.0, 3.0, 1.0]]), target=0).values.round().tolist()
        [[0.0, 6.0, 0.0], [6.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
    """
    choose("index of interactions", index, INDICES)
    check_count("budget", budget)
    check_seed(seed)
    if isinstance(order, bool) or not isinstance(order, int) or order < 2:
        raise OptionError(
            f"order must be a whole number of at least 2, got {order!r}; for single features: kernel_shap."
        )
    inputs = as_inputs(x)
    if inputs.batch != 1:
        raise InputError(f"interactions explains one sample at a time; the input holds {inputs.batch}: give x[:1].")
    words = {str(one): place_names(tokenizer, one.ids) for one in sequences(inputs)} if tokenizer is not None else {}
    shapiq = need("shapiq", "interactions", "interactions")
    with feature_game(model, x, target, None, features, baseline, batch_size, forward, baselines) as game:
        ((_, columns, own),) = game.features.groups(1)
        names = feature_names(game.scorer, game.features, features, words)
        names = tuple(names[column] for column in columns.tolist())
        game = Game(game.scorer, game.coalitions, own)
        rounds = Rounds("interactions", "budget", budget, until, first=least_budget(game.count, order))
        found, errors = _parts(shapiq, game, order, index, rounds, seed)
        change = float(game.coalitions.score[0].double() - game.coalitions.baseline_scores()[0].double())
    gap = abs(sum(found.values()) - change) / max(abs(change), 1e-12)
    exact = not errors
    method = f"{index}, {'exact' if exact else 'sampled'}"
    settings = {
        "target": game.scorer.target.label,
        "order": order,
        "index": index,
        "coalitions": 2 ** len(names) if exact else rounds.count,
        "until": until,
        "seed": None if exact else seed,
        **game.coalitions.reference(),
    }
    checks = rounds.checks({} if index == "SII" else {"efficiency gap": torch.tensor([gap], dtype=torch.float64)})
    explanation = EXPLANATION if exact else (EXPLANATION[0], f"{EXPLANATION[1]} {SAMPLED}")
    quantity = f"interaction for {game.scorer.target.label}"
    common: dict[str, Any] = {
        "units": "score",
        "signed": True,
        "method": method,
        "settings": settings,
        "degrees": None if exact else PARTS - 1,
        "checks": checks,
        "explanation": explanation,
    }
    if order > 2:
        items = tuple(" x ".join(names[one] for one in group) for group in found)
        return Ranking(quantity, items, _numbers(found), error=None if exact else _numbers(errors), **common)
    values, of_errors = (_square(one, len(names)) for one in (found, errors))
    axes = ("feature", "feature")
    return Matrix(quantity, names, names, values, axes, error=None if exact else of_errors, **common)


def _numbers(parts: Parts) -> torch.Tensor:
    """What each group has, `(groups,)`."""
    return torch.tensor(list(parts.values()), dtype=torch.float64)


def _square(parts: Parts, count: int) -> torch.Tensor:
    """What each pair has, `(features, features)`, with single features on the diagonal."""
    values = torch.zeros(count, count, dtype=torch.float64)
    for group, value in parts.items():
        values[group[0], group[-1]] = values[group[-1], group[0]] = value
    return values


def _parts(shapiq: Any, game: Game, order: int, index: Index, rounds: Rounds, seed: int) -> tuple[Parts, Parts]:
    """Return what each group of up to `order` features gets, and its standard error; none where values are exact.

    Raises:
        OptionError: when there are too few features, or the budget is too small to estimate all groups.
    """
    count, budget = game.count, rounds.most
    if count < order:
        raise OptionError(f"order={order} needs at least so many features; there are {count}.")
    groups = [group for size in range(1, order + 1) for group in itertools.combinations(range(count), size)]
    least = least_budget(count, order)
    exact = 2**count <= budget
    if not exact and budget < least:
        raise OptionError(
            f"budget={budget} coalitions for {len(groups):,} groups of up to {order} of {count} features; give "
            f"budget={least} or more, or fewer features=."
        )
    nothing = game.coalitions.baseline_scores()[0].double().cpu()

    def scores(keep: torch.Tensor) -> torch.Tensor:
        return game.scores(keep.float(), "interactions")[:, 0].double().cpu() - nothing

    if exact:
        found = shapiq.ExactComputer(lambda keep: scores(torch.from_numpy(keep)).numpy(), count)(index, order)
        return {group: float(found[group]) for group in groups}, {}
    values, errors = sampled_interactions(scores, count, groups, index, rounds, seed)
    of_values, of_errors = (dict(zip(groups, one.tolist(), strict=True)) for one in (values, errors))
    return of_values, of_errors


def feature_names(
    scorer: Scorer, features: Features, spec: FeatureSpec, words: Mapping[str, Sequence[str] | None]
) -> tuple[str, ...]:
    """Return the names of the features: groups and columns by their own, others by kind and number.

    Args:
        scorer: the score.
        features: the features.
        spec: how they were given.
        words: what each token reads, by name of the input.
    """
    if isinstance(spec, Mapping) and is_groups(spec):
        return tuple(map(str, spec))
    names: list[str] = []
    for name, leaf in scorer.leaves.items():
        known: Sequence[str] = ()
        if spec in (None, "places") and leaf.layer is not None:
            known = [f"{place} {word.strip()}".strip() for place, word in enumerate(words.get(name) or ())]
        elif spec in (None, "values") and leaf.value.ndim == 2:
            known = column_names(scorer, name)
        kind = "token" if leaf.layer is not None else "" if leaf.value.ndim == 2 else "feature"
        own = int(features.labels[name].max()) + 1 - len(names)
        prefix = f"{name}: " if len(scorer.leaves) > 1 else ""
        numbered = [f"{prefix}{kind} {number}".strip() for number in range(own)]
        names += [f"{prefix}{one}" for one in known] if len(known) == own else numbered
    return tuple(names)
