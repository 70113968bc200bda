"""The gradient of torch against finite differences: what is wrong is named, what is right passes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import Lens, check_gradient, errors
from tests.analyzers.relevance.test_cuts import CUTS, Equilibrium, PartlyCut
from tests.cases import CASES, case_names, normal


class Wrong(torch.autograd.Function):
    """x^2, with 3 x for its derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] * g


class Square(nn.Module):
    def forward(self, x):
        return Wrong.apply(x)


class Block(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.norm, self.square, self.out = nn.LayerNorm(4), square, nn.Linear(4, 4)

    def forward(self, x):
        return x + self.out(self.square(self.norm(x)))


def net(square):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Block(nn.Tanh()), Block(square), nn.ReLU(), nn.Linear(4, 3)).eval()


X = normal(2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_with_a_wrong_backward_pass_is_named(dtype):
    found = check_gradient(net(Square()).to(dtype), X.to(dtype), target=0)
    assert found.passed is False
    assert [(one.layer, one.cause) for one in found.wrong] == [("2.square", "the backward pass of Wrong")]
    assert "wrong layers: 2.square (the backward pass of Wrong)" in repr(found)
    verdicts = {one.layer: one.passed for one in found.layers}
    assert verdicts["1"] is verdicts["4"] is verdicts["2.out"] is True


@pytest.mark.parametrize("name", case_names)
def test_the_gradients_of_the_zoo_are_right_layer_by_layer(name):
    case = CASES[name]
    found = check_gradient(case.build(), case.example(), target=case.target, layers=None)
    assert found.passed is True, found
    assert found.layers and not found.wrong and all(one.passed for one in found.layers)
    assert float(found.gap.max()) < 1e-4


def test_a_wrong_step_outside_of_all_layers_is_the_models_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.tanh(Wrong.apply(self.a(x))))

    found = check_gradient(Own(), X, target=1)
    assert [one.layer for one in found.wrong] == [""]
    assert "Wrong" in found.wrong[0].cause
    assert "the model itself" in repr(found)


def test_a_wrong_operation_is_told_from_the_right_ones_next_to_it(monkeypatch):
    class Own(nn.Module):
        def forward(self, x):
            return F.silu(torch.tanh(F.gelu(x)))

    right = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: right(x) + 0.5 * (x - x.detach()))  # the same value, another gradient
    assert check_gradient(nn.Sequential(nn.Linear(4, 4), Own()), X, target=0).wrong[0].layer == "1"


@pytest.mark.parametrize("name", CUTS)
def test_a_signal_that_is_cut_is_named(name):
    torch.manual_seed(0)
    found = check_gradient(nn.Sequential(PartlyCut(CUTS[name]), nn.Linear(3, 3)), X, target=0)
    assert found.passed is False
    (wrong,) = found.wrong
    assert wrong.layer == "0" and wrong.cause.startswith("a signal is cut by")


def test_a_fixed_point_found_without_gradients_is_named():
    torch.manual_seed(0)
    found = check_gradient(Equilibrium(), X, target=0)
    assert [(one.layer, one.cause) for one in found.wrong] == [("", "a signal is cut by torch.no_grad()")]


