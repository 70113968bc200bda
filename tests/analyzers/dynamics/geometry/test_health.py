"""Units that are dead, doubled or saturated because a test made them so."""

import math

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens, errors
from layerlens.analyzers.dynamics import health
from layerlens.analyzers.dynamics.geometry.unit_moments import Units
from layerlens.demo.embedded import CLASS_NAMES, load_digit_net, sample_pictures
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, double, normal


def net_with(kind=nn.ReLU, units=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, units), kind(), nn.Linear(units, 3)).double().requires_grad_(False)


def test_a_planted_dead_unit_is_found_by_name():
    net = net_with()
    net[0].bias[2] = -1000
    found = health(net, normal(200, 4).double())
    assert found.dead == {"1": (2,)}
    assert found.of("1")["dead"] == pytest.approx(1 / 6) and found.of("0")["dead"] == 0
    assert "dead units: 1 (1)" in repr(found)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU])
def test_a_unit_of_any_rectifier_that_is_never_above_zero_is_dead(kind):
    net = net_with(kind)
    net[0].bias[2] = -1000
    assert health(net, normal(200, 4).double()).dead["1"] == (2,)


def test_a_linear_unit_below_zero_is_not_dead_and_a_constant_one_is():
    net = net_with(nn.Tanh)
    net[0].bias[2] = -1000  # its tanh is -1 for all
    net[2].bias[1] = -1000
    found = health(net, normal(200, 4).double())
    assert found.dead == {"1": (2,)} and found.of("1")["saturated"] > 1 / 6


def test_dead_depends_on_the_rows_seen():
    """A unit that answers to one sample in a hundred: dead for the first fifty, as the bound says it may be."""
    net = net_with()
    net[0].weight[2] = torch.tensor([1.0, 0, 0, 0])
    net[0].bias[2] = -5
    x = normal(400, 4).double().clamp(-4, 4)
    x[399, 0] = 8
    few, all_ = health(net, x[:50]), health(net, x)
    assert 2 in few.dead["1"] and "1" not in all_.dead
    assert few.of("1")["bound of dead"] == pytest.approx(1 - 0.05 ** (1 / 50)) == pytest.approx(3 / 50, rel=0.05)
    assert few.of("1")["samples"] == 50 and "50 samples" in few.method and "50 samples did not wake" in few.explain()
    with pytest.warns(UserWarning, match="over 10 samples a unit that answers to 26% of inputs may be called dead"):
        health(net, x[:10])


def test_doubled_units_are_found_with_their_twin_whatever_the_sign_and_scale():
    net = net_with()
    net[0].weight[4], net[0].bias[4] = -3 * net[0].weight[1], 7.0
    net[0].weight[5], net[0].bias[5] = 2 * net[0].weight[1], 2 * net[0].bias[1]
    found = health(net, normal(200, 4).double())
    pairs = {(unit, first): r for unit, first, r in found.doubles["0"]}
    assert pairs == {(4, 1): pytest.approx(-1), (5, 1): pytest.approx(1)}
    assert [pair[:2] for pair in found.doubles["1"]] == [(5, 1)]  # the ReLU of the negative one is another unit
    assert found.of("0")["doubled"] == pytest.approx(2 / 6)


def test_correlations_are_those_of_numpy_over_batches_and_places():
    values = normal(20, 5, 3, 3).double()
    values[:, 3] = 0.8 * values[:, 1] + 0.1 * values[:, 3]
    units = Units(nn.Identity(), 100)
    for part in values.split(7):
        assert units.add(part) == ""
    r = torch.corrcoef(values.transpose(0, 1).reshape(5, -1))
    ((unit, first, found),) = units.doubles(0.9)
    assert (unit, first) == (3, 1) and found == pytest.approx(float(r[3, 1]), rel=1e-10)
    mean, std = units.moments()
    assert mean == pytest.approx(float(values.mean()), abs=1e-12)
    assert std == pytest.approx(float(values.std(unbiased=False)), rel=1e-10)


def test_a_large_mean_does_not_drown_the_spread():
    values = normal(50, 3).double() + 1e8
    units = Units(nn.Identity(), 100)
    for part in values.split(7):
        units.add(part)
    assert units.moments()[1] == pytest.approx(float(values.std(unbiased=False)), rel=1e-6)
    assert units.doubles(0.99) == []


def test_few_rows_make_no_doubles():
    net = net_with()
    with pytest.warns(UserWarning, match="2 samples"):
        found = health(net, normal(2, 4).double())  # any two units of two samples correlate by 1
    assert math.isnan(found.of("0")["doubled"]) and found.settings["no doubles sought"] == ["0", "1", "2"]
    wide = health(net, normal(60, 4).double(), max_units=5)
    assert wide.settings["no doubles sought"] == ["0", "1"] and wide.of("2")["doubled"] == 0


