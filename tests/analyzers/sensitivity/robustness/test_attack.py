"""Attacks against the closed form of linear models, in float64."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerlens import Lens, errors
from layerlens.analyzers.sensitivity import attack_curve, attack_drift, sensitivity
from tests.cases import CASES, double, normal


def linear(features=12, classes=2, seed=3):
    """Logits W x + b."""
    net = nn.Linear(features, classes).double()
    with torch.no_grad():
        net.weight.copy_(normal(classes, features, seed=seed))
        net.bias.copy_(normal(classes, seed=seed + 1))
    return net


def smallest_flips(net, x, labels, norm):
    """The least eps that turns each sample: its margin to a class k over ||w_y - w_k|| in the dual norm."""
    order = 1 if norm == "linf" else 2
    with torch.no_grad():
        scores = net(x)
        rows = []
        for sample, right in zip(scores, labels.tolist(), strict=True):
            rows.append(
                min(
                    float((sample[right] - sample[k]) / (net.weight[right] - net.weight[k]).norm(p=order))
                    for k in range(len(sample))
                    if k != right
                )
            )
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["fgsm", "pgd"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_a_linear_model_turns_at_its_margin(norm, method, loss):
    net, x = linear(), normal(6, 12).double()
    labels = net(x).argmax(dim=1)
    exact = smallest_flips(net, x, labels, norm)
    eps = torch.cat([exact * (1 - 1e-9), exact * (1 + 1e-9)]).sort().values
    curve = attack_curve(net, x, labels, eps=eps.tolist(), method=method, norm=norm, loss=loss, null=False)
    torch.testing.assert_close(curve.checks["flip eps"][0], exact, rtol=1e-8, atol=0)
    expected = (exact.unsqueeze(1) > eps).double().mean(dim=0)
    torch.testing.assert_close(curve.values[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_many_classes_no_attack_turns_below_the_margin_and_pgd_comes_near(norm):
    net, x = linear(classes=5), normal(8, 12).double()
    labels = net(x).argmax(dim=1)
    exact = smallest_flips(net, x, labels, norm)
    eps = (float(exact.max()) * torch.linspace(0, 1.3, 14)).tolist()
    curve = attack_curve(net, x, labels, eps=eps, norm=norm, loss="margin", steps=10, null=False)
    flips, grid = curve.checks["flip eps"][0], eps[1]
    assert bool((flips >= exact * (1 - 1e-9)).all())
    assert float(((flips - exact) / grid).median()) < 1.5
    assert bool((curve.values.diff(dim=1) <= 0).all())


def test_samples_that_are_wrong_are_wrong_at_zero_and_random_noise_does_less():
    net, x = linear(features=200), normal(40, 200).double()
    labels = net(x).argmax(dim=1)
    labels[:10] = 1 - labels[:10]
    curve = attack_curve(net, x, labels, eps=(0, 0.02, 0.05, 0.1))
    assert float(curve.values[0, 0]) == float(curve.null[0, 0]) == float(curve.checks["clean"]) == 0.75
    assert float(curve.values[0, -1]) < 0.3 < float(curve.null[0, -1])
    assert curve.checks["flip eps"][0, :10].tolist() == [0.0] * 10
    assert float(curve.error[0, 0]) == pytest.approx((0.75 * 0.25 / 39) ** 0.5)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_changes_stay_in_the_ball_and_within_bounds(method, norm, monkeypatch):
    case = CASES["cnn"]
    model, x = case.build().double(), case.example().double().sigmoid()
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            seen.append(x.detach().clone())
            return self.inner(x)

    attack_curve(Watch(), x, eps=(0.3,), method=method, norm=norm, bounds=(0, 1), steps=4, draws=2)
    assert len(seen) > 4
    for values in seen:
        assert float(values.min()) >= 0 and float(values.max()) <= 1
        if values.shape == x.shape:
            change = (values - x).flatten(1)
            size = change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)
            assert float(size.max()) <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize("name", ["cnn", "hf_bert", "lstm"])
@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_a_batch_is_its_samples(name, method):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    options = {"eps": (0.05, 0.2), "method": method, "steps": 3, "draws": 2}
    together = attack_curve(model, x, [1, 0], **options)
    pieces = attack_curve(model, x, [1, 0], batch_size=1, **options)
    for row, label in enumerate([1, 0]):
        single = {key: part[row : row + 1] for key, part in x.items()} if isinstance(x, dict) else x[row : row + 1]
        alone = attack_curve(model, single, [label], **options)
        torch.testing.assert_close(together.checks["per sample"][:, :, row], alone.checks["per sample"][:, :, 0])
    for one, other in ((together.values, pieces.values), (together.null, pieces.null),
                       (together.checks["loss"], pieces.checks["loss"])):  # fmt: skip
        torch.testing.assert_close(one, other)


def test_accuracy_never_rises_and_pgd_is_no_weaker_than_fgsm(case):
    if case.name not in ("mlp", "cnn", "depthwise", "lstm", "encoder", "hf_vit", "hf_bert", "video", "two_inputs"):
        return
    model, x = case.build(), case.example()
    curve = attack_curve(model, x, eps=(0.01, 0.1, 0.5, 2), method=("fgsm", "pgd"), steps=4, null=False)
    assert bool((curve.values.diff(dim=1) <= 0).all())
    assert curve.quantity == "decisions that hold" and curve.null is None
    assert float(curve.checks["loss"][1, -1]) >= 0.9 * float(curve.checks["loss"][0, -1])
    assert bool((curve.checks["loss"].diff(dim=1) > 0).all())


def test_the_score_of_a_target_falls_where_there_are_no_classes():
    case = CASES["hf_gpt2"]
    curve = attack_curve(case.build(), case.example(), target=(-1, 5), eps=(0, 0.01, 0.1), steps=4, draws=2)
    assert curve.quantity == "score" and "flip eps" not in curve.checks
    assert float(curve.values[0, 2]) < float(curve.values[0, 1]) < float(curve.values[0, 0])
    assert float(curve.values[0, 2]) < float(curve.null[0, 2])
    with pytest.raises(
        errors.TargetError, match=r"accuracy needs an output \(batch, classes\); this one is \(2, 6, 40"
    ):
        attack_curve(case.build(), case.example())


def test_a_data_set_is_read_batch_by_batch():
    net, x = linear(), normal(10, 12).double()
    labels = net(x).argmax(dim=1)
    labels[0] = 1 - labels[0]
    whole = attack_curve(net, x, labels, eps=(0.1, 0.3), method="fgsm")
    for data in (TensorDataset(x, labels), DataLoader(TensorDataset(x, labels), batch_size=3)):
        streamed = attack_curve(net, data, eps=(0.1, 0.3), method="fgsm")
        torch.testing.assert_close(streamed.values, whole.values)
        torch.testing.assert_close(streamed.null, whole.null)
    bound = Lens(net).attack_curve(DataLoader(TensorDataset(x, labels), batch_size=5), eps=(0.1, 0.3), method="fgsm")
    torch.testing.assert_close(bound.values, whole.values)


def test_a_saturated_loss_is_told_and_the_margin_does_not_saturate():
    net, x = linear(), normal(4, 12).double()
    with torch.no_grad():
        net.weight *= 1e4
    labels = net(x).argmax(dim=1)
    with pytest.warns(UserWarning, match=r"the gradient of the loss is zero at 4 of 4 .* loss='margin'"):
        attack_curve(net, x, labels, eps=(0.01,), method="fgsm", null=False)
    assert float(attack_curve(net, x, labels, eps=(5.0,), method="fgsm", loss="margin", null=False).values) == 0


def test_drift_of_a_linear_model_is_that_of_its_gradient_sign():
    net, x = linear(), normal(3, 12).double()
    labels = net(x).argmax(dim=1)
    drift = attack_drift(nn.Sequential(net), x, labels, eps=(0, 0.1), method="fgsm")
    with torch.no_grad():
        other = 1 - labels
        step = 0.1 * (net.weight[other] - net.weight[labels]).sign()
        expected = (net(x + step) - net(x)).norm(dim=1) / net(x).norm(dim=1)
    torch.testing.assert_close(drift.checks["per sample"][0, 1], expected)
    assert drift.values[:, 0].tolist() == drift.null[:, 0].tolist() == [0.0]
    assert drift.series == ("eps 0", "eps 0.1") and float(drift.null[0, 1]) < float(drift.values[0, 1])


def test_drift_of_every_layer_stands_beside_that_of_noise():
    case = CASES["cnn"]
    model, x = case.build().double(), case.example().double()
    drift = attack_drift(model, x, eps=(0.05, 0.2), steps=3, draws=3)
    assert drift.values.shape == drift.null.shape == drift.error.shape == (len(drift), 2)
    assert bool((drift.values[:, 1] > drift.values[:, 0]).all())
    alone = [attack_drift(model, x[row : row + 1], eps=(0.05, 0.2), steps=3, draws=3) for row in range(2)]
    torch.testing.assert_close(drift.values, torch.stack([one.values for one in alone]).mean(dim=0))
    pieces = attack_drift(model, x, eps=(0.05, 0.2), steps=3, draws=3, batch_size=1)
    torch.testing.assert_close(drift.values, pieces.values)
    torch.testing.assert_close(drift.null, pieces.null)


def test_seeds_rule():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    options = {"eps": (0.2,), "steps": 2, "draws": 2}
    one, again, other = (attack_curve(model, x, [0, 1], seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(one.checks["loss"], again.checks["loss"])
    assert not torch.equal(one.checks["loss"], other.checks["loss"])


def test_sizes_are_made_from_the_range():
    net, x = linear(), normal(4, 12).double().clamp(-1, 1)
    given = attack_curve(net, x, null=False, steps=1, bounds=(-2, 2))
    assert given.points.tolist() == pytest.approx([step / 255 * 4 for step in (0, 1, 2, 4, 8, 16, 32)])
    free = attack_curve(net, x, null=False, steps=1)
    assert float(free.points[1]) == pytest.approx(float(x.max() - x.min()) / 255)


def test_the_one_door_knows_them():
    net, x = linear(), normal(4, 12).double()
    curve = sensitivity(net, x, method="attack_curve", eps=(0.1,), null=False)
    torch.testing.assert_close(curve.values, attack_curve(net, x, eps=(0.1,), null=False).values)
    drift = sensitivity(nn.Sequential(net), x, "0", method="attack_drift", eps=(0.1,), null=False)
    assert drift.layers == ("0",) and "noise_response" in drift.explain()
    assert "accuracy" in attack_curve(net, x, [0] * 4, eps=(0.1,)).explain()


def test_bad_options_are_named():
    net, x = linear(), normal(4, 12).double()
    with pytest.raises(errors.OptionError, match=r"eps must be numbers of at least 0, from the smallest on, got \(0.2"):
        attack_curve(net, x, eps=(0.2, 0.1))
    with pytest.raises(errors.OptionError, match="unknown attack 'cw'"):
        attack_curve(net, x, method="cw")
    with pytest.raises(errors.OptionError, match="unknown norm 'l1'"):
        attack_curve(net, x, norm="l1")
    with pytest.raises(errors.InputError, match="outside the bounds 0 to 1"):
        attack_curve(net, x, bounds=(0, 1))
    with pytest.raises(errors.InputError, match="there are 3 labels for 4 sample"):
        attack_curve(net, x, [0, 1, 0])
    with pytest.raises(errors.InputError, match="label 2 is out of range: the output has 2 classes"):
        attack_curve(net, x, [0, 1, 2, 0])
    with pytest.raises(errors.OptionError, match="give labels for accuracy, or a target"):
        attack_curve(net, x, [0] * 4, target=1)
    bert = CASES["hf_bert"]
    with pytest.raises(errors.OptionError, match="'input_ids' is attacked in its embeddings"):
        attack_curve(bert.build(), bert.example(), bounds=(0, 1))

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()[:, :2]

    with pytest.raises(errors.InputError, match="no gradient of Cut's output reaches its input"):
        attack_curve(Cut(), x)