def test_batch_norm_of_one_sample_agrees_with_the_rule_written_by_hand():
    """The kernel of torch 2.13 and 2.14 reads a gradient in another memory layout as if it were in its own."""
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)  # (batch, place, channel)

    norm = nn.BatchNorm2d(5)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1), norm, Tokens(), nn.Linear(5, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 2)
    )
    norm.running_var.copy_(torch.arange(1.0, 6.0))
    model.eval().requires_grad_(False)
    x = normal(1, 3, 4, 4).requires_grad_()
    (own,) = torch.autograd.grad(model(x)[0, 0], x)
    h = model[0](x)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    normed = (h - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    (by_hand,) = torch.autograd.grad(model[2:](normed)[0, 0], x)
    found = check_gradient(model, x.detach(), target=0)
    right = torch.allclose(own, by_hand, rtol=1e-3, atol=1e-6)
    assert found.passed is right
    assert right or [(one.layer, one.cause) for one in found.wrong] == [("1", "the backward pass of batch_norm")]
    assert check_gradient(model, normal(2, 3, 4, 4), target=0, layers=None).passed is True


class Mixing(nn.Module):
    """Statistics of the batch, then a layer whose gradient is right or wrong."""

    def __init__(self, last):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 6), last

    def forward(self, x):
        h = self.layer(x)
        return self.last(F.batch_norm(h, None, None, training=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_influence_each_other_are_no_fault(dtype):
    torch.manual_seed(0)
    x = normal(3, 4).to(dtype)
    assert check_gradient(Mixing(nn.Tanh()).to(dtype), x, target=0).passed
    assert check_gradient(Mixing(Square()).to(dtype), x, target=0).passed is False


def test_ties_and_kinks_are_no_faults():
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    flat = torch.zeros(2, 1, 8, 8)
    flat[:, :, 2:5, 2:5] = 0.5  # most places are equal, so most maxima are of equal numbers
    for x in (flat, torch.full((2, 1, 8, 8), 0.3), torch.zeros(2, 1, 8, 8)):
        assert check_gradient(pooled, x, target=0, layers=None).passed is True


def test_without_float64_large_errors_are_found():
    class Single(nn.Module):
        def __init__(self, square):
            super().__init__()
            self.net = net(square)

        def forward(self, x):
            return self.net(x.to(torch.float32)) @ self.net[4].weight.new_ones(3, 3, dtype=torch.float32)

    def refuses(model, x):
        if x.dtype is torch.float64:
            raise TypeError("this model takes float32")
        return model(x)

    right, wrong = (check_gradient(net(one), X, target=0, forward=refuses) for one in (nn.Softplus(), Square()))
    assert right.method == "differences in float32: the model does not run in float64 (this model takes float32)"
    assert right.passed is not False and wrong.passed is False
    assert [one.layer for one in wrong.wrong] == ["2.square"]


class Cancels(nn.Module):
    """x, with a large number added and subtracted again."""

    def forward(self, x):
        return (x + 3e5 * x.sum(1, keepdim=True)) - 3e5 * x.sum(1, keepdim=True)


def test_rounding_is_distinguished_from_a_fault():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), Cancels(), nn.Linear(6, 2)), normal(1, 4)
    (wrong,) = check_gradient(model, x, target=0).wrong
    assert (wrong.layer, wrong.cause) == ("1", "rounding in float32: in float64 it is right")
    assert check_gradient(model.double(), x.double(), target=0).passed is True


def test_numbers_that_are_converted_stay_in_float64():
    class Norm(nn.Module):
        def forward(self, x):
            h = x.to(torch.float32) / x.float().square().mean(-1, keepdim=True).sqrt()
            return torch.softmax(h, -1, dtype=torch.float32).to(x.dtype)

    found = check_gradient(nn.Sequential(nn.Linear(4, 4), Norm(), nn.Linear(4, 2)), X, target=0)
    assert found.method == "differences in float64" and float(found.gap.max()) < 1e-5


def test_the_model_the_input_and_the_generators_stay_as_they_are():
    model, x = net(Square()).train(), X.clone()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_gradient(model, x, target=0, layers=None)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(x, X) and torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_result_is_data(tmp_path):
    found = check_gradient(net(Square()), X, target=0, directions=3, seed=1)
    assert found.gradient.shape == found.difference.shape == found.gap.shape == (3, 2)
    again = check_gradient(net(Square()), X, target=0, directions=3, seed=1)
    assert torch.equal(found.gap, again.gap)
    assert len(found.to_pandas()) == 6 and found.table()[0][:3] == ("0", "Linear", "pass")
    assert found.plot().data["values"].shape == (len(found.layers), 1)
    loaded = type(found).load(found.save(tmp_path / "check"))
    assert loaded.wrong[0].layer == "2.square"
    some = check_gradient(net(Square()), X, target=0, layers="2.*")
    assert {one.layer for one in some.layers} == {"2.norm", "2.square", "2.out"}
    with pytest.raises(errors.OptionError, match="no layer was checked by itself"):
        check_gradient(net(nn.Tanh()), X, target=0).profile()


def test_wrong_calls():
    for options, text in (({"directions": 0}, "directions"), ({"tolerance": 0}, "tolerance must be above 0")):
        with pytest.raises(errors.OptionError, match=text):
            check_gradient(net(nn.Tanh()), X, target=0, **options)
    with pytest.raises(errors.LayerNotFound):
        check_gradient(net(nn.Tanh()), X, target=0, layers="nowhere")
    with pytest.raises(errors.TargetError, match="no gradient flows"):
        check_gradient(nn.Linear(4, 2), X, target=lambda output: output.round().detach().sum(1))


def test_the_lens_reads_texts_and_names():
    lens = Lens(net(Square()), class_names=["a", "b", "c"])
    assert lens.check_gradient(X, target="b").target == "b"
    with pytest.warns(UserWarning, match="no relevance rule is known for Wrong"):
        checks = lens.check(X, target="b")
    assert checks.passed is False and checks.gradient is not None
    assert "the gradient is right: FAIL" in repr(checks) and "2.square" in repr(checks)
    assert checks.to_pandas().shape == (len(checks.rows), 5)
