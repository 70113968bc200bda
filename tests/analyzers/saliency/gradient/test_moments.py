"""Moments of draws from sums of powers, against the draws themselves."""

import pytest
import torch

from layerlens.analyzers.saliency.gradient.moments import GROUPS, Draws, Moments
from tests.cases import normal


def test_central_moments_are_those_of_the_draws_also_far_from_zero():
    draws = 1e4 + normal(40, 3).double().exp()
    moments = Moments(6)
    for part in draws.split(7):
        moments.add(part)
    torch.testing.assert_close(moments.mean(), draws.mean(dim=0))
    for power in range(2, 7):
        direct = (draws - draws.mean(dim=0)).pow(power).mean(dim=0)
        torch.testing.assert_close(moments.central(power), direct, rtol=1e-7, atol=0)


@pytest.mark.parametrize("statistic", ["mean", "magnitude", "square", "variance"])
def test_errors_and_skewness_are_those_of_what_is_averaged(statistic):
    drawn = normal(30, 2, 3).double()
    each = {
        "mean": drawn,
        "magnitude": drawn.abs(),
        "square": drawn.square(),
        "variance": (drawn - drawn.mean(dim=0)).square(),
    }[statistic]
    draws = Draws(statistic)
    for part in drawn.split(11):
        draws.add("x", part)
    found = draws.found()
    more = 30 / 29 if statistic == "variance" else 1
    torch.testing.assert_close(found.values["x"], each.mean(dim=0))
    torch.testing.assert_close(found.errors["x"], more * each.std(dim=0) / 30**0.5)
    cubes = (each - each.mean(dim=0)).pow(3).mean(dim=0) / each.var(dim=0, correction=0) ** 1.5
    torch.testing.assert_close(found.skewness["x"], (cubes / 30**0.5).clamp(-1, 1))


@pytest.mark.parametrize("count", [30, 80])
def test_the_error_of_a_sum_of_variances_is_that_of_its_draws_or_of_groups_of_them(count):
    drawn = 100 + normal(count, 2, 3, 4).double()
    each = (drawn - drawn.mean(dim=0)).square().sum(dim=-1)  # (count, 2, 3)
    draws = Draws("variance", ["x"])
    for part in drawn.split(11):
        draws.add("x", part)
    found, groups = draws.found(), min(count, GROUPS)
    sums = torch.stack([each[k::GROUPS].sum(dim=0) - len(each[k::GROUPS]) * each.mean(dim=0) for k in range(groups)])
    error = (sums.square().sum(dim=0) * groups / (groups - 1)).sqrt() / (count - 1)
    torch.testing.assert_close(found.values["x"].sum(dim=-1), each.mean(dim=0))
    torch.testing.assert_close(found.errors["x"], error, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.skewness["x"], sums.pow(3).sum(dim=0) / sums.square().sum(dim=0) ** 1.5)
    assert found.degrees == groups - 1
    if count <= GROUPS:
        torch.testing.assert_close(found.errors["x"], each.std(dim=0) / count**0.5 * count / (count - 1))


def test_one_draw_has_no_error():
    one = Draws("mean")
    one.add("x", normal(1, 2))
    assert one.found().errors is None
