"""Intervals of drawn values: how many hold what is known, and the error from its definition."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency.perturbation.rise import SmoothMasks, draw, ridge_map
from layerlens.analyzers.saliency.perturbation.shapley import _drawn_coalitions, _fit, _jackknife_error
from layerlens.errors import InputError, OptionError
from layerlens.faithfulness import known_shapley
from layerlens.results.intervals import interval_of
from tests.cases import normal
from tests.results.examples import attribution


class Cubes(nn.Module):
    def forward(self, x):
        return x.pow(3).sum(dim=1, keepdim=True)


POINT, THREE, NOISE = normal(1, 6).double(), normal(3, 6, seed=2).double(), {"stdevs": 0.5}
TASK = known_shapley(1, 8, 8)


def regression_on_all_masks(x):
    """The coefficients of the scores of TASK on all 256 coalitions, which RISE estimates, `(1, 8)`."""
    keep = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8))).double()
    design = torch.cat([torch.ones(256, 1).double(), keep], dim=1)
    with torch.no_grad():
        scores = TASK.model((keep * x).to(TASK.x))[:, int(TASK.target)].double()
    return torch.linalg.lstsq(design, scores[:, None]).solution[1:].T


DRAWN = {
    "shapley_sampling": (TASK.model, TASK.x, TASK.target, {"permutations": 16}, TASK.values),
    "kernel_shap": (TASK.model, TASK.x, TASK.target, {"samples": 100}, TASK.values),
    "rise": (TASK.model, TASK.x, TASK.target, {"samples": 400}, regression_on_all_masks(TASK.x.double())),
    "gradient_shap": (Cubes(), POINT, 0, {"baselines": torch.zeros(1, 6).double(), "samples": 20}, POINT**3),
    "smooth_grad_squared": (Cubes(), POINT, 0, NOISE, 9 * (POINT**4 + 6 * POINT**2 * 0.25 + 3 * 0.25**2)),
    "var_grad": (Cubes(), POINT, 0, NOISE | {"samples": 100}, 9 * (4 * POINT**2 * 0.25 + 2 * 0.25**2)),
    "smooth_grad": (Cubes(), POINT, 0, {"stdevs": 0.5, "samples": 40}, 3 * (POINT**2 + 0.25)),  # E 3 (x + e)^2
}


@pytest.mark.parametrize("method", DRAWN)
def test_ninety_percent_intervals_hold_the_known_value_in_about_ninety_percent(method):
    model, x, target, options, truth = DRAWN[method]
    held = []
    for seed in range(40):
        name = method.split()[0]
        found = layerlens.saliency(model, x, target=target, method=name, seed=seed, progress=False, **options)
        low, high = found.interval(0.9)
        held.append(((low <= truth) & (truth <= high)).double().mean())
    assert 0.83 < float(torch.stack(held).mean()) < 0.96


@pytest.mark.parametrize("sampling", ["balanced", "random"])
def test_more_masks_of_rise_begin_with_the_same_ones(sampling):
    few, many = (SmoothMasks([8, 8], 4) for _ in range(2))
    draw([few], 20, 0.5, sampling, seed=3)
    draw([many], 64, 0.5, sampling, seed=3)
    assert torch.equal(many.kept[:20], few.kept) and torch.equal(many.shifts[:20], few.shifts)
    pairs = sampling == "balanced"
    assert torch.equal(many.kept[1::2], ~many.kept[::2]) == pairs
    assert torch.equal(many.shifts[1::2], many.shifts[::2]) == pairs


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


@pytest.mark.parametrize(
    ("count", "places"),
    [(40, 8), (41, 8), (36, 50), (48, 8)],
    ids=["pairs", "one-alone", "many-places", "few-places"],
)
def test_the_error_of_rise_is_the_jackknife_over_pairs_under_its_penalty(count, places):
    masks, scores = (
        (torch.rand(count, places, generator=torch.Generator().manual_seed(0)) < 0.5).double(),
        normal(count),
    )
    scores = (masks[:, 0] + scores)[:, None].double()

    def fit(chosen, penalty):
        design, answer = masks[chosen] - masks[chosen].mean(dim=0), scores[chosen] - scores[chosen].mean()
        return torch.linalg.solve(design.T @ design + penalty * torch.eye(places).double(), design.T @ answer)[:, 0]

    def loss(penalty):  # generalized cross-validation
        design = masks - masks.mean(dim=0)
        hat = design @ torch.linalg.inv(design.T @ design + penalty * torch.eye(places).double()) @ design.T + 1 / count
        return (scores[:, 0] - hat @ scores[:, 0]).square().sum() / (count - hat.trace()) ** 2

    values, error, degrees, _ = ridge_map(masks, scores)
    every = torch.ones(count, dtype=torch.bool)
    scale = torch.linalg.eigvalsh((masks - masks.mean(dim=0)).T @ (masks - masks.mean(dim=0))).max()
    penalties = torch.logspace(-6, 2, 33).double() * scale
    penalty = min(penalties, key=loss) if count < 6 * places else penalties[0]
    torch.testing.assert_close(values[0], fit(every, penalty))
    pair = torch.arange(count) // 2
    parts = torch.stack([fit(pair != one, penalty) for one in range(count // 2)])
    spread = (parts - parts.mean(dim=0)).square().sum(dim=0) * (len(parts) - 1) / len(parts)
    torch.testing.assert_close(error[0], spread.sqrt())
    assert 1 <= degrees < count // 2


class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4).double()
        self.embedding.weight.data = normal(9, 4).double()

    def forward(self, ids):
        return self.embedding(ids).tanh().sum(dim=(1, 2)).square().unsqueeze(1)


@pytest.mark.parametrize("method", ["smooth_grad", "smooth_grad_squared"])
def test_the_error_of_a_token_is_that_of_the_sum_over_its_embedding(method):
    ids, options = torch.tensor([[1, 2, 3], [4, 5, 6]]), {"target": 0, "method": method}
    means = [torch.zeros(2, 3).double()]
    for count in range(1, 9):  # more draws begin with the same ones
        found = layerlens.saliency(Bent(), ids, samples=count, **options)
        means.append(found.tensor)
    draws = torch.stack([(n + 1) * means[n + 1] - n * means[n] for n in range(8)])
    torch.testing.assert_close(found.standard_error, draws.std(dim=0) / 8**0.5)
    cubes = (draws - draws.mean(dim=0)).pow(3).mean(dim=0) / draws.var(dim=0, correction=0) ** 1.5
    torch.testing.assert_close(found.skewness, cubes / 8**0.5)


def test_the_error_of_a_token_over_references():
    ids, shared = torch.tensor([[1, 2, 3]]), {"target": 0, "method": "deep_shap"}
    references = [normal(3, 4, seed=seed).double() for seed in range(3)]
    each = torch.stack([layerlens.saliency(Bent(), ids, baselines=[one], **shared).tensor for one in references])
    found = layerlens.saliency(Bent(), ids, baselines=references, **shared)
    torch.testing.assert_close(found.tensor, each.mean(dim=0))
    torch.testing.assert_close(found.standard_error, each.std(dim=0) / 3**0.5)
    assert found.degrees == 2


def test_the_error_of_points_on_given_paths_is_how_the_mean_scatters():
    baselines = normal(3, 6, seed=2).double()
    options = {"target": 0, "method": "gradient_shap", "baselines": baselines, "samples": 24}
    found = [layerlens.saliency(Cubes(), POINT, seed=seed, **options) for seed in range(400)]
    values, errors = (torch.stack([getattr(one, name) for one in found]) for name in ("tensor", "standard_error"))
    assert (
        (values.mean(dim=0) - POINT**3 + baselines.pow(3).mean(dim=0)).abs() < 4 * values.std(dim=0) / 400**0.5
    ).all()
    ratio = errors.square().mean(dim=0).sqrt() / values.std(dim=0)
    assert (ratio - 1).abs().max() < 0.2 and (ratio.mean() - 1).abs() < 0.1


def test_ends_of_an_uneven_interval_solve_the_equation_of_hall():
    skewness = torch.tensor([-0.9, -0.2, 0.0, 0.3, 1.0]).double()
    low, high = interval_of(torch.ones(5).double(), 2 * torch.ones(5).double(), 7, skewness, 0.9)
    for end, times in ((low, 1.894579), (high, -1.894579)):  # the table of Student's t
        t = (1 - end) / 2  # (mean - true) / error
        g = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
        torch.testing.assert_close(g, torch.full((5,), times).double(), rtol=1e-5, atol=0)


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


@pytest.mark.parametrize("samples", [40, 400])
def test_the_share_that_the_penalty_of_rise_keeps_is_how_far_values_are_pulled_to_zero(samples):
    truth, values, kept = regression_on_all_masks(TASK.x.double()), [], []
    for seed in range(30):
        found = layerlens.saliency(TASK.model, TASK.x, target=TASK.target, method="rise", samples=samples, seed=seed)
        values.append(found.tensor)
        kept.append(found.checks["share kept by the penalty"])
    pulled = float((torch.cat(values).double().mean(dim=0) * truth[0]).sum() / truth.square().sum())
    assert pulled == pytest.approx(float(torch.cat(kept).mean()), abs=0.1)
    assert (pulled < 0.75) == (samples == 40)


def test_rise_takes_no_penalty_where_masks_outnumber_columns():
    truth, held = regression_on_all_masks(TASK.x.double()), []
    for seed in range(60):  # 6 masks for each of 8 columns; with a penalty 55 % hold
        found = layerlens.saliency(TASK.model, TASK.x, target=TASK.target, method="rise", samples=48, seed=seed)
        low, high = found.interval(0.9)
        held.append((low <= truth) & (truth <= high))
    assert 0.85 < float(torch.stack(held).double().mean()) < 0.98
