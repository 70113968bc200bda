"""Metrics that remove parts of an input, against closed forms and loops in float64."""

import itertools

import pytest
import torch
from torch import nn

from layerlens.analyzers.common.statistics import pearson
from layerlens.demo import embedded
from layerlens.errors import InputError, OptionError, TargetError
from layerlens.faithfulness import (
    METRICS,
    completeness,
    complexity,
    evaluate,
    faithfulness_correlation,
    faithfulness_estimate,
    irof,
    monotonicity,
    monotonicity_correlation,
    non_sensitivity,
    region_perturbation,
    sensitivity_n,
)
from tests.cases import CASES, double, normal
from tests.snapshot import Snapshot

OF_PARTS = (
    "faithfulness_correlation", "faithfulness_estimate", "sensitivity_n", "monotonicity", "monotonicity_correlation",
    "completeness", "non_sensitivity", "region_perturbation", "irof", "complexity",
)  # fmt: skip


def linear():
    model = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(normal(1, 8, seed=3).double())
        model.weight[0, 2] = 0
    x = normal(3, 8, seed=4).double()
    return model, x, (x * model.weight).detach()


def tanh():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def test_the_map_of_a_linear_model_is_right_and_its_opposite_is_not():
    model, x, parts = linear()
    one = torch.ones(3).double()
    for metric in (faithfulness_correlation, faithfulness_estimate):
        torch.testing.assert_close(metric(model, x, parts, target=0), one)
        torch.testing.assert_close(metric(model, x, -parts, target=0), -one)
    curve = sensitivity_n(model, x, parts, target=0, samples=20)
    torch.testing.assert_close(curve.scores, torch.ones_like(curve.scores))
    assert curve.units == "correlation" and curve.plot() is not None
    assert completeness(model, x, parts, target=0).max() < 1e-12
    torch.testing.assert_close(completeness(model, x, 2 * parts, target=0), parts.sum(dim=1).abs())
    torch.testing.assert_close(completeness(model, x, parts, target=0, fill=1.0), model.weight.sum().abs().expand(3))
    assert non_sensitivity(model, x, parts, target=0).tolist() == [0, 0, 0]
    assert non_sensitivity(model, x, parts.flip(1), target=0).tolist() == [2, 2, 2]
    size = model.weight.detach().abs().expand(3, 8)  # what is drawn again matters by its weight, whatever x is
    assert bool((monotonicity_correlation(model, x, size, target=0) > 0.7).all())
    for metric in (faithfulness_correlation, faithfulness_estimate):
        assert bool((metric(model, x, normal(3, 8, seed=9), target=0).abs() < 0.9).all())


def test_correlations_are_those_of_loops_over_all_subsets():
    model, x, values = tanh(), normal(2, 24).double(), normal(2, 24, seed=5).double()
    values[:, 6:] = 0
    labels = torch.arange(24).clamp_max(6).where(torch.arange(24) < 6, torch.tensor(-1)).reshape(1, 24)
    for size in (1, 2):
        subsets = list(itertools.combinations(range(6), size))
        falls = torch.zeros(2, len(subsets)).double()
        for place, subset in enumerate(subsets):
            without = x.clone()
            without[:, list(subset)] = 0.5
            falls[:, place] = (model(x) - model(without)).detach()[:, 1]
        sums = torch.stack([values[:, list(subset)].sum(dim=1) for subset in subsets], dim=1)
        options = {"target": 1, "fill": 0.5, "measure": "score", "features": labels}
        expected = pearson(sums, falls)
        found = faithfulness_correlation(model, x, values, subset_size=size, samples=600, **options)
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
        if size == 1:
            torch.testing.assert_close(faithfulness_estimate(model, x, values, **options), expected)
        curve = sensitivity_n(model, x, values, shares=(size / 6,), samples=600, **options)
        torch.testing.assert_close(curve.scores[:, 0], expected, atol=0.05, rtol=0)


def test_regions_by_loops():
    model, x, values = tanh(), normal(2, 1, 4, 6).double(), normal(2, 1, 4, 6, seed=5).double()
    falls, shares = torch.zeros(2).double(), torch.zeros(2).double()
    halves = torch.arange(4).reshape(1, 1, 4, 1) // 2 * 2 + torch.arange(6).reshape(1, 1, 1, 6) // 4  # of unequal size
    for row in range(2):
        first = model(x[row : row + 1]).softmax(dim=1)[0, 2].detach()
        patches = [(slice(i, i + 2), slice(j, j + 2)) for i in (0, 2) for j in (0, 2, 4)]
        patches.sort(key=lambda patch, row=row: -float(values[row, 0][patch].sum()))
        without = x[row : row + 1].clone()
        for patch in patches[:4]:
            without[0, 0][patch] = 0
            falls[row] += (first - model(without).softmax(dim=1)[0, 2].detach()) / 5
        order = sorted(range(4), key=lambda part, row=row: -float(values[row, 0][halves[0, 0] == part].mean()))
        without, curve = x[row : row + 1].clone(), [1.0]
        for part in order:
            without[0, 0][halves[0, 0] == part] = 0
            curve.append(float(model(without).softmax(dim=1)[0, 2].detach() / first))
        shares[row] = 1 - torch.trapezoid(torch.tensor(curve).double()) / 4
    found = region_perturbation(model, x, values, target=2, patch_size=2, regions=4)
    torch.testing.assert_close(found, falls)
    torch.testing.assert_close(
        irof(model, x, values, target=2, features=halves, fill="zero"), shares, atol=1e-6, rtol=0
    )
    with pytest.raises(TargetError, match=r"irof divides by the score of x.* above 0"):
        irof(nn.Sequential(nn.Flatten(), nn.Linear(24, 1)), -x.float(), values, target=lambda out: out[:, 0] * 0 - 1)


