"""Linear probes, the generalization gap and the comparison of two models, against planted truths."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from layerlens import Lens, compare, errors, generalization_gap, linear_probe
from layerlens.analyzers.dynamics.readouts.linear_readout import MOST_FEATURES, Readout, as_truth, split_folds
from tests.cases import normal


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


class Reads(nn.Module):
    """Hands its input on in `keep`, and loses the signs in `square`."""

    def __init__(self):
        super().__init__()
        self.keep, self.square = nn.Identity(), Square()

    def forward(self, x):
        return self.square(self.keep(x * 1.0))


class Square(nn.Module):
    def forward(self, x):
        return x.square()


# -- linear probes -----------------------------------------------------------------------------------------------------


def test_a_probe_is_that_of_scikit_learn():
    x = normal(100, 6)
    labels = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    found = linear_probe(net(), x, labels, untrained=False, permutations=0)
    rows = net()(x).detach().double().numpy()
    folds = split_folds(as_truth(labels.tolist(), "test"), 5, 0).numpy()
    right = np.empty(100)
    for fold in range(5):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000, tol=1e-3))
        model.fit(rows[folds != fold], labels[folds != fold].numpy())
        right[folds == fold] = model.predict(rows[folds == fold]) == labels[folds == fold].numpy()
    row = found.layers.index("2")
    assert float(found.values[row]) == pytest.approx(right.mean(), abs=1e-12)
    assert float(found.error[row]) == pytest.approx(right.std(ddof=1) / 10, abs=1e-12)
    assert found.null is None and found.series == ()


def test_a_planted_label_is_found_where_it_is_and_shuffled_labels_are_chance():
    x = normal(200, 6)
    x[:, 0] = x[:, 0].sign() * (1 + x[:, 0].abs())
    found = linear_probe(Reads(), x, x[:, 0] > 0, untrained=False, permutations=4)
    values = dict(zip(found.layers, found.values.tolist(), strict=True))
    null = dict(zip(found.layers, found.null.tolist(), strict=True))
    assert values["(input)"] == values["keep"] == 1
    assert abs(values["square"] - 0.5) < 0.12  # the sign is gone
    assert all(abs(chance - 0.5) < 0.12 for chance in null.values())
    assert found.checks["always the same answer"] == pytest.approx(
        max((x[:, 0] > 0).float().mean(), (x[:, 0] <= 0).float().mean())
    )


def test_numbers_are_read_by_ridge_regression():
    x = normal(150, 6).double()
    found = linear_probe(Reads(), x, (2 * x[:, 0] - x[:, 3]).tolist(), untrained=False, permutations=2)
    values = dict(zip(found.layers, found.values.tolist(), strict=True))
    assert values["keep"] > 0.999 and values["square"] < 0.1 and found.quantity.startswith("R2")
    assert all(value < 0.05 for value in found.null.tolist())


def test_training_adds_to_the_untrained_twin():
    """The product of two signs cannot be read from the input; training makes it readable, random weights hardly."""
    x = normal(400, 2)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(300):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = linear_probe(model, normal(300, 2, seed=9), (normal(300, 2, seed=9).prod(dim=1) > 0).long(), permutations=1)
    assert found.series == ("trained", "untrained")
    trained, untrained = (dict(zip(found.layers, column, strict=True)) for column in found.values.T.tolist())
    assert trained["(input)"] == untrained["(input)"] < 0.65
    assert trained["3"] > 0.9 and trained["3"] > untrained["3"] + 0.1
    assert bool((found.null < 0.65).all())
    ours = linear_probe(model, x, labels, untrained=net_like(model), permutations=0)
    assert ours.settings["untrained"] == "Sequential"


def net_like(model):
    torch.manual_seed(5)
    return nn.Sequential(*(type(one)(*_sizes(one)) for one in model))


def _sizes(layer):
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else ()


def test_wide_rows_are_projected_and_stay_readable():
    x = normal(120, 3000)
    x[:, 0] = x[:, 0].sign() * 60
    assert Readout(1.0, 0).projected(x).shape == (120, MOST_FEATURES)
    with pytest.warns(UserWarning, match="more features than the 120 samples"):
        found = linear_probe(nn.Sequential(nn.Flatten()), x, x[:, 0] > 0, untrained=False, permutations=0)
    assert float(found.values[0]) > 0.95


def test_labels_that_do_not_fit_are_refused():
    x = normal(20, 6)
    for labels, told in (
        (None, "no labels: give labels="),
        ([1, 2], "2 labels for 16 samples or more"),
        ([0] * 20, "all 20 samples have the label 0"),
        ([0] * 19 + [1], r"class '1' has 1 sample\(s\)"),
        ([None] * 20, "one name or number per sample"),
        ([float("inf")] * 19 + [1.0], "not finite"),
    ):
        with pytest.raises(errors.InputError, match=told):
            linear_probe(net(), x, labels)
    with pytest.raises(errors.OptionError, match="penalty must be a number above 0"):
        linear_probe(net(), x, [0, 1] * 10, penalty=-1)
    with pytest.raises(errors.OptionError, match="unknown pool 'median'"):
        linear_probe(net(), x, [0, 1] * 10, pool="median")
    with pytest.raises(errors.InputError, match="give data that can be read 2 times"):
        linear_probe(net(), iter([(one, k % 2) for k, one in enumerate(x)]))


# -- generalization gap ------------------------------------------------------------------------------------------------


class Remembers(nn.Module):
    """Knows its training samples: returns their labels, and noise for others; `before` knows nothing."""

    def __init__(self, x, y):
        super().__init__()
        self.before, self.after = nn.Identity(), nn.Identity()
        self.register_buffer("x", x)
        self.register_buffer("y", y)

    def forward(self, x):
        x = self.before(x * 1.0)
        distance, place = torch.cdist(x, self.x).min(dim=1)
        told = nn.functional.one_hot(self.y[place], 2).float()
        noise = (x[:, :2] * 1e4).sin()
        return self.after(torch.where(distance[:, None] < 1e-3, told, noise))


def test_a_layer_that_remembers_is_found_and_those_before_it_are_not():
    x, y = normal(160, 4), torch.randint(0, 2, (160,), generator=torch.Generator().manual_seed(0))
    found = generalization_gap(Remembers(x[:80], y[:80]), x[:80], x[80:], train_labels=y[:80], test_labels=y[80:])
    gap, null = (dict(zip(found.layers, part.tolist(), strict=True)) for part in (found.values, found.null))
    assert gap["after"] > 0.3 > null["after"] and gap["before"] < null["before"]
    p = dict(zip(found.layers, found.checks["p"].tolist(), strict=True))
    assert p["after"] < 0.01 < p["before"]
    assert float(found.checks["train"][-1]) == 1 and found.checks["model"][0] == 1
    assert abs(float(found.checks["model"][1]) - 0.5) < 0.2


def test_the_null_keeps_its_level():
    """Without a difference between the sets, one in twenty gaps passes the null."""
    above = 0
    for seed in range(20):
        x, y = normal(120, 4, seed=seed), torch.arange(120) % 2
        found = generalization_gap(
            nn.Sequential(nn.Identity()), x[:60], x[60:], train_labels=y[:60], test_labels=y[60:], permutations=200
        )
        above += bool(found.values[0] > found.null[0])
    assert above <= 4  # 5 or more of 20 at 5 %: p = .003


def test_overfitting_on_digits_is_where_train_and_test_part_and_dropout_moves_it():
    """A net that memorised wrong labels holds them in its deep layers; with dropout it holds fewer."""
    from sklearn.datasets import load_digits

    pixels = load_digits().data
    x = torch.tensor(pixels / 16, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    x, wrong = x[order], torch.randint(0, 10, (len(x),), generator=generator)
    count, gaps = 200, {}
    for drop in (0.0, 0.6):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(drop)),
            *(nn.Linear(128, 128), nn.ReLU(), nn.Dropout(drop)),
            nn.Linear(128, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(120):
            loss = nn.functional.cross_entropy(model(x[:count]), wrong[:count])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gaps[drop] = generalization_gap(
            model, x[:count], x[count : 3 * count], [r"0", "1", "3", "4", "6"],
            train_labels=wrong[:count], test_labels=wrong[count : 3 * count], permutations=200,
        )  # fmt: skip
    plain, dropped = gaps[0.0], gaps[0.6]
    value = dict(zip(plain.layers, plain.values.tolist(), strict=True))
    null = dict(zip(plain.layers, plain.null.tolist(), strict=True))
    assert float(plain.checks["model"][0]) > 0.95 and float(plain.checks["model"][1]) < 0.2
    assert value["(input)"] < null["(input)"] + 0.05
    assert value["6"] > 0.5 > value["0"] + 0.2 and value["4"] > value["1"] > value["0"]
    assert dict(zip(dropped.layers, dropped.values.tolist(), strict=True))["4"] < value["4"] - 0.1


def test_sets_that_do_not_fit_each_other_are_refused():
    x = normal(40, 6)
    with pytest.raises(errors.InputError, match="no labels of the test samples"):
        generalization_gap(net(), x, x, train_labels=[0, 1] * 20)
    with pytest.raises(errors.InputError, match="no training sample has the label '2'"):
        generalization_gap(net(), x, x, train_labels=[0, 1] * 20, test_labels=[0, 2] * 20)
    with pytest.raises(errors.InputError, match="classes in train and numbers in test"):
        generalization_gap(net(), x, x, train_labels=[0, 1] * 20, test_labels=[0.0, 2.0] * 20)


# -- two models --------------------------------------------------------------------------------------------------------


def test_a_model_is_itself():
    model = net()
    for other in (model, copy.deepcopy(model).state_dict()):
        found = compare(model, other, normal(100, 6))
        assert found.layers == ("0", "1", "2")
        assert torch.allclose(found.values[:, 0], torch.ones(3).double(), atol=1e-9)
        assert found.values[:, 2].tolist() == [0, 0, 0]
        assert found.values[:, 3].nan_to_num().tolist() == [0, 0, 0] and bool(found.values[1, 3].isnan())
        assert bool((found.null[:, 0].abs() < 0.1).all())


def test_changes_are_where_they_were_made():
    model = net().double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight.mul_(2)
        other[2].bias.mul_(2)
    found = compare(model, other, normal(100, 6).double(), [0, 1] * 50)
    changes = dict(zip(found.layers, found.values.tolist(), strict=True))
    assert found.series[-2:] == ("probe", "probe of the other")
    assert changes["0"][2:4] == [0, 0]
    assert changes["2"][2] == pytest.approx(1) and changes["2"][3] == pytest.approx(1)
    assert changes["2"][0] == pytest.approx(1)  # scale changes no arrangement
    assert changes["0"][4] == changes["0"][5]


def test_other_weights_other_arrangement():
    found = compare(net(0), net(1), normal(300, 6))
    assert bool((found.values[:, 2] > 0.3).all()) and float(found.values[2, 0]) < 0.95


def test_models_that_cannot_be_compared_are_refused():
    x = normal(30, 6)
    with pytest.raises(errors.OptionError, match="the state dict does not fit Sequential"):
        compare(net(), {"0.weight": torch.ones(1)}, x)
    with pytest.raises(errors.OptionError, match="other must be a module or a state dict"):
        compare(net(), "model.pt", x)
    with pytest.raises(errors.OptionError, match=r"no layer of one name; .* similarity\(model"):
        compare(net(), Reads(), x)
    with pytest.raises(errors.InputError, match="give data that can be read 3 times"):
        compare(net(), net(), iter(x))
    with pytest.raises(errors.InputError, match="8 or more"):
        compare(net(), net(), x[:5])
    with pytest.warns(UserWarning, match="the other model has none of that name"):
        short = compare(net(), net()[:2], normal(100, 6), layers=["0", "1", "2"])
    assert short.layers == ("0", "1")


def test_a_lens_binds_them():
    lens, x = Lens(net()), normal(100, 6)
    assert lens.linear_probe(x, [0, 1] * 50, permutations=0, untrained=False).layers[0] == "(input)"
    assert lens.generalization_gap(x[:50], x[50:], train_labels=[0, 1] * 25, test_labels=[0, 1] * 25).signed
    assert lens.compare(Lens(net(1)), x).values.shape == (3, 4)
