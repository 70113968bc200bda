"""The shape of clouds whose dimensions are known, and what misleads."""

import math

import pytest
import torch
from torch import nn

from layerlens import Lens, errors
from layerlens.analyzers.dynamics import geometry
from layerlens.analyzers.dynamics.geometry.dimensions import (
    compact,
    effective_rank,
    eigenvalues,
    gaussian,
    two_nearest,
    two_nn,
)
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, normal

PR, ALIKE, RANK, TWO = range(4)


def shaped(x, labels=None, **options):
    """The numbers of one table."""
    return geometry(nn.Sequential(Taken()), x, "0", labels, **options)


class Taken(nn.Module):
    def forward(self, x):
        return x * 1.0


def plane(count, dimensions, features, seed=0):
    """Gaussian points in a plane of so many dimensions, alike in all of them."""
    basis = torch.linalg.qr(normal(features, features, seed=seed + 50).double())[0][:dimensions]
    return normal(count, dimensions, seed=seed).double() @ basis


@pytest.mark.parametrize("dimensions", [5, 10])
def test_a_plane_has_its_dimensions_by_every_measure(dimensions):
    found = shaped(plane(800, dimensions, 20))
    values = found.values[0]
    assert float(values[PR]) == pytest.approx(dimensions, rel=0.03)
    assert float(values[RANK]) == pytest.approx(dimensions, rel=0.01)
    assert float(values[TWO]) == pytest.approx(dimensions, rel=0.12)
    assert abs(float(values[TWO]) - dimensions) < 3 * float(found.error[0, TWO])


def test_a_swiss_roll_is_a_sheet_in_three_dimensions():
    generator = torch.Generator().manual_seed(0)
    turn = 1.5 * torch.pi * (1 + 2 * torch.rand(2000, generator=generator).double())
    height = 21 * torch.rand(2000, generator=generator).double()
    found = shaped(torch.stack([turn * turn.cos(), height, turn * turn.sin()], dim=1), max_samples=2000)
    assert float(found.values[0, TWO]) == pytest.approx(2, abs=0.12)
    assert float(found.values[0, PR]) > 2.7


def test_the_numbers_against_their_formulas():
    x = normal(60, 7).double() @ torch.diag(torch.tensor([4.0, 3, 3, 2, 1, 0.5, 0.1]).double())
    found = shaped(x).values[0]
    c = torch.cov(x.T)
    assert float(found[PR]) == pytest.approx(float(c.trace() ** 2 / (c @ c).trace()), rel=1e-10)
    r = torch.corrcoef(x.T)
    assert float(found[ALIKE]) == pytest.approx(float(49 / (r @ r).trace()), rel=1e-10)
    p = torch.linalg.svdvals(x - x.mean(dim=0))
    p = p / p.sum()
    assert float(found[RANK]) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-10)


def test_two_nn_is_the_fit_of_facco():
    x = normal(300, 4).double()
    d = (x[:, None] - x[None]).norm(dim=2) + torch.diag(torch.full((300,), torch.inf))
    nearest = d.sort(dim=1).values[:, :2]
    torch.testing.assert_close(two_nearest(x), nearest)
    mu = (nearest[:, 1] / nearest[:, 0]).sort().values[:270].log()
    f = torch.arange(1, 271).double() / 300
    slope = torch.linalg.lstsq(mu[:, None], -torch.log(1 - f)[:, None]).solution
    assert float(two_nn(nearest)[0]) == pytest.approx(float(slope), rel=1e-10)


def test_errors_are_the_spread_of_repeat_draws():
    draws = [shaped(plane(200, 5, 8, seed)) for seed in range(24)]
    values = torch.stack([one.values[0] for one in draws])
    said = torch.stack([one.error[0] for one in draws]).mean(dim=0)
    ratio = said / values.std(dim=0)
    assert 0.6 < float(ratio[PR]) < 1.6 and 0.6 < float(ratio[RANK]) < 1.6 and 0.6 < float(ratio[TWO]) < 1.6


def test_one_large_unit_moves_the_participation_ratio_and_not_that_with_units_alike():
    x = normal(400, 20).double()
    before = shaped(x).values[0]
    x[:, 7] *= 30
    with pytest.warns(UserWarning, match=r"one unit holds more than half of the spread of layer 0 \(unit 7 of 0: 98%"):
        found = shaped(x)
    assert float(before[PR]) > 18 and float(found.values[0, PR]) < 1.1
    assert float(found.values[0, ALIKE]) == pytest.approx(float(before[ALIKE]), rel=1e-9)
    assert float(found.checks["largest unit"][0]) > 0.97


def test_effective_rank_follows_the_number_of_samples_and_the_null_shows_it():
    """RankMe of the same distribution: twice the samples, nearly twice the rank."""
    ranks = []
    for count in (100, 200, 400):
        with pytest.warns(UserWarning, match=f"{count} samples are fewer than the features"):
            found = shaped(normal(count, 500).double())
        ranks.append(float(found.values[0, RANK]))
        assert float(found.null[0, RANK]) == pytest.approx(ranks[-1], rel=0.02)
        assert float(found.null[0, PR]) == pytest.approx(float(found.values[0, PR]), rel=0.03)
    assert ranks[1] > 1.8 * ranks[0] and ranks[2] > 1.6 * ranks[1]


