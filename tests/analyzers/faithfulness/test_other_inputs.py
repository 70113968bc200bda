"""Metrics that explain again (near inputs, another class, other parameters) against closed forms, in float64."""

import copy

import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import feature_ablation, gradient
from layerlens.errors import InputError, OptionError, TargetError
from layerlens.faithfulness import (
    cascading_randomization,
    efficient_mprt,
    evaluate,
    infidelity,
    local_lipschitz_estimate,
    max_sensitivity,
    random_logit,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
    smooth_mprt,
)
from tests.cases import CASES, double, normal
from tests.snapshot import Snapshot

AGAIN = (
    "max_sensitivity", "local_lipschitz_estimate", "relative_input_stability", "relative_output_stability",
    "relative_representation_stability", "random_logit", "smooth_mprt", "efficient_mprt",
)  # fmt: skip


class Squares(nn.Module):
    """sum w x^2, whose gradient is 2 w x; and a second class."""

    def __init__(self):
        super().__init__()
        self.first = nn.Identity()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]).double())

    def forward(self, x):
        score = (self.weight * self.first(x).square()).sum(dim=1)
        return torch.stack([score, torch.zeros_like(score) - 100], dim=1)


def draws(x, samples, radius, seed=0):
    """Inputs near x, drawn as documented: uniform, the same for all samples, times a share of each range."""
    generator = torch.Generator().manual_seed(seed)
    size = radius * (x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True))
    for _ in range(samples):
        yield x + size * (2 * torch.rand(x.shape[1:], generator=generator, dtype=torch.float64) - 1)


def test_stability_in_closed_form():
    model, x = Squares(), normal(4, 3).double()
    weight = 2 * model.weight.detach()
    near = list(draws(x, 10, 0.02))
    lengths = [(weight * (y - x)).norm(dim=1) / (y - x).norm(dim=1) for y in near]
    found = local_lipschitz_estimate(model, x, "gradient", target=0)
    torch.testing.assert_close(found, torch.stack(lengths).amax(dim=0))
    assert bool((found <= 6).all())
    one = torch.ones(4).double()  # the gradient changes by the same share as the input
    torch.testing.assert_close(relative_input_stability(model, x, "gradient", target=0), one)
    torch.testing.assert_close(relative_representation_stability(model, x, "gradient", target=0, layers="first"), one)
    with torch.no_grad():
        ratios = [((y - x) / x).norm(dim=1) / (model(y) - model(x)).norm(dim=1) for y in near]
    found = relative_output_stability(model, x, gradient, target=0)
    torch.testing.assert_close(found, torch.stack(ratios).amax(dim=0))
    alone = relative_output_stability(model, x[1:2], gradient, target=0)
    torch.testing.assert_close(alone, found[1:2])


def test_changes_that_change_the_class_do_not_count():
    model, x = nn.Linear(3, 2, bias=False).double(), normal(2, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    x[0, 0] = 5.0
    x[1, 0] = 1e-9
    generator = torch.Generator().manual_seed(0)
    signs = torch.rand(3, generator=generator, dtype=torch.float64)[0] - 0.5
    x[1, 0] = -1e-9 if signs > 0 else 1e-9
    with pytest.warns(UserWarning, match=r"every change of 1 of 2 sample\(s\) changed the predicted class"):
        found = relative_input_stability(model, x, "gradient", target=0, samples=1)
    assert found.isnan().tolist() == [False, True]
    assert local_lipschitz_estimate(model, x, "gradient", target=0).tolist() == [0, 0]


def test_another_class_in_closed_form():
    model, x = nn.Linear(5, 2, bias=False).double(), normal(3, 5).double()
    with torch.no_grad():
        model.weight[1] = -model.weight[0]
    assert random_logit(model, x, "gradient", target=0).tolist() == [-1, -1, -1]
    with torch.no_grad():
        model.weight[1] = 2 * model.weight[0]
    assert random_logit(model, x, "gradient").tolist() == [1, 1, 1]
    assert random_logit(model, x, "input_x_gradient", target=[1, 0, 1]).tolist() == [1, 1, 1]
    with pytest.raises(TargetError, match=r"'.*' is not the score of one of several classes"):
        random_logit(model, x, "gradient", target=lambda output: output.sum(dim=1))
    with pytest.raises(TargetError, match="is not the score of one of several classes"):
        random_logit(nn.Linear(5, 1).double(), x, "gradient", target=0)


def test_randomized_models():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), normal(3, 6).double()
    before = Snapshot(model, x)
    profile = cascading_randomization(model, x, "gradient", target=1, order="bottom_up")
    assert profile.layers == ("0", "2")
    clear = smooth_mprt(model, x, "gradient", target=1, samples=1)
    torch.testing.assert_close(clear.mean(), profile.values[:, 1].mean())
    assert not torch.allclose(smooth_mprt(model, x, "gradient", target=1), clear)
    rise = efficient_mprt(model, x, "gradient", target=1, bins=5)
    before.check()
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("0", "2"):
            for parameter in other.get_submodule(name).parameters():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(parameter.mean() + parameter.std() * drawn)
    entropies = []
    for net in (model, other):
        rows = gradient(net, x, target=1).tensor
        counts = torch.stack([torch.histc(row, 5) for row in rows]) / 6
        entropies.append(-(counts * counts.clamp_min(1e-300).log()).sum(dim=1))
    torch.testing.assert_close(rise, (entropies[1] - entropies[0]) / entropies[0])

    def failing(model, x, *, target, forward):
        failing.calls += 1
        if failing.calls > 3:
            raise RuntimeError("no")
        return gradient(model, x, target=target)

    for test in (smooth_mprt, efficient_mprt):
        failing.calls = 3 - (test is efficient_mprt)
        with pytest.raises(RuntimeError, match="no"):
            test(model, x, failing, target=1)
        before.check()