def test_units_that_answer_to_one_place_are_no_doubles():
    """Two units that are silent but for the same sample correlate by 1, and that says nothing."""
    values = torch.zeros(200, 3).double()
    values[17, :2] = 5.0
    values[:, 2] = normal(200).double()
    units = Units(nn.ReLU(), 10)
    units.add(values)
    assert units.doubles(0.99) == []
    values[::2, :2] = 1.0  # now they go together all the time
    again = Units(nn.ReLU(), 10)
    again.add(values)
    assert [pair[:2] for pair in again.doubles(0.99)] == [(1, 0)]


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(nn.Sigmoid, 0.02, 0.98), (nn.Tanh, -0.96, 0.96), (nn.ReLU6, None, 5.88), (nn.Hardsigmoid, 0.02, 0.98)],
)
def test_saturation_is_the_share_near_the_ends(kind, low, high):
    net = net_with(kind)
    net[0].weight.mul_(4)
    x = normal(100, 4).double()
    y = net[1](net[0](x))
    share = (y >= high) | ((y <= low) if low is not None else False)
    found = health(net, x)
    assert found.of("1")["saturated"] == pytest.approx(float(share.double().mean()), abs=1e-12)
    assert math.isnan(found.of("0")["saturated"])
    per_sample = share.double().mean(dim=1)
    assert float(found.error[1, 2]) == pytest.approx(float(per_sample.std() / 10), rel=1e-9)


def test_zeros_and_moments_are_those_of_the_captured_values():
    net, (x, _, _) = load_digit_net(), sample_pictures()
    with pytest.warns(UserWarning, match="16 samples"):
        found = health(net, x, batch_size=5)
    record = layerlens.capture(net, x)
    for name in ("stem.relu", "blocks.1.conv2", "head"):
        values = record[name].double()
        told = found.of(name)
        assert told["zero"] == pytest.approx(float((values == 0).double().mean()), abs=1e-9)
        assert told["mean"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert told["std"] == pytest.approx(float(values.std(unbiased=False)), rel=1e-5)


def test_values_that_are_not_finite_are_counted_and_warned_of():
    class Logs(nn.Module):
        def forward(self, x):
            return x.log()

    x = normal(40, 5).double().abs()
    x[:4, 1] = 0
    with pytest.warns(UserWarning, match="layer 0 holds values that are not finite"):
        found = health(nn.Sequential(Logs()), x)
    assert found.of("0")["not finite"] == pytest.approx(4 / 200)
    assert found.of("0")["mean"] == pytest.approx(float(x.log()[x > 0].mean()))
    assert math.isnan(found.of("0")["doubled"])


def test_gradient_norms_are_those_of_autograd_for_each_sample():
    net, x = net_with(nn.Tanh), normal(40, 4).double()
    labels = (torch.arange(40) % 3).tolist()
    found = health(net, list(zip(x, labels, strict=True)), target="loss")
    h = net[0](x).requires_grad_()
    logits = net[2](net[1](h))
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, h)
    assert found.of("0")["gradient norm"] == pytest.approx(float(gradient.norm(dim=1).mean()), rel=1e-9)
    score = health(net, x, target=1, batch_size=7)
    h = net[0](x).requires_grad_()
    (gradient,) = torch.autograd.grad(net[2](net[1](h))[:, 1].sum(), h)
    assert score.of("0")["gradient norm"] == pytest.approx(float(gradient.norm(dim=1).mean()), rel=1e-9)
    by_label = health(net, x, target=[1] * 40)
    torch.testing.assert_close(by_label.gradient, score.gradient)
    with pytest.raises(errors.TargetError, match=r"3 classes for 40 samples|at least 16 samples"):
        health(net, x, target=[1] * 3)
    with pytest.raises(errors.TargetError, match="target='label'"):
        health(net, x, target="loss")


def test_vanishing_gradients_show():
    torch.manual_seed(0)
    deep = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(8, 8), nn.Sigmoid())], nn.Linear(8, 2))
    norms = health(deep, normal(40, 8), target=0).gradient
    assert float(norms[0]) < 1e-4 * float(norms[-1])


def test_the_null_is_the_net_with_its_weights_shuffled():
    net = load_digit_net()
    x, _labels, _ = sample_pictures()
    with pytest.warns(UserWarning, match="16 samples"):
        found = Lens(net, class_names=CLASS_NAMES).health(x, nn.ReLU, target="three", null=True)
    assert found.null.shape == found.values.shape and found.dead["stem.relu"] == (1,)
    assert not torch.allclose(found.null[:, 3], found.values[:, 3])
    assert bool((found.gradient > 0).all())


def test_every_case_is_read_whatever_its_batches(case):
    model, x = case.build().double(), double(case.example())
    inputs = as_inputs(x)
    whole = [inputs] * 5
    singles = [inputs.rows(torch.tensor([k])) for _ in range(5) for k in range(2)]
    with pytest.warns(UserWarning, match="10 samples"):
        together, alone = health(model, whole, batched=True), health(model, singles, batched=True)
    if case.kind == "dynamic" or case.name == "vae":
        return  # what a layer is given depends on who else is in the batch, or on the numbers drawn for it
    common = [name for name in together.layers if name in alone.layers]
    assert len(common) > len(together.layers) / 2
    for name in common:
        a, b = together.of(name), alone.of(name)
        for key in ("dead", "saturated", "zero", "mean", "std"):
            assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-9, nan_ok=True), (name, key)


def test_what_is_refused():
    net, x = net_with(), normal(40, 4).double()
    with pytest.raises(errors.InputError, match="one sample cannot tell"):
        health(net, x[:1])
    with pytest.raises(errors.OptionError, match="double must be a correlation"):
        health(net, x, double=1.5)
    with pytest.raises(errors.OptionError, match="max_units must be"):
        health(net, x, max_units=0)
    with pytest.raises(errors.LayerNotFound):
        health(net, x, "9")
    with pytest.raises(errors.InputError, match="no layer can be read"):
        health(CASES["hf_bert"].build(), {"input_ids": torch.randint(1, 40, (4, 5))}, "bert.encoder.layer")
