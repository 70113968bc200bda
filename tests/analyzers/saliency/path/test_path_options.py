import math

import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import saliency
from layerlens.analyzers.saliency.path.completeness import quadrature
from layerlens.errors import OptionError
from tests.cases import CASES, normal

RIEMANN = ("riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid")
FIXED = {"steps": 10, "max_steps": 10, "tolerance": math.inf}


class Product(nn.Module):
    """Takes two inputs; every layer runs as a module, as captum's DeepLIFT needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x, z):
        return self.head(self.act(self.a(x) + self.b(z)))


@pytest.fixture
def product():
    torch.manual_seed(0)
    return Product(), normal(2, 3), normal(2, 2, seed=1)


@pytest.mark.parametrize("rule", RIEMANN)
def test_riemann_sums_are_those_of_captum(rule):
    from captum.attr import IntegratedGradients, InternalInfluence

    model, x = CASES["cnn"].build(), CASES["cnn"].example()
    # captum's weights of a trapezoid sum to (n - 1) / n, so that a linear model misses S(x) - S(x') by a tenth
    factor = 10 / 9 if rule == "riemann_trapezoid" else 1
    expected = IntegratedGradients(model).attribute(x, target=1, n_steps=10, method=rule) * factor
    found = saliency(model, x, target=1, method="integrated_gradients", quadrature=rule, **FIXED)
    torch.testing.assert_close(found.tensor, expected, rtol=1e-4, atol=1e-7)
    layer = model.get_submodule("pool")
    expected = InternalInfluence(model, layer).attribute(x, target=1, n_steps=10, method=rule) * factor
    found = saliency(model, x, target=1, method="internal_influence", where="pool", steps=10, quadrature=rule)
    torch.testing.assert_close(found.tensor, expected, rtol=1e-4, atol=1e-7)


def test_weights_sum_to_one_and_unknown_rules_are_refused():
    for rule in (*RIEMANN, "gausslegendre"):
        places, weights = quadrature(7, rule)
        assert float(weights.sum()) == pytest.approx(1) and 0 <= float(places.min()) <= float(places.max()) <= 1
    with pytest.raises(OptionError, match="riemann_left"):
        saliency(nn.Linear(3, 2), normal(2, 3), target=0, method="integrated_gradients", quadrature="left")
    with pytest.raises(OptionError, match="steps=2"):
        quadrature(1, "riemann_trapezoid")


@pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward, backward hooks")
def test_local_attributions_are_captums_and_are_known_where_the_input_is_the_baseline(product):
    from captum.attr import DeepLift, DeepLiftShap, IntegratedGradients

    model, x, z = product
    base = (torch.cat([x[:, :1], torch.zeros(2, 2)], dim=1), torch.ones(2, 2))  # x - x' = 0 in the first column
    named = {"0": base[0], "1": base[1]}
    for method, captums in (
        ("integrated_gradients", IntegratedGradients(model, multiply_by_inputs=False)),
        ("deep_lift", DeepLift(model, multiply_by_inputs=False)),
    ):
        expected = captums.attribute((x, z), base, target=1)
        found = saliency(model, (x, z), target=1, method=method, baseline=named, multiply_by_inputs=False)
        for name, one in zip("01", expected, strict=True):
            torch.testing.assert_close(found.values[name], one, rtol=2e-2, atol=1e-3)  # captum's 50 steps cross a kink
        assert found.units == "score per unit of input" and (found.values["0"][:, 0] != 0).all()
        whole = saliency(model, (x, z), target=1, method=method, baseline=named)
        product_of = found.values["1"] * (z - base[1])
        torch.testing.assert_close(whole.values["1"], product_of)
        assert (found.checks["completeness gap"] == whole.checks["completeness gap"]).all()
    references = (normal(3, 3, seed=5), normal(3, 2, seed=6))
    expected = DeepLiftShap(model, multiply_by_inputs=False).attribute((x, z), references, target=1)
    found = saliency(
        model, (x, z), target=1, method="deep_shap", baselines=dict(zip("01", references, strict=True)),
        multiply_by_inputs=False,
    )  # fmt: skip
    for name, one in zip("01", expected, strict=True):
        torch.testing.assert_close(found.values[name], one)


@pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward, backward hooks")
def test_own_functions_of_the_multipliers_are_those_of_captum(product):
    from captum.attr import DeepLift, DeepLiftShap

    model, x, z = product

    def squared(multipliers, inputs, baselines):
        return tuple(m * (i - b) ** 2 for m, i, b in zip(multipliers, inputs, baselines, strict=True))

    def alone(multipliers):
        return tuple(m.abs() for m in multipliers)

    references = (normal(3, 3, seed=5), normal(3, 2, seed=6))
    for function in (squared, alone):
        expected = DeepLift(model).attribute((x, z), target=0, custom_attribution_func=function)
        found = saliency(model, (x, z), target=0, method="deep_lift", custom_attribution_func=function)
        several = DeepLiftShap(model).attribute((x, z), references, target=0, custom_attribution_func=function)
        mean = saliency(
            model, (x, z), target=0, method="deep_shap", baselines=dict(zip("01", references, strict=True)),
            custom_attribution_func=function,
        )  # fmt: skip
        for name, one, other in zip("01", expected, several, strict=True):
            torch.testing.assert_close(found.values[name], one)
            torch.testing.assert_close(mean.values[name], other)
        assert found.settings["custom_attribution_func"] == function.__name__
    for function, text in ((lambda a, b, c, d: a, "must be a function"), (lambda m: m[:1], "shaped like each input")):
        with pytest.raises(OptionError, match=text):
            saliency(model, (x, z), target=0, method="deep_lift", custom_attribution_func=function)
    with pytest.raises(OptionError, match="give one"):
        saliency(model, (x, z), target=0, method="deep_lift", custom_attribution_func=alone, multiply_by_inputs=False)


class Cubic(nn.Module):
    def forward(self, x):
        return (x**3).sum(dim=1, keepdim=True)


def test_gradient_shap_with_noise_on_the_input_in_closed_form():
    x, options = torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double(), {"baselines": torch.zeros(1, 2), "samples": 4000}
    state = torch.get_rng_state()
    found = saliency(Cubic(), x, method="gradient_shap", stdevs=0.5, **options)
    # E (x + e) 3 a^2 (x + e)^2 = E (x + e)^3 = x^3 + 3 x s^2
    assert ((found.tensor - (x**3 + 0.75 * x)).abs() < 5 * found.standard_error).all()
    assert (found.checks["completeness gap"] < 0.05).all() and torch.equal(torch.get_rng_state(), state)
    local = saliency(Cubic(), x, method="gradient_shap", stdevs={"x": 0.5}, multiply_by_inputs=False, **options)
    assert ((local.tensor - (x**2 + 0.25)).abs() < 5 * local.standard_error).all()  # E 3 a^2 (x + e)^2
    torch.testing.assert_close(local.checks["completeness gap"], found.checks["completeness gap"])
    one = saliency(Cubic(), x[1:], method="gradient_shap", stdevs=0.5, batch_size=64, **options)
    torch.testing.assert_close(one.tensor, found.tensor[1:])
