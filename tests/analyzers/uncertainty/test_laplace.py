"""Draws of the last layer by laplace-torch, against the posterior of a Bayesian regression in closed form."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.demo.embedded import load_digit_net
from layerlens.demo.train_digits import make_scenes, split_digits
from layerlens.errors import InputError, OptionError
from tests.cases import normal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def needs_laplace():
    """Looked for when a test runs: the fast tests collect this file where requirements-models.txt is not installed."""
    pytest.importorskip("laplace")


def test_it_is_the_posterior_of_a_bayesian_linear_regression():
    """Weights have the covariance (A^T A / s^2 + l I)^-1, A with a column of ones (Bishop 2006, eq. 3.54)."""
    x, precision, sigma = normal(60, 5).double(), 2.0, 0.5
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]).double() + sigma * normal(60, seed=1).double()
    rows = torch.cat([x, torch.ones(60, 1).double()], dim=1)
    covariance = torch.linalg.inv(rows.T @ rows / sigma**2 + precision * torch.eye(6).double())
    mean = covariance @ rows.T @ y / sigma**2
    net = nn.Sequential(nn.Identity(), nn.Linear(5, 1)).double()
    net[1].weight.data, net[1].bias.data = mean[None, :5].clone(), mean[5:].clone()
    before = [(one, one.data_ptr(), one.clone()) for one in net.parameters()]
    explained, draws = normal(1, 5, seed=2).double(), 400
    posterior = {"prior_precision": precision, "sigma_noise": sigma, "hessian_structure": "full"}
    found = layerlens.model_uncertainty(
        net, explained, models="laplace", training=layerlens.Data(x, labels=y.tolist()), posterior=posterior,
        method="input_x_gradient", draws=draws,
    )  # fmt: skip
    true = covariance.diag()[:5].sqrt() * explained.abs()
    assert ((found.deviation / true) - 1).abs().max() < 4 / (2 * draws) ** 0.5
    assert ((found.tensor - mean[:5] * explained).abs() < 4 * true / draws**0.5).all()
    for (one, place, bits), now in zip(before, net.parameters(), strict=True):
        assert now is one and now.data_ptr() == place and torch.equal(now, bits) and now.requires_grad


def test_weights_are_put_back_after_an_error():
    net = nn.Linear(3, 2)
    before, calls = net.weight.clone(), []
    x = normal(30, 3)

    def forward(model, given):
        if not torch.equal(model.weight, before):
            calls.append(given)
            raise RuntimeError("stop")
        return model(given)

    data = layerlens.Data(x, labels=(x[:, 0] > 0).long().tolist())
    with pytest.raises((RuntimeError, layerlens.errors.LayerLensError)):
        layerlens.model_uncertainty(
            nn.Sequential(net), x[:1], models="laplace", training=data, method="gradient",
            forward=lambda model, given: forward(model[0], given),
        )  # fmt: skip
    assert calls and torch.equal(net.weight, before)


def test_more_data_settles_more_of_a_trained_network():
    """Of a real network that was trained on these digits: the deviation falls with the number of labels."""
    net = load_digit_net()
    images, labels, _ = make_scenes(split_digits(0)[0], range(201), seed=5)
    images = images.float() / 255
    deviations = []
    for count in (20, 200):
        training = layerlens.Data(images[:count], labels=labels[:count].tolist())
        found = layerlens.model_uncertainty(
            net, images[-1:], models="laplace", training=training, posterior={"prior_precision": 10.0},
            method="input_x_gradient", draws=8,
        )  # fmt: skip
        deviations.append(float(found.deviation.norm()))
    assert 0 < deviations[1] < deviations[0]


def test_models_without_a_last_linear_layer_and_labels_that_do_not_fit_are_refused():
    x = normal(8, 3)
    data = layerlens.Data(x, labels=[0, 1] * 4)

    def run(*layers, **changes):
        layerlens.model_uncertainty(nn.Sequential(*layers), x, **{"models": "laplace", "training": data, **changes})

    with pytest.raises(InputError, match="is not that of a linear layer"):
        run(nn.Linear(3, 2), nn.Softmax(dim=1))
    with pytest.raises(InputError, match="training=Data"):
        run(nn.Linear(3, 2), training=x)
    with pytest.raises(InputError, match="for one logit"):
        run(nn.Linear(3, 1))
    with pytest.raises(InputError, match="give class indices"):
        run(nn.Linear(3, 2), training=layerlens.Data(x, labels=["a"] * 8))
    with pytest.raises(InputError, match=r"one for each of 2 output\(s\); got 1 for each sample. Classes are whole"):
        run(nn.Linear(3, 2), training=layerlens.Data(x, labels=[0.0, 1.0] * 4))
    with pytest.raises(InputError, match=r"whole numbers from 0 to 1.*got 0 to 7"):
        run(nn.Linear(3, 2), training=layerlens.Data(x, labels=[0, 7] * 4))
    with pytest.raises(OptionError, match=r"what laplace.Laplace does not take: .*'precision'"):
        run(nn.Linear(3, 2), posterior={"precision": 1})
    with pytest.raises(InputError, match=r"are computed from .*weight norm"):
        run(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    shared = nn.Linear(3, 3)
    with pytest.raises(InputError, match="called 2 times"):
        run(shared, nn.Tanh(), shared)
    last = nn.Linear(3, 3, bias=False)
    last.weight = shared.weight
    with pytest.raises(InputError, match="'2' shares its weights with '0', which draws of them would change as well"):
        run(shared, nn.Tanh(), last, training=layerlens.Data(x, labels=[0, 1] * 4))


def test_short_numbers_do_not_end_the_process():
    """laplace-torch exits where it cannot decompose a matrix of bfloat16; draws are of the same layer in float32."""
    net, x = nn.Sequential(nn.Linear(4, 3)).bfloat16(), normal(6, 4).bfloat16()
    options = {"models": "laplace", "target": 0, "method": "gradient", "draws": 4}
    found = layerlens.model_uncertainty(net, x[:1], training=layerlens.Data(x, labels=[0, 1, 2] * 2), **options)
    longer = layerlens.Data(x.float(), labels=[0, 1, 2] * 2)
    exact = layerlens.model_uncertainty(net.float(), x[:1].float(), training=longer, **options)
    assert found.tensor.dtype is torch.bfloat16
    torch.testing.assert_close(found.deviation.float(), exact.deviation, rtol=0.02, atol=0.01)
