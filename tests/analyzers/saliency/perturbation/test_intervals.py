"""Intervals of drawn values: how many hold what is known, and the error from its definition."""

import dataclasses

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency.perturbation.shapley import _drawn_coalitions, _fit, _jackknife_error
from layerlens.errors import InputError, OptionError
from layerlens.faithfulness import known_shapley
from tests.cases import normal
from tests.results.examples import attribution


class Cubes(nn.Module):
    def forward(self, x):
        return x.pow(3).sum(dim=1, keepdim=True)


POINT = normal(1, 6).double()
TASK = known_shapley(1, 8, 8)
DRAWN = {
    "shapley_sampling": (TASK.model, TASK.x, TASK.target, {"permutations": 16}, TASK.values),
    "kernel_shap": (TASK.model, TASK.x, TASK.target, {"samples": 100}, TASK.values),
    "gradient_shap": (Cubes(), POINT, 0, {"baselines": torch.zeros(1, 6).double(), "samples": 20}, POINT**3),
    "smooth_grad": (Cubes(), POINT, 0, {"stdevs": 0.5, "samples": 40}, 3 * (POINT**2 + 0.25)),  # E 3 (x + e)^2
}


@pytest.mark.parametrize("method", DRAWN)
def test_ninety_percent_intervals_hold_the_known_value_in_about_ninety_percent(method):
    model, x, target, options, truth = DRAWN[method]
    held = []
    for seed in range(40):
        found = layerlens.saliency(model, x, target=target, method=method, seed=seed, progress=False, **options)
        low, high = found.interval(0.9)
        held.append(((low <= truth) & (truth <= high)).double().mean())
    assert 0.83 < float(torch.stack(held).mean()) < 0.96


@pytest.mark.parametrize("count", [60, 61], ids=["pairs", "one-alone"])
def test_the_error_of_kernel_shap_is_the_jackknife_over_pairs(count):
    keep = _drawn_coalitions(count, 5, torch.Generator().manual_seed(0))
    scores, one, none = normal(count, 2).double(), normal(2).double(), torch.zeros(2).double()

    def fit(chosen):
        return _fit(keep[chosen], torch.ones(int(chosen.sum())).double(), scores[chosen], one, none)

    whole = fit(torch.ones(count, dtype=torch.bool))
    pair = torch.arange(count) // 2
    moved = torch.stack([fit(pair != each) - whole for each in pair.unique()])
    torch.testing.assert_close(_jackknife_error(keep, scores, whole, none), moved.square().sum(dim=0).sqrt())


def test_intervals_of_one_and_of_several_inputs_and_without_an_error():
    values, error = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.0]])
    one = dataclasses.replace(attribution(), values=values, standard_error=error, degrees=3)
    low, high = one.interval(0.95)
    torch.testing.assert_close(high, values + 3.182446 * error)  # the table of Student's t
    torch.testing.assert_close(low, values - 3.182446 * error)
    several = dataclasses.replace(one, values={"a": values}, standard_error={"a": error}, degrees=None)
    torch.testing.assert_close(several.interval(0.95)[1]["a"], values + 1.959964 * error)
    with pytest.raises(InputError, match="have no standard error"):
        attribution().interval()
    with pytest.raises(OptionError, match="share must be between 0 and 1"):
        one.interval(90)
