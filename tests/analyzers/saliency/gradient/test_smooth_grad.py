import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import gradient, smooth_grad
from layerlens.analyzers.saliency.gradient.smooth_grad import smooth_grad_squared, var_grad
from layerlens.errors import OptionError
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, normal


class Cubic(nn.Module):
    """The sum of x^3: E[gradient] = 3 (x^2 + s^2), so that the noise shows in the mean."""

    def forward(self, x):
        return (x**3).sum(dim=1, keepdim=True)


def test_expectation_on_a_cubic_and_its_standard_error():
    x = torch.tensor([[0.5, -1.0, 2.0, 1.0], [5.0, 5.5, 6.0, 5.2]]).double()
    result = smooth_grad(Cubic(), x, samples=20000, noise=0.2)
    spread = 0.2 * (x.amax(dim=1) - x.amin(dim=1))[:, None]
    expected = 3 * (x**2 + spread**2)
    error = result.checks["relative standard error"]
    assert (error < 0.02).all()
    miss = (result.tensor - expected).norm(dim=1) / expected.norm(dim=1)
    assert (miss < 4 * error).all()
    assert ((result.tensor - 3 * x**2)[0] > 0.2).all()  # not the plain gradient


def test_a_quadratic_keeps_its_gradient_up_to_the_mean_of_the_noise():
    a, x = normal(3, 3).double(), normal(1, 3, seed=2).double()

    class Quadratic(nn.Module):
        def forward(self, x):
            return (x @ a * x).sum(dim=1, keepdim=True)

    result = smooth_grad(Quadratic(), x, samples=10, noise=0.3, seed=4)
    generator = torch.Generator().manual_seed(4)
    noise = torch.stack([torch.randn(3, generator=generator) for _ in range(10)])
    expected = (x + 0.3 * (x.max() - x.min()) * noise.double().mean(dim=0)) @ (a + a.T)
    torch.testing.assert_close(result.tensor, expected)


def test_agrees_with_captums_noise_tunnel_on_one_sample():
    from captum.attr import NoiseTunnel, Saliency

    model, x = CASES["cnn"].build(), CASES["cnn"].example()[:1]
    torch.manual_seed(0)  # 192 normal numbers per copy: torch draws them alike in either order
    spread = 0.15 * float(x.max() - x.min())
    expected = NoiseTunnel(Saliency(model)).attribute(
        x.clone().requires_grad_(), nt_samples=6, nt_samples_batch_size=1, stdevs=spread, target=2, abs=False
    )
    torch.testing.assert_close(smooth_grad(model, x, target=2, samples=6).tensor, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "encoder", "two_inputs", "gru"])
def test_the_batch_size_and_the_batch_do_not_matter(name):
    case = CASES[name]
    given = as_inputs(case.example()).map(lambda t: t.double() if t.is_floating_point() else t)
    model = case.build().double()
    both = smooth_grad(model, given, target=[1, 2], samples=5)
    for options in ({"batch_size": 1}, {"batch_size": 4}):
        for k in range(2):
            alone = smooth_grad(model, given.rows(torch.tensor([k])), target=[k + 1], samples=5, **options)
            for key, value in (both.values if isinstance(both.values, dict) else {"": both.values}).items():
                torch.testing.assert_close(value[k], (alone.values[key] if key else alone.values)[0])
            torch.testing.assert_close(
                alone.checks["relative standard error"][0], both.checks["relative standard error"][k]
            )


def test_without_noise_it_is_the_gradient_and_magnitude_is_its_size():
    case = CASES["cnn"]
    plain = gradient(case.build(), case.example(), target=2)
    torch.testing.assert_close(
        smooth_grad(case.build(), case.example(), target=2, noise=0, samples=2).values, plain.values
    )
    size = smooth_grad(case.build(), case.example(), target=2, noise=0, samples=1, magnitude=True)
    torch.testing.assert_close(size.values, plain.values.abs())
    assert not size.signed and size.checks == {} and size.settings["samples"] == 1


def test_the_seed_decides_and_the_callers_generator_is_left_alone():
    case = CASES["mlp"]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (smooth_grad(case.build(), case.example(), target=1, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.tensor, again.tensor) and not torch.equal(first.tensor, other.tensor)


def test_a_constant_sample_gets_no_noise_and_says_so():
    with pytest.warns(UserWarning, match=r"a sample is constant"):
        smooth_grad(nn.Linear(2, 1), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("options", "text"),
    [({"samples": 0}, "samples must be"), ({"noise": -1}, "noise must be"), ({"batch_size": 0}, "batch_size must be")],
)
def test_bad_options_are_errors(options, text):
    with pytest.raises(OptionError, match=text):
        smooth_grad(CASES["mlp"].build(), CASES["mlp"].example(), **options)


def test_squares_and_variances_of_a_square_in_closed_form():
    """S = sum x^2 has the gradient 2 (x + e): its mean square is 4 (x^2 + s^2), its variance 4 s^2."""

    class Squares(nn.Module):
        def forward(self, x):
            return x.square().sum(dim=1, keepdim=True)

    x = torch.tensor([[1.0, 3.0]]).double()
    options = {"samples": 20000, "noise": 0.25}  # of a range of 2
    squared, varied = smooth_grad_squared(Squares(), x, **options), var_grad(Squares(), x, **options)
    torch.testing.assert_close(squared.tensor, 4 * (x.square() + 0.25), rtol=0.03, atol=0)
    torch.testing.assert_close(varied.tensor, torch.full_like(x, 1.0), rtol=0.03, atol=0)
    assert not squared.signed and not varied.signed and squared.units == "squared score per unit of input"
    plain = smooth_grad(Squares(), x, **options)
    torch.testing.assert_close(squared.tensor - plain.tensor.square(), varied.tensor, rtol=1e-4, atol=0)


def test_the_standard_error_is_that_of_many_runs():
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    runs = [smooth_grad(model, x, target=1, samples=8, seed=seed) for seed in range(400)]
    spread = torch.stack([run.tensor for run in runs]).std(dim=0)
    told = torch.stack([run.standard_error.square() for run in runs]).mean(dim=0).sqrt()
    torch.testing.assert_close(told, spread, rtol=0.2, atol=1e-4)
    with pytest.raises(OptionError, match="samples=2"):
        var_grad(model, x, target=1, samples=1)


def test_the_variance_of_a_large_slope_is_not_lost_to_rounding():
    class Bent(nn.Module):
        def forward(self, x):
            return (1000 * x + 0.01 * x.square()).sum(dim=1, keepdim=True)

    x = torch.tensor([[2.0, 5.0]])
    wide = var_grad(Bent(), x.double(), target=0).tensor
    torch.testing.assert_close(var_grad(Bent(), x, target=0).tensor.double(), wide, rtol=0.01, atol=0)