def test_turning_points_to_fewer_features_keeps_their_distances():
    x = normal(30, 200).double()
    small = compact(x)
    assert small.shape == (30, 30)
    torch.testing.assert_close(torch.cdist(small, small), torch.cdist(x, x), rtol=1e-9, atol=1e-5)


def test_the_gaussian_null_has_the_spread_of_a_gaussian_of_that_many_features():
    wide = torch.stack([gaussian(40, 300, seed).square().sum(dim=1) for seed in range(20)])
    assert float(wide.mean()) == pytest.approx(300, rel=0.02)
    assert float(wide.var()) == pytest.approx(600, rel=0.15)
    assert gaussian(40, 7, 0).shape == (40, 7)
    direct = effective_rank(eigenvalues(normal(40, 300).double()))
    assert float(effective_rank(eigenvalues(gaussian(40, 300, 0)))) == pytest.approx(float(direct), rel=0.02)


def test_class_separation_is_the_share_between_classes_and_its_null_what_shuffling_leaves():
    y = torch.arange(300) % 3
    x = normal(300, 6).double()
    x[:, 0] += 2.0 * y
    x[:, 1] -= 2.0 * (y == 1)
    found = shaped(x, y, permutations=50)
    assert found.series[-1] == "class separation"
    within = sum(((x[y == k] - x[y == k].mean(dim=0)) ** 2).sum() for k in range(3))
    expected = 1 - within / ((x - x.mean(dim=0)) ** 2).sum()
    assert float(found.values[0, -1]) == pytest.approx(float(expected), rel=1e-10)
    assert float(found.null[0, -1]) == pytest.approx(2 / 299, rel=0.15)  # (classes - 1) / (n - 1)
    assert 0.005 < float(found.error[0, -1]) < 0.05
    named = shaped(list(zip(x, [f"class {k}" for k in y.tolist()], strict=True)))
    assert float(named.values[0, -1]) == pytest.approx(float(expected), rel=1e-10)
    assert len(shaped(x).series) == 4


def test_at_most_so_many_samples_are_kept_each_as_likely():
    x = torch.arange(4000.0).double()[:, None] * torch.ones(1, 2).double() + normal(4000, 2).double()
    found = shaped(x, max_samples=200, batch_size=64)
    assert int(found.checks["samples"]) == 200 and "200 of 4000 samples" in found.method
    whole = shaped(x, (torch.arange(4000) > 1999).long(), max_samples=400, batch_size=64)
    assert float(whole.values[0, -1]) == pytest.approx(0.75, abs=0.03)  # labels are kept with their samples
    again = shaped(x, max_samples=200, batch_size=7)
    torch.testing.assert_close(again.values, found.values)  # the choice does not depend on the batches


def test_every_case_has_a_shape(case):
    if case.name == "vae":
        return  # it draws other numbers for each batch
    data = [as_inputs(case.example())] * 5
    with pytest.warns(UserWarning):  # five times the same two samples: twins
        found = geometry(case.build(), data, batched=True, permutations=1)
    known = found.values[found.values[:, 0].isfinite(), 0]
    torch.testing.assert_close(known, torch.ones_like(known), atol=1e-3, rtol=0)  # two points span a line


def test_what_is_refused_and_warned_of():
    x = normal(40, 3).double()
    with pytest.raises(errors.InputError, match="7 samples have no shape"):
        shaped(x[:7])
    with pytest.raises(errors.InputError, match="geometry: 39 labels for 40 samples or more"):
        shaped(x, [0] * 39)
    with pytest.raises(errors.InputError, match="all samples have one label"):
        shaped(x, [1] * 40)
    with pytest.raises(errors.OptionError, match="max_samples must be"):
        shaped(x, max_samples=0)
    with pytest.warns(UserWarning, match="layer 0 is constant"):
        assert bool(shaped(torch.ones(20, 3)).values.isnan().all())
    with pytest.warns(UserWarning, match="have a duplicate"):
        found = shaped(torch.cat([x, x[:20]]))
    assert float(found.values[0, TWO]) > 0


def test_a_text_model_by_its_lens(tmp_path):
    model = CASES["hf_llama"].build()
    data = {"input_ids": torch.randint(1, 39, (30, 6))}
    with pytest.warns(UserWarning, match=r"1 layer\(s\) left out. model.layers: did not run"):
        found = Lens(model).geometry(data, ["model.layers", "model.layers.*.mlp.act_fn"], [0, 1] * 15, pool="last")
    assert found.layers == ("model.layers.0.mlp.act_fn", "model.layers.1.mlp.act_fn")
    assert "share of the spread that lies between classes" in found.explain() and "near its null" in found.explain()
    assert type(found).load(found.save(tmp_path / "g")).series == found.series
