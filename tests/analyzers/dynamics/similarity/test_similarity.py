"""Similarities of layers against closed forms, slow sums, and what misleads."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerlens import Lens, errors
from layerlens.analyzers.dynamics import similarity
from layerlens.analyzers.dynamics.similarity.similarity_measures import biased, gram, unbiased
from layerlens.demo.embedded import DigitNet, load_digit_net
from layerlens.demo.train_digits import make_scenes, split_digits
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, double, normal


class Parts(nn.Module):
    """Layers that return parts of the input's columns, so that a test says what each layer holds."""

    def __init__(self, *widths):
        super().__init__()
        self.widths = widths
        self.parts = nn.ModuleList(Taken() for _ in widths)

    def forward(self, x):
        return [part(columns) for part, columns in zip(self.parts, x.split(self.widths, dim=1), strict=True)][-1]


class Taken(nn.Module):
    def forward(self, x):
        return x * 1.0


def pair(a, b, **options):
    """The similarity of two tables."""
    model = Parts(a.shape[1], b.shape[1])
    options = {"permutations": 0, "batch_size": len(a), **options}
    return similarity(model, torch.cat([a, b], dim=1), ["parts.0", "parts.1"], **options)


def slow_hsic(k, m):
    """Song et al. 2012, eq. 3: the sum over all different quadruples of samples."""
    n, total = len(k), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_the_unbiased_hsic_is_the_mean_over_quadruples():
    a, b = normal(7, 3).double(), normal(7, 2, seed=8).double()
    k, m = a @ a.T, b @ b.T
    found = (unbiased(gram(a)[None]) * unbiased(gram(b)[None])).sum()
    assert float(found) == pytest.approx(float(slow_hsic(k, m)), rel=1e-10)


def test_a_value_is_the_ratio_of_slow_sums():
    a, b = normal(6, 3).double(), normal(6, 3).double() * 0.5 + normal(6, 3, seed=8).double()
    k, m = a @ a.T, b @ b.T
    expected = slow_hsic(k, m) / (slow_hsic(k, k) * slow_hsic(m, m)) ** 0.5
    with pytest.warns(UserWarning, match="6 samples are few"):
        found = pair(a, b)
    assert found.at("parts.0", "parts.1") == pytest.approx(float(expected), rel=1e-10)
    assert found.at("parts.0", "parts.0") == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("measure", ["cka", "rsa", "neighbors"])
def test_rotation_and_scale_are_the_same(measure):
    a = normal(80, 12).double()
    turn = torch.linalg.qr(normal(12, 12, seed=3).double())[0]
    found = pair(a, 3 * a @ turn + 5, measure=measure)
    assert found.at("parts.0", "parts.1") == pytest.approx(1, abs=1e-9)


def test_independent_tables_are_at_zero_and_the_biased_ones_are_not():
    """Why debiased is the default: n = 64 samples of 512 features that have nothing to do with each other."""
    values, high = [], []
    for seed in range(12):
        a, b = normal(64, 512, seed=seed).double(), normal(64, 512, seed=100 + seed).double()
        values.append(pair(a, b).at("parts.0", "parts.1"))
        with pytest.warns(UserWarning, match="biased CKA of layers parts.0, parts.1 is high for anything"):
            high.append(pair(a, b, debiased=False).at("parts.0", "parts.1"))
    assert abs(sum(values) / 12) < 0.02
    assert min(high) > 0.85 and max(high) < 0.92


@pytest.mark.parametrize("features", [512, 128, 64, 32])
def test_the_biased_null_is_features_over_features_and_samples(features):
    """.89, .67, .5 and .33 for 64 samples: only the debiased one can be read without its null."""
    a, b = normal(64, features).double(), normal(64, features, seed=9).double()
    with pytest.warns(UserWarning, match="use debiased=True"):
        found = pair(a, b, debiased=False, permutations=5)
    assert found.at("parts.0", "parts.1") == pytest.approx(features / (64 + features), abs=0.03)
    assert float(found.null[0, 1]) == pytest.approx(features / (64 + features), abs=0.03)


