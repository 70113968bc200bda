"""Largest singular values against dense Jacobians and closed forms, in float64."""

import pytest
import torch
from torch import nn

from layerlens import Lens, errors
from layerlens.analyzers.sensitivity import lipschitz
from layerlens.analyzers.sensitivity.local.lanczos import largest
from tests.analyzers.sensitivity.local.test_jacobian import capture_with_grad
from tests.cases import CASES, normal


def dense_sigma(model, x, layer):
    """sigma_max of each sample, from the whole Jacobian."""

    def output(sample):
        return capture_with_grad(model, sample.unsqueeze(0), layer).flatten()

    found = []
    for sample in x:
        matrix = torch.autograd.functional.jacobian(output, sample)
        found.append(torch.linalg.svdvals(matrix.reshape(matrix.shape[0], -1))[0])
    return torch.stack(found)


def test_a_linear_net_has_the_sigma_of_its_matrix_product():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10), nn.Linear(10, 5)).double()
    exact = lipschitz(net, normal(2, 30).double(), tolerance=0, iterations=30)
    quick = lipschitz(net, normal(2, 30).double())
    product = torch.eye(30).double()
    for row, layer in enumerate(net):
        product = layer.weight.detach() @ product
        sigma = float(torch.linalg.matrix_norm(product, 2))
        assert float(exact.values[row]) == pytest.approx(sigma, rel=1e-12)
        assert (1 - 1e-4) * sigma < float(quick.values[row]) <= sigma * (1 + 1e-12)
    assert float(exact.checks["residual"].max()) < 1e-12
    assert int(quick.checks["iterations"].max()) < 20


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_few_iterations_stay_below_and_never_fall_behind_power_iteration(iterations):
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Linear(40, 40)).double(), normal(1, 40).double()
    with pytest.warns(UserWarning, match="one start gives no standard error"):
        found = lipschitz(net, x, iterations=iterations, restarts=1, tolerance=0)
    matrix = net[0].weight.detach()
    v = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(iterations - 1):
        v = matrix.T @ (matrix @ v)
    power = float((matrix @ v).norm() / v.norm())
    assert power * (1 - 1e-9) <= float(found.values[0]) <= float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-12)
    history = found.checks["history"][0]
    assert bool((history.diff() >= -1e-12).all())


def test_an_unsettled_value_is_told():
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=r"layer 0 have not converged .* give more iterations"):
        lipschitz(nn.Sequential(nn.Linear(40, 40)), normal(1, 40), iterations=2)


@pytest.mark.parametrize("name, layer", [("mlp", "3"), ("cnn", "conv2"), ("depthwise", "2"), ("lstm", "rnn"),
                                         ("hf_vit", "classifier")])  # fmt: skip
def test_values_agree_with_the_dense_jacobian(name, layer):
    case = CASES[name]
    model, x = case.build().double(), case.example()
    if isinstance(x, dict):
        (x,) = x.values()
    x = x.double()
    profile = lipschitz(model, x, layer, tolerance=1e-6, iterations=60)
    torch.testing.assert_close(profile.checks["per sample"][0], dense_sigma(model, x, layer), rtol=1e-6, atol=0)
    assert float(profile.values[0]) == float(profile.checks["per sample"].max())


def test_many_layers_at_once_are_each_layer_alone():
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    together = lipschitz(model, x, iterations=60)
    for row, name in enumerate(together.layers):
        path, _, call = name.partition(" #")
        alone = lipschitz(model, x, path, iterations=60)
        assert float(together.values[row]) == pytest.approx(float(alone.values[int(call or 0)]), rel=1e-9)


def test_a_batch_is_its_samples():
    model, x = CASES["encoder"].build().double(), CASES["encoder"].example()
    together = lipschitz(model, x, "fc")
    for row in range(2):
        alone = lipschitz(model, {"ids": x["ids"][row : row + 1]}, "fc")
        torch.testing.assert_close(together.checks["per sample"][:, row], alone.values)