@pytest.mark.parametrize("name", ["cnn", "two_inputs", pytest.param("lstm", marks=pytest.mark.slow)])
def test_a_leaderboard_with_its_controls(name):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    before = Snapshot(model, x)
    metrics = AGAIN if name != "two_inputs" else AGAIN[1:]  # captum's sensitivity takes one input
    board = evaluate(model, x, ["gradient"], target=[0, 1], metrics=metrics)
    before.check()
    assert bool(board.values.isfinite().all()) and board.metrics == metrics
    assert {"gradient", "random"} <= set(board.methods)
    assert board.of("random", "random_logit").tolist() == pytest.approx([1, 1])  # blind to the class and to the model
    assert board.of("random", "smooth_mprt").tolist() == pytest.approx([1, 1])
    assert board.of("random", "efficient_mprt").tolist() == [0, 0]
    assert board.of("random", "local_lipschitz_estimate").tolist() == [0, 0]
    assert float(board.of("gradient", "random_logit").max()) < 1
    with pytest.raises(OptionError, match="random_logit explains another class: give 'map' as a method"):
        evaluate(model, x, {"map": gradient(model, x, target=[0, 1])}, target=[0, 1], metrics=("random_logit",))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x.double())


class Number(Counts):
    def forward(self, x):
        return float(self.head(x).sum())


def test_one_number_for_a_sample_has_no_class_that_could_change():
    model, x = Number().double(), normal(1, 3).double()
    assert relative_input_stability(model, x, feature_ablation).shape == (1,)
    with pytest.raises(TargetError, match=r"relative_output_stability needs an output with a row for each of 1"):
        relative_output_stability(model, x, feature_ablation)


def test_what_does_not_fit_is_said():
    model, x = nn.Linear(3, 2).double(), normal(2, 3).double()
    with pytest.raises(OptionError, match=r"radius must be above 0, got -1"):
        local_lipschitz_estimate(model, x, "gradient", target=0, radius=-1)
    with pytest.raises(OptionError, match="unknown order 'sideways'"):
        cascading_randomization(model, x, "gradient", target=0, order="sideways")
    with pytest.raises(OptionError, match="noise must not be negative"):
        smooth_mprt(model, x, "gradient", target=0, noise=-1)
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(InputError, match=r"local_lipschitz_estimate changes inputs a little, and '0' holds ids"):
        local_lipschitz_estimate(tokens, torch.tensor([[1, 2, 3]]), "gradient", target=0)
    whole = Counts().double()
    for metric in (infidelity, max_sensitivity, relative_input_stability):
        with pytest.raises(InputError, match=r"changes inputs a little, and '.' holds ids or whole numbers"):
            given = torch.ones(2, 3) if metric is infidelity else gradient
            metric(whole, torch.tensor([[1, 2, 3], [0, 1, 2]]), given, target=0)
    with pytest.raises(InputError, match=r"smooth_mprt adds noise to inputs, and none is floating-point"):
        smooth_mprt(tokens, torch.tensor([[1, 2, 3]]), "gradient", target=0)
    assert efficient_mprt(tokens, torch.tensor([[1, 2, 3]]), "gradient", target=0).shape == (1,)
    assert random_logit(tokens, torch.tensor([[1, 2, 3]]), "gradient", target=0).shape == (1,)