def test_biased_is_the_formula_of_kornblith():
    a, b = normal(30, 4).double(), normal(30, 4).double() + normal(30, 4, seed=8).double()
    x, y = a - a.mean(dim=0), b - b.mean(dim=0)
    expected = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    found = biased(gram(a)[None])[0] @ biased(gram(b)[None])[0]
    norms = biased(gram(a)[None]).norm() * biased(gram(b)[None]).norm()
    assert float(found / norms) == pytest.approx(float(expected), rel=1e-12)


def test_canonical_correlation_says_one_of_anything():
    """Why SVCCA and PWCCA are not offered: with n <= d the spans of two independent tables are the same."""
    a, b = normal(40, 50).double(), normal(40, 50, seed=8).double()
    q, r = (torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)[0][:, :39] for x in (a, b))
    assert float(torch.linalg.svdvals(q.T @ r).mean()) > 0.999
    with pytest.warns(UserWarning, match="40 samples are few"):
        assert abs(pair(a, b).at("parts.0", "parts.1")) < 0.2


def test_minibatches_have_the_expectation_of_the_whole():
    shared = 0.7
    whole, parts = [], []
    for seed in range(20):
        a = normal(96, 10, seed=seed).double()
        b = shared * a + normal(96, 10, seed=100 + seed).double()
        whole.append(pair(a, b).at("parts.0", "parts.1"))
        parts.append(pair(a, b, batch_size=8).at("parts.0", "parts.1"))
    whole, parts = torch.tensor(whole), torch.tensor(parts)
    spread = float((whole - parts).std()) / 20**0.5
    assert abs(float((whole - parts).mean())) < 3 * spread + 0.005
    exact = (shared**2 / (shared**2 + 1)) * 1.0  # cov^2 sums: 10 s^2 / sqrt(10 (10 (s^2 + 1)^2))
    assert float(whole.mean()) == pytest.approx(exact, abs=0.02)


def test_the_mean_of_ratios_would_be_another_number():
    """HSICs are averaged and then divided: of eight batches of 4 samples the mean of ratios is far off."""
    a = normal(32, 4).double()
    b = a + 2 * normal(32, 4, seed=9).double()
    with pytest.warns(UserWarning, match="32 samples are few"):
        found = pair(a, b, batch_size=4)
    products = []
    for start in range(0, 32, 4):
        u, v = unbiased(gram(a[start : start + 4])[None])[0], unbiased(gram(b[start : start + 4])[None])[0]
        products.append((float(u @ v), float(u @ u), float(v @ v)))
    ab, aa, bb = (sum(column) for column in zip(*products, strict=True))
    assert found.at("parts.0", "parts.1") == pytest.approx(ab / math.sqrt(aa * bb), rel=1e-10)
    ratios = [x / math.sqrt(y * z) for x, y, z in products]
    assert abs(sum(ratios) / 8 - found.at("parts.0", "parts.1")) > 0.05


def test_the_last_batch_is_not_dropped():
    """66 samples by 64: the last two are too few for the estimator, and join the batch before."""
    a, b = normal(66, 3).double(), normal(66, 3).double() + normal(66, 3, seed=9).double()
    found = pair(a, b, batch_size=64)
    assert found.settings["batch_size"] == 64 and int(found.checks["samples"]) == 66
    assert int(found.checks["minibatches"]) == 1
    torch.testing.assert_close(found.values, pair(a, b, batch_size=66).values, rtol=1e-9, atol=0)
    assert abs(found.at("parts.0", "parts.1") - pair(a[:64], b[:64]).at("parts.0", "parts.1")) > 1e-4
    four = pair(a[:, :], b, batch_size=31)  # 31 + 31 + 4: four are enough
    assert int(four.checks["minibatches"]) == 3
    rows = pair(a, b, batch_size=64, pool="mean")
    torch.testing.assert_close(rows.values, found.values, rtol=1e-9, atol=0)