def test_relative_values_do_not_know_units():
    net, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double(), normal(1, 5).double()
    before = lipschitz(net, x, relative=True)
    with torch.no_grad():
        net[2].weight *= 10
    after = lipschitz(net, x, relative=True)
    torch.testing.assert_close(before.values, after.values)
    assert float(after.checks["absolute"][2]) > 5 * float(before.checks["absolute"][2])


def test_every_route_is_named_and_they_agree():
    for name, words in (
        ("mlp", "dual numbers"),
        ("lstm", "plain attention and recurrent kernels"),
        ("hf_llama", "plain"),
    ):
        case = CASES[name]
        model, x = case.build(), case.example()
        layer = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        assert words in lipschitz(model, x, layer).method
        model, x = model.double(), x.double() if torch.is_tensor(x) else x
        exact = lipschitz(model, x, layer, tolerance=1e-4)
        steps = lipschitz(model, x, layer, tolerance=1e-4, route="finite_differences")
        assert "dual numbers" in exact.method and "finite differences" in steps.method
        torch.testing.assert_close(exact.values, steps.values, rtol=1e-4, atol=0)


def test_a_layer_whose_gradient_is_not_its_own_is_left_out():
    class Reversed(torch.autograd.Function):  # of domain-adversarial training
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(Reversed.apply(self.a(x)))

    with pytest.warns(UserWarning, match="b: its backward pass does not belong to its forward pass"):
        profile = lipschitz(Net().double(), normal(1, 3).double())
    assert profile.layers == ("a",)


@pytest.mark.parametrize("mixed", [lambda h: h.flip(0), lambda h: h - h.mean(0)])
def test_a_layer_whose_samples_are_mixed_is_left_out_and_measured_alone(mixed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(mixed(torch.tanh(3 * self.a(x))))

    advice = r"b: samples influence each other in it, or .* give one sample, such as x\[:1"
    with pytest.warns(UserWarning, match=advice), pytest.warns(UserWarning, match="every change is run by itself"):
        profile = lipschitz(Net().double(), normal(3, 3).double(), layers=["a", "b"])
    assert profile.layers == ("a",)
    with pytest.warns(UserWarning, match="in a batch of 1 as given"):
        alone = lipschitz(Net().double(), normal(3, 3).double()[:1], layers=["a", "b"])
    assert alone.layers == ("a", "b")


def test_a_layer_that_does_not_respond_is_zero_and_the_null_differs():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.a(x) + self.b(torch.zeros_like(x))

    torch.manual_seed(0)
    profile = lipschitz(Deaf(), normal(1, 6), null=True)
    assert float(profile.values[1]) == 0 and float(profile.values[0]) > 0
    assert float(profile.null[0]) != float(profile.values[0])
    assert "lower bound" in profile.explain() and len(profile.explanation) == 2


def test_lanczos_keeps_what_a_row_found_first():
    matrices = torch.stack(
        [torch.diag(torch.tensor([5.0, 1, 1, 1])), torch.diag(torch.tensor([4.0, 3, 2, 1]))]
    ).double()

    def product(v):
        image = (matrices @ v.unsqueeze(2)).squeeze(2)
        return image, (image * v).sum(dim=1)

    found = largest(product, torch.ones(2, 4).double(), range(10), 10, 1e-9)
    assert found.used.tolist() == [2, 4]
    torch.testing.assert_close(found.value, torch.tensor([5.0, 4.0]).double())
    assert torch.equal(found.forms[:, 0], found.forms[:, 1])


def test_bad_options_are_named():
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    with pytest.raises(errors.OptionError, match="iterations must be a whole number of at least 1, got 0"):
        lipschitz(model, x, iterations=0)
    with pytest.raises(errors.OptionError, match="tolerance must be a number from 0 to below 1, got -1"):
        lipschitz(model, x, tolerance=-1)
    with pytest.raises(errors.LayerNotFound):
        lipschitz(model, x, "nothing")
    torch.testing.assert_close(Lens(model).lipschitz(x).values, lipschitz(model, x).values)
