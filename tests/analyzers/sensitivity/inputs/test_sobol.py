"""Sobol indices and elementary effects against closed forms and scipy."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens import errors
from layerlens.analyzers.sensitivity import morris, sobol
from layerlens.analyzers.sensitivity.inputs.jansen import RowTerms, designs, without_each
from tests.cases import CASES

RANGES = (-math.pi, math.pi)
wide = pytest.mark.filterwarnings("ignore:sobol. 95 % intervals reach")  # few samples, for a fast test


class Ishigami(nn.Module):
    """sin x1 + 7 sin^2 x2 + .1 x3^4 sin x1 (Ishigami & Homma 1990)."""

    def forward(self, x):
        return torch.sin(x[:, 0]) + 7 * torch.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * torch.sin(x[:, 0])


def ishigami_truth(a=7.0, b=0.1):
    """First and total order, and the index of the pair (1, 3)."""
    v1, v2 = (1 + b * math.pi**4 / 5) ** 2 / 2, a**2 / 8
    v13 = b**2 * math.pi**8 * (1 / 18 - 1 / 50)
    v = v1 + v2 + v13
    return torch.tensor([[v1, v1 + v13], [v2, v2], [0, v13]], dtype=torch.float64) / v, v13 / v


def linear(*weights, bias=0.5):
    """A linear model with one output, float64, that has no gradient."""
    net = nn.Linear(len(weights), 1).double().requires_grad_(False)
    net.weight.copy_(torch.tensor([weights]))
    net.bias.fill_(bias)
    return net


@pytest.fixture(scope="module")
def ishigami():
    x, options = torch.zeros(1, 3).double(), {"samples": 4096, "replicates": 4, "order": 2}
    return sobol(Ishigami(), x, ranges=RANGES, names=["a", "b", "c"], **options)


def test_ishigami_lies_within_the_intervals(ishigami):
    truth, pair = ishigami_truth()
    stated = torch.tensor([[0.314, 0.558], [0.442, 0.442], [0, 0.244]]).double()
    torch.testing.assert_close(truth, stated, atol=6e-4, rtol=0)
    assert bool((ishigami.interval[..., 0] <= truth).all() and (truth <= ishigami.interval[..., 1]).all())
    assert float((ishigami.values - truth).abs().max()) < 0.02
    second, error = ishigami.checks["second order"], ishigami.checks["second order error"]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 2] = expected[2, 0] = pair
    assert bool(((second - expected).abs() <= 3 * error + 1e-9).all()) and float(error.max()) < 0.1
    assert ishigami.series == ("first order", "total order") and ishigami.items == ("a", "b", "c")
    assert ishigami.settings["forwards"] == 4096 * (2 * 3 + 2)


def test_convergence_is_shown(ishigami):
    truth, _ = ishigami_truth()
    shown = ishigami.checks["convergence"]
    assert ishigami.checks["convergence samples"].tolist() == [1024, 2048, 4096]
    assert torch.equal(shown[-1], ishigami.values)
    alone = sobol(Ishigami(), torch.zeros(1, 3).double(), ranges=RANGES, samples=1024, replicates=4, order=2)
    torch.testing.assert_close(shown[0, :, 1], alone.values[:, 1])  # the first rows are the smaller design
    assert float((shown[-1] - truth).abs().max()) < float((shown[0] - truth).abs().max())


def test_a_feature_that_is_not_read_gets_exactly_nothing():
    class Reads(nn.Module):
        def forward(self, x):
            return x[:, 0] * x[:, 1]

    found = sobol(Reads(), torch.zeros(1, 3).double(), ranges=(0, 1), samples=256, order=2)
    assert found.values[2].tolist() == found.error[2].tolist() == [0, 0]
    assert found.checks["second order"][2].tolist() == [0, 0, 0] and float(found.checks["second order"][0, 1]) > 0.1


@wide
def test_the_estimators_are_those_of_scipy():
    from scipy.stats import sobol_indices, uniform

    found = sobol(Ishigami(), torch.zeros(1, 3).double(), ranges=RANGES, samples=256, seed=3)
    drawn = {}

    def keep(x):
        drawn[x.shape] = x
        return Ishigami()(torch.from_numpy(np.ascontiguousarray(x.T))).numpy()

    seed = {"rng" if "rng" in inspect.signature(sobol_indices).parameters else "random_state": 5}  # scipy 1.15, older
    theirs = sobol_indices(func=keep, n=256, dists=[uniform(-math.pi, 2 * math.pi)] * 3, **seed)
    assert bool(((torch.from_numpy(theirs.total_order) - found.values[:, 1]).abs() < 5 * found.error[:, 1]).all())
    a, b, ab = torch.randn(3, 64).double(), torch.randn(3, 64).double(), torch.randn(2, 3, 64).double()
    exact = sobol_indices(func={"f_A": a[:1].numpy(), "f_B": b[:1].numpy(), "f_AB": ab[:, :1].numpy()}, n=64)
    middle = torch.cat([a[0], b[0]]).mean()
    terms = RowTerms(a[:1].T, b[:1].T, (b[0] - middle) * (ab[:, 0] - a[0]), (a[0] - ab[:, 0]).square() / 2)
    ours = terms.indices(torch.full((1, 64), 1 / 64, dtype=torch.float64))[0]
    assert ours[:, 0].tolist() == pytest.approx(exact.first_order.tolist(), rel=1e-9)
    assert ours[:, 1].tolist() == pytest.approx(exact.total_order.tolist(), rel=1e-12)


def test_a_negative_index_can_come_out():
    found = sobol(linear(1.0, 0.01), torch.zeros(1, 2).double(), ranges=(0, 1), samples=64, seed=2)
    assert float(found.values[1, 0]) < 0 and bool((found.interval[1, 0] * torch.tensor([-1, 1]) > 0).all())


@wide
@pytest.mark.parametrize(("order", "samples"), [(1, 128), (2, 512)])
def test_intervals_cover_the_truth(order, samples):
    (truth, pair), hits = ishigami_truth(), []
    for seed in range(30):
        found = sobol(Ishigami(), torch.zeros(1, 3).double(), ranges=RANGES, samples=samples, order=order, seed=seed)
        held = (found.interval[..., 0] <= truth) & (truth <= found.interval[..., 1])
        if order == 2:
            away = abs(float(found.checks["second order"][0, 2]) - pair)
            held = torch.cat([held.flatten(), torch.tensor([away <= 2.36 * found.checks["second order error"][0, 2]])])
        hits.append(held.flatten())
    assert 0.9 < float(torch.stack(hits).double().mean()) < 0.99  # 95 % intervals


@wide
def test_terms_and_errors_are_those_of_a_slow_loop():
    """Each feature and each pair by its own run of the model, each replicate left out by hand."""
    samples, net = 64, Ishigami()
    found = sobol(net, torch.zeros(1, 3).double(), ranges=RANGES, samples=samples, order=2, seed=5, batch_size=10)
    a, b = (math.pi * (2 * part - 1) for part in designs(samples, 3, 4, 5))

    def estimated(rows):
        one, other = a[rows], b[rows]
        scores = torch.cat([net(one), net(other)])
        variance, values, moved = scores.var(unbiased=False), torch.zeros(3, 2).double(), {}
        for j in range(3):
            for name, here, there in (("ab", one, other), ("ba", other, one)):
                mixed = here.clone()
                mixed[:, j] = there[:, j]
                moved[name, j] = net(mixed) - net(here)
                centered = net(there) - torch.cat([net(a), net(b)]).mean()
                values[j] += torch.stack([(centered * moved[name, j]).mean(), moved[name, j].square().mean() / 2]) / 2
        pairs = [[(moved["ba", i] * moved["ab", j]).mean() for j in range(3)] for i in range(3)]
        both = torch.tensor(pairs).double()
        return values / variance, (both + both.T) / 2 / variance

    every = torch.arange(samples)
    values, pairs = estimated(every)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.checks["second order"][0, 2], pairs[0, 2])
    left = torch.stack([estimated(every[every % 4 != k])[0] for k in range(4)])
    torch.testing.assert_close(found.error, left.std(dim=0) * 3 / 4**0.5)
    assert found.degrees == 3 and found.settings["replicates"] == 4
    torch.testing.assert_close(without_each(16, 4).sum(dim=1), torch.ones(4).double())
    single = sobol(net, torch.zeros(1, 3).double(), ranges=RANGES, samples=512, replicates=1)
    assert single.error is single.interval is single.degrees is None


def test_replicates_are_scrambled_sobol_sequences_of_their_own():
    a, b = designs(512, 3, 8, 0)
    for k in range(8):
        for column in torch.cat([a[k::8], b[k::8]], dim=1).T:  # one point in each of 64 equal parts
            assert (column * 64).long().sort().values.tolist() == list(range(64))
    assert len({float(first) for first in a[:8, 0]}) == 8
    torch.testing.assert_close(designs(2048, 3, 8, 0)[0][:512], a)


def test_rows_of_data_are_the_distribution_and_groups_are_drawn_together():
    torch.manual_seed(0)
    x = torch.randn(400, 3).double() * torch.tensor([1.0, 2.0, 0.5])
    x[:, 1] += 3 * x[:, 0]  # columns 0 and 1 go together
    net = linear(1.0, 1.0, 2.0)
    apart, whole = x.var(dim=0, unbiased=False), (x[:, 0] + x[:, 1]).var(unbiased=False)
    parts = torch.tensor([apart[0], apart[1], 4 * apart[2]])
    with pytest.warns(UserWarning, match=r"'feature 0' and 'feature 1' are correlated in the rows of x \(0\.8"):
        found = sobol(net, x, samples=1024)
    torch.testing.assert_close(found.column("total order"), parts / parts.sum(), atol=0.02, rtol=0)
    grouped = sobol(net, x, features={"both": ["u", "v"], "w": [2]}, names=["u", "v", "w"], samples=1024)
    parts = torch.stack([whole, 4 * apart[2]])
    assert grouped.items == ("both", "w")
    truth = (parts / parts.sum()).unsqueeze(1)
    assert bool(((grouped.values - truth).abs() <= 3 * grouped.error).all()) and float(grouped.error.max()) < 0.08


def test_columns_that_no_group_holds_stay_as_they_are():
    x, net = torch.randn(70, 3).double(), linear(1.0, 5.0, 1.0)
    with pytest.warns(UserWarning, match="that belong to no feature differ between the rows of x; the first row's"):
        found = sobol(net, x, features={"a": [0], "c": [2]}, samples=256)
    parts = x.var(dim=0, unbiased=False)[[0, 2]]
    torch.testing.assert_close(found.column("total order"), parts / parts.sum(), atol=0.05, rtol=0)


def test_several_outputs_are_weighted_by_their_variance():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.zeros(1, 3).double()
    whole = sobol(net, x, ranges=(-2, 2), samples=256)
    each = [sobol(net, x, ranges=(-2, 2), samples=256, target=k) for k in range(2)]
    weights = torch.stack([one.checks["variance"] for one in each])
    expected = sum(weight * one.values for weight, one in zip(weights, each, strict=True)) / weights.sum()
    torch.testing.assert_close(whole.values, expected)
    assert whole.checks["variance"] == pytest.approx(float(weights.sum()))


@wide
def test_masks_over_a_picture_find_the_cell_that_is_read():
    class Corner(nn.Module):
        def forward(self, x):
            return x[:, :, :4, 4:].sum(dim=(1, 2, 3))

    x = torch.rand(2, 1, 8, 8).double() + 0.5
    found = sobol(Corner(), x, baseline=0, features=4, samples=64)
    assert found.items == tuple(f"cell {k}" for k in range(4))
    torch.testing.assert_close(found.column("total order"), torch.tensor([0, 1.0, 0, 0]).double(), atol=0.03, rtol=0)
    alone = [sobol(Corner(), x[row : row + 1], baseline=0, features=4, samples=64).values for row in range(2)]
    torch.testing.assert_close(found.values, torch.stack(alone).mean(dim=0))
    assert found.settings["forwards"] == 2 * 64 * 6


def test_a_model_that_draws_numbers_draws_the_same_for_a_feature_and_without():
    class Noisy(nn.Module):
        def forward(self, x):
            return x[:, 0] + torch.rand(len(x), dtype=x.dtype)

    found = sobol(Noisy(), torch.zeros(1, 2).double(), ranges=(0, 1), samples=256, batch_size=100, replicates=1)
    assert float(found.values[1, 1]) == 0  # the second feature is not read
    assert morris(Noisy(), torch.zeros(1, 2).double(), ranges=(0, 1)).values[1].tolist() == [0, 0]


def test_tokens_and_pairs_of_inputs_are_features():
    encoder, two = CASES["encoder"], CASES["two_inputs"]
    found = sobol(encoder.build(), encoder.example(), target=1, baseline="zero", samples=16)
    assert found.items == tuple(f"token {k}" for k in range(6)) and found.interval is None
    found = sobol(two.build(), two.example(), target=2, baseline="zero", features={"image": 4}, samples=16)
    assert found.items[:4] == tuple(f"image cell {k}" for k in range(4))
    assert found.items[4:] == tuple(f"table feature {k}" for k in range(5))
    llava = CASES["hf_llava"]
    with pytest.raises(errors.OptionError, match=r"For the other input: features={'pixel_values': 4}\."):
        sobol(llava.build(), llava.example(), target=(-1, 7), features=4)


def test_elementary_effects_of_a_linear_model_are_weights_times_ranges():
    net, low, high = linear(2.0, -1.0, 0.0), [0, -1, 2], [3, 4, 9]
    found = morris(net, torch.zeros(1, 3).double(), ranges=list(zip(low, high, strict=True)), levels=6)
    torch.testing.assert_close(found.values, torch.tensor([[6.0, 0], [5, 0], [0, 0]]).double())
    torch.testing.assert_close(found.checks["mu"], torch.tensor([6.0, -5, 0]).double())
    assert float(found.error.abs().max()) < 1e-12
    x = torch.randn(80, 3).double()
    of_rows = morris(net, x)
    torch.testing.assert_close(of_rows.values[:, 0], net.weight[0].abs() * (x.amax(dim=0) - x.amin(dim=0)))
    assert of_rows.settings["forwards"] == 20 * 4


def test_elementary_effects_are_those_of_a_slow_loop():
    found = morris(Ishigami(), torch.zeros(1, 3).double(), ranges=RANGES, trajectories=12, seed=4)
    from layerlens.analyzers.sensitivity.inputs.morris import Design

    design, net = Design(3, 12, 4, 4), Ishigami()
    effects = [[] for _ in range(3)]
    for places, order in zip(design.points, design.order, strict=True):
        for turn, feature in enumerate(order.tolist()):
            step = places[turn + 1] - places[turn]
            assert step.nonzero().flatten().tolist() == [feature]
            assert abs(abs(float(step[feature])) - 2 / 3) < 1e-12
            ends = [net((RANGES[0] + u * (RANGES[1] - RANGES[0]))[None]) for u in (places[turn], places[turn + 1])]
            effects[feature].append(float((ends[1] - ends[0]) / step[feature]))
    assert bool(((design.points > -1e-12) & (design.points < 1 + 1e-12)).all())
    e = torch.tensor(effects).double()
    torch.testing.assert_close(
        found.values, torch.stack([e.abs().mean(dim=1), e.std(dim=1)], dim=1), rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(found.error[:, 0], e.abs().std(dim=1) / 12**0.5, rtol=1e-6, atol=1e-9)


def test_the_null_of_effects_is_the_model_with_its_weights_in_random_order():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        net[0].weight[:, 1:] = 0
    found = morris(net, torch.zeros(1, 6).double(), ranges=(-1, 1), null=True)
    assert found.values[1:, 0].tolist() == [0] * 5 and float(found.null[1:, 0].sum()) > 0


def test_options_that_do_not_fit_are_refused():
    net, one, rows = linear(1.0, 2.0), torch.zeros(1, 2).double(), torch.randn(70, 2).double()
    for options, text in (
        ({"samples": 100}, "samples must be a power of 2, 4 or more, got 100; try 128"),
        ({"samples": 64, "replicates": 3}, "replicates must be a power of 2 up to samples=64, got 3"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"baseline": 0}, "not both"),
        ({"ranges": [(0, 1)] * 3}, "ranges of shape"),
        ({"ranges": {"a": (0, 1)}, "names": ["a", "b"]}, "ranges hold no pair for b"),
        ({"ranges": [(0, 1), (2, 2)]}, r"the range of 'feature 1' is \(2.0, 2.0\); low must be below high"),
        ({"ranges": "all"}, "cannot read ranges"),
        ({"features": {"g": [0, 5]}}, "column 5 is none of 0 to 1"),
        ({"features": {"g": [0], "h": [0]}}, "column 0 is in two groups"),
        ({"features": {"g": ["age"]}}, "give names="),
        ({"names": ["a"]}, "1 names were given for 2 features"),
    ):
        with pytest.raises(errors.OptionError, match=text):
            sobol(net, one, **{"ranges": (0, 1), **options})
    with pytest.warns(DeprecationWarning, match=r"has no effect; without errors: replicates=1"):
        sobol(net, one, ranges=(0, 1), samples=16, bootstrap=0)
    with pytest.raises(errors.OptionError, match="x holds one sample, which is not a distribution"):
        sobol(net, one)
    with pytest.raises(errors.OptionError, match="levels must be an even number"):
        morris(net, rows, levels=3)
    with pytest.raises(errors.TargetError, match="here x as a whole is one distribution"):
        sobol(net, rows, target=[0] * 70)
    with pytest.raises(errors.OptionError, match="differ from sample to sample"):
        sobol(Ishigami(), rows.repeat(1, 2), features=torch.randint(2, (70, 4)))


def test_what_would_mislead_is_told():
    net = linear(1.0, 2.0)
    with pytest.warns(UserWarning, match="the distribution of the features comes from only 5 rows"):
        sobol(net, torch.randn(5, 2).double(), samples=64, replicates=1)
    with pytest.warns(UserWarning, match="the score does not vary over this distribution"):
        found = sobol(linear(0.0, 0.0), torch.zeros(1, 2).double(), ranges=(0, 1), samples=64)
    assert bool(found.values.isnan().all())
    with pytest.warns(UserWarning, match=r"95 % intervals reach 0\.\d\d to either side with samples=32"):
        found = sobol(Ishigami(), torch.zeros(1, 3).double(), ranges=RANGES, samples=32)
    assert found.degrees == 3
    with pytest.warns(UserWarning, match="one trajectory gives no sigma"):
        morris(net, torch.zeros(1, 2).double(), ranges=(0, 1), trajectories=1)


@wide
def test_the_lens_and_the_one_door_know_them():
    net, x = linear(3.0, 4.0), torch.zeros(1, 2).double()
    lens = layerlens.Lens(net, class_names=["price"])
    by_name = lens.sobol(x, target="price", ranges=(0, 1), samples=64)
    assert by_name.ranked("total order")[0][0] == "feature 1"
    assert lens.morris(x, ranges=(0, 1)).column("mu*").tolist() == pytest.approx([3, 4])
    by_door = layerlens.sensitivity(net, x, method="sobol", target=0, ranges=(0, 1), samples=64)
    assert torch.equal(by_door.values, by_name.values) and "interaction" in by_door.explain()