def test_monotonicity_and_complexity_by_hand():
    model, x, parts = linear()
    order = parts.argsort(dim=1)
    fine = monotonicity(model, x, parts, target=0)
    for row in range(3):
        taken = parts[row, order[row]][1:]  # from the first one put in
        assert bool(fine[row]) == bool((taken >= 0).all())
    positive = parts.abs() / model.weight.detach().where(model.weight != 0, torch.ones(1).double())
    assert monotonicity(model, positive, parts.abs(), target=0).tolist() == [1, 1, 1]
    share = parts.abs() / parts.abs().sum(dim=1, keepdim=True)
    expected = -(share * share.clamp_min(1e-300).log()).sum(dim=1)
    torch.testing.assert_close(complexity(parts), expected)
    both = {"a": parts[:, :3], "b": parts[:, 3:]}
    torch.testing.assert_close(complexity(both), expected)
    assert complexity(torch.zeros(1, 4)).tolist() == [pytest.approx(torch.tensor(4.0).log().item())]


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "tokens", "lstm", "two_inputs", pytest.param("hf_bert", marks=pytest.mark.slow)]
)
def test_a_leaderboard_of_every_kind_of_input(name):
    if name == "tokens":
        model, x = (
            nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3)).double(),
            torch.arange(10).reshape(2, 5) % 9,
        )
    else:
        model, x = CASES[name].build().double().eval(), double(CASES[name].example())
    before = Snapshot(model, x)
    board = evaluate(model, x, ["input_x_gradient"], target=[0, 1], metrics=OF_PARTS, fills=("zero",))
    before.check()
    assert bool(board.values.isfinite().all()) and len(board.metrics) == len(OF_PARTS)
    assert "random" in board.methods and all(name in METRICS for name in OF_PARTS)


def test_a_good_map_is_above_the_random_one():
    model, x = tanh(), normal(12, 24).double()
    metrics = [name for name in OF_PARTS if name not in ("complexity", "monotonicity")]
    methods = ["integrated_gradients"]
    board = evaluate(model, x, methods, metrics=metrics, fills=("zero",), measure="score")
    for place, (column, higher) in enumerate(zip(board.metrics, board.higher, strict=True)):
        mean = board.values[:, place].mean(dim=1)
        good, random = mean[board.methods.index(methods[0])], mean[board.methods.index("random")]
        assert (good > random) == higher or column == "non_sensitivity", (column, good, random)


@pytest.mark.slow
def test_on_digits_a_good_map_is_above_the_random_one():
    images, labels, _ = embedded.sample_pictures()
    x, target = images[:6], labels[:6].tolist()
    metrics = [name for name in OF_PARTS if name not in ("complexity", "monotonicity", "completeness")]
    metrics += ["random_logit", "smooth_mprt", "efficient_mprt"]
    model, methods = embedded.load_digit_net(), ["input_x_gradient"]
    board = evaluate(model, x, methods, target=target, metrics=metrics, fills=("mean",))
    for place, (column, higher) in enumerate(zip(board.metrics, board.higher, strict=True)):
        mean = board.values[:, place].mean(dim=1)
        good, random = (float(mean[board.methods.index(name)]) for name in (methods[0], "random"))
        assert (good > random) == higher or column == "non_sensitivity", (column, good, random)
        if column.startswith(("faithfulness", "sensitivity", "monotonicity")):
            assert abs(random) < 0.2 < good, (column, good, random)


def test_what_does_not_fit_is_said():
    model, x, parts = linear()
    with pytest.raises(OptionError, match="subset_size must be below the number of features, got 8 of 8"):
        faithfulness_correlation(model, x, parts, target=0, subset_size=8)
    with pytest.raises(OptionError, match="shares lie above 0 and below 1"):
        sensitivity_n(model, x, parts, target=0, shares=(1.0,))
    with pytest.raises(InputError, match="faithfulness_estimate compares features, and sample 0 has 1"):
        faithfulness_estimate(model, x, parts, target=0, features=torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(OptionError, match="eps must be at least 0 and below 1"):
        non_sensitivity(model, x, parts, target=0, eps=1)
    with pytest.raises(OptionError, match="patch_size must be a whole number"):
        region_perturbation(model, x, parts, target=0, patch_size=0)