def test_rows_do_not_depend_on_the_batches_that_they_came_in():
    a, b = normal(70, 3).double(), normal(70, 3).double() + normal(70, 3, seed=9).double()
    model, x = Parts(3, 3), torch.cat([a, b], dim=1)
    layers = ["parts.0", "parts.1"]
    odd = [x[:1], x[1:3], x[3:40], x[40:]]
    found = similarity(model, odd, layers, batched=True, batch_size=70, pool="mean")
    torch.testing.assert_close(found.values, similarity(model, x, layers, batch_size=70).values, rtol=1e-9, atol=0)
    small = similarity(model, [x[:3], x[3:]], layers, batched=True, batch_size=70)  # the first is too small
    assert int(small.checks["samples"]) == 70 and int(small.checks["minibatches"]) == 1


def test_the_error_is_the_spread_of_repeat_draws():
    values, said = [], []
    for seed in range(40):
        a = normal(100, 8, seed=seed).double()
        found = pair(a, a + normal(100, 8, seed=500 + seed).double())
        values.append(found.at("parts.0", "parts.1"))
        said.append(float(found.error[0, 1]))
    spread = float(torch.tensor(values).std())
    assert 0.7 * spread < sum(said) / 40 < 1.4 * spread


def test_the_null_is_what_permuted_rows_give():
    a = normal(100, 5).double()
    found = pair(a, a + normal(100, 5, seed=9).double(), permutations=40)
    high = float(found.checks["null 95 %"][0, 1])
    assert abs(float(found.null[0, 1])) < 0.01 < high < 0.05 < found.at("parts.0", "parts.1")
    near = pair(a, a + normal(100, 5, seed=9).double(), permutations=40, measure="neighbors", neighbors=7)
    assert float(near.null[0, 1]) == pytest.approx(7 / 99, abs=0.01)


