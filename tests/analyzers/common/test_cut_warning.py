"""A gradient that leaves out what the model cuts is said by the methods that use it; a cut without effect is not."""

import warnings

import pytest
import torch
from torch import nn

from layerlens import saliency
from tests.analyzers.relevance.test_cuts import CUTS, Equilibrium, PartlyCut
from tests.cases import normal

METHODS = {
    "gradient": {},
    "input_x_gradient": {},
    "smooth_grad": {"samples": 3},
    "integrated_gradients": {"tolerance": 1e9},
    "gradient_shap": {},
}
X = normal(2, 4)


def said(model, method, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saliency(model, X, method=method, target=0, **options)
    return [str(one.message) for one in caught if "cuts a signal" in str(one.message)]


@pytest.mark.parametrize("name", CUTS)
def test_every_kind_of_cut_is_said(name):
    torch.manual_seed(0)
    (text,) = said(PartlyCut(CUTS[name]), "gradient")
    assert name.split(",")[0] in text and "check_gradient(model, x) names the layer" in text


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_point_without_gradients_is_said_once_by_every_method(method):
    torch.manual_seed(0)
    (text,) = said(Equilibrium(), method, **METHODS[method])
    assert "by torch.no_grad()" in text


class Softmax(nn.Module):
    """A softmax that subtracts the detached maximum: the gradient is right all the same."""

    def forward(self, x):
        return torch.softmax(x - x.max(dim=-1, keepdim=True).values.detach(), dim=-1)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_cut_without_effect_is_not_said(method):
    torch.manual_seed(0)
    assert not said(nn.Sequential(nn.Linear(4, 5), Softmax(), nn.Linear(5, 2)), method, **METHODS[method])