def test_distances_and_neighbors_against_slow_ones():
    a, b = normal(64, 4).double(), normal(64, 4).double() + normal(64, 4, seed=9).double()
    far = [torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") for x in (a, b)]
    above = torch.triu_indices(64, 64, 1)
    expected = torch.corrcoef(torch.stack([d[above[0], above[1]] for d in far]))[0, 1]
    assert pair(a, b, measure="rsa").at("parts.0", "parts.1") == pytest.approx(float(expected), rel=1e-9)
    near = [
        set(map(tuple, (d + torch.diag(torch.full((64,), 9e9))).topk(5, largest=False).indices.tolist())) for d in far
    ]
    assert all(len(one) == 64 for one in near)
    lists = [(d + torch.diag(torch.full((64,), 9e9))).topk(5, largest=False).indices.tolist() for d in far]
    share = sum(len(set(p) & set(q)) for p, q in zip(*lists, strict=True)) / (64 * 5)
    found = pair(a, b, measure="neighbors", neighbors=5).at("parts.0", "parts.1")
    assert found == pytest.approx(share, rel=1e-12)


def test_two_models_that_take_the_same_samples_in_other_layouts():
    class Named(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, table):
            return self.inner(table)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = normal(90, 4)
    same = similarity(net, x, other=net)
    torch.testing.assert_close(same.values, similarity(net, x).values)
    named = similarity(net, x, other=Named(net), other_data={"table": x})
    assert named.columns == ("inner.0", "inner.1", "inner.2") and named.axes[1] == "layer of the other model"
    torch.testing.assert_close(named.values, same.values)
    by_forward = similarity(net, x, other=Named(net), other_forward=lambda model, rows: model(table=rows))
    torch.testing.assert_close(by_forward.values, same.values)
    assert torch.equal(Lens(net).similarity(x, other=Lens(net)).values, same.values)
    for wrong in (x[:80], torch.cat([x, x])):
        with pytest.raises(errors.InputError, match="must see the same samples"):
            similarity(net, x, other=Named(net), other_data={"table": wrong})


def test_first_layers_are_alike_with_an_untrained_twin():
    """A trap that needs the second model: likeness of first layers says nothing of training."""
    _, test = split_digits(0)
    images, _, _ = make_scenes(test, range(64), seed=5)
    torch.manual_seed(0)
    found = similarity(load_digit_net(), images.float() / 255, other=DigitNet(), pool="flatten", permutations=2)
    first, last = found.at("stem.conv", "stem.conv"), found.at("head", "head")
    assert first > 0.8 > 0.5 > last


def test_every_case_is_one_with_itself(case):
    model, x = case.build().double(), double(case.example())
    data = [as_inputs(x)] * 4
    with pytest.warns(UserWarning):
        found = similarity(model, data, batched=True, batch_size=8, permutations=0, pool="mean")
    own = found.values.diagonal()
    assert float((own[own.isfinite()] - 1).abs().max()) < 1e-9


def test_constant_layers_are_named():
    a = normal(70, 3).double()
    with pytest.warns(UserWarning, match="layer parts.1 does not distinguish these samples"):
        found = pair(a, torch.ones(70, 2).double())
    assert math.isnan(found.at("parts.0", "parts.1")) and found.at("parts.0", "parts.0") == pytest.approx(1)


def test_a_large_mean_does_not_drown_the_spread():
    a = normal(70, 5).double()
    assert pair(a + 1e7, a).at("parts.0", "parts.1") == pytest.approx(1, abs=1e-6)


def test_samples_of_other_shapes_need_a_pool():
    model = CASES["hf_llama"].build()
    data = [{"input_ids": torch.randint(1, 39, (length,))} for length in (5, 5, 5, 6, 6, 7) * 4]
    with pytest.raises(errors.InputError, match=r"too few.*pool='mean'"):
        similarity(model, data, "model.layers.*")
    with pytest.warns(UserWarning, match="24 samples are few"):
        found = similarity(model, data, "model.layers.*", pool="mean")
    assert int(found.checks["samples"]) == 24


def test_layers_that_do_not_run_for_all_are_left_out():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x)
            return self.c(self.b(h) if float(x[0, 0]) > 0 else h)

    x = normal(128, 3)
    x[:64, 0], x[64:, 0] = 1, -1
    with pytest.warns(UserWarning, match="b: it did not run for every sample"):
        found = similarity(Fork(), x, permutations=0)
    assert found.rows == ("a", "c")
    with pytest.warns(UserWarning, match="1 layer"):
        assert similarity(Fork(), x.flip(0), permutations=0).rows == ("a", "c")


def test_what_is_refused_and_warned_of():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), normal(70, 3)
    for options, text in (
        ({"measure": "cca"}, "unknown measure 'cca'"),
        ({"measure": "rsa", "debiased": False}, "belongs to measure 'cka'"),
        ({"permutations": -1}, "permutations must be"),
        ({"other_layers": "0"}, "give other="),
        ({"pool": "max"}, "unknown pool"),
        ({"neighbors": 0}, "neighbors must be"),
    ):
        with pytest.raises(errors.OptionError, match=text):
            similarity(net, x, **options)
    with pytest.raises(errors.InputError, match=r"3 sample.* are too few"):
        similarity(net, x[:3])
    with pytest.raises(errors.InputError, match=r"3 sample.* are too few"):
        similarity(net, x[:3], pool="mean")
    with pytest.raises(errors.LayerNotFound):
        similarity(net, x, "7")


def test_a_loader_and_saying_what_it_means(tmp_path):
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), normal(100, 3)
    loader = DataLoader(TensorDataset(x, torch.arange(100)), batch_size=40)
    found = similarity(net, loader)
    assert int(found.checks["samples"]) == 100 and int(found.checks["minibatches"]) == 3
    text = found.explain()
    assert "same arrangement" in text and "untrained twin" in text
    assert type(found).load(found.save(tmp_path / "s")).rows == found.rows
    assert torch.equal(similarity(net, loader).null, found.null)
