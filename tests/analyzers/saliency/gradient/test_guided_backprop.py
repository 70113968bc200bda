"""Guided backprop and deconvnet: against captum where captum is right, by hand where it is not."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.saliency import deconvnet, gradient, guided_backprop
from tests.cases import CASES, normal

pytestmark = pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
OURS = {"guided_backprop": guided_backprop, "deconvnet": deconvnet}
THEIRS = {"guided_backprop": captum.attr.GuidedBackprop, "deconvnet": captum.attr.Deconvolution}


def modules():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip


class Functional(nn.Module):
    """The same layers, with ReLU called as a function, in place and from one module used twice."""

    def __init__(self, six=False):
        super().__init__()
        self.layers, self.relu, self.six = modules(), nn.ReLU(), six

    def forward(self, x):
        x = F.relu6(self.layers[0](x)) if self.six else F.relu_(self.layers[0](x))
        x = self.relu(self.layers[2](x)).flatten(1)
        return self.layers[7](self.relu(self.layers[5](x)))


def by_hand(model, x, index, method):
    """Backward layer by layer, with the rule written at each ReLU."""
    a, b, c, d = model.layers[0], model.layers[2], model.layers[5], model.layers[7]
    u = a(x)
    h = F.relu6(u) if model.six else F.relu(u)
    v = b(h)
    w = c(F.relu(v).flatten(1))
    open_ = {"guided_backprop": lambda z: (z > 0).double(), "deconvnet": torch.ones_like}[method]
    g = d.weight[index].expand(len(x), -1).clamp(min=0) * open_(w)
    g = (g @ c.weight).reshape(v.shape).clamp(min=0) * open_(v)
    g = F.conv_transpose2d(g, b.weight).clamp(min=0) * (
        ((u > 0) & (u < 6)).double() if model.six and method == "guided_backprop" else open_(u)
    )
    return F.conv_transpose2d(g, a.weight).detach()


@pytest.mark.parametrize("method", OURS)
def test_on_a_net_of_modules_it_is_captums(method):
    model, x = modules(), normal(2, 2, 8, 8).double()
    expected = THEIRS[method](model).attribute(x.clone().requires_grad_(), target=1)
    torch.testing.assert_close(OURS[method](model, x, target=1).values, expected)


@pytest.mark.parametrize("six", [False, True], ids=["relu", "relu6"])
@pytest.mark.parametrize("method", OURS)
def test_functions_reused_modules_and_relu6_count(method, six):
    model, x = Functional(six), 3 * normal(2, 2, 8, 8).double()
    expected = by_hand(model, x, 1, method)
    result = OURS[method](model, x, target=1)
    torch.testing.assert_close(result.values, expected)
    assert result.settings["rectifiers"] == 3
    plain = gradient(model, x, target=1).values
    assert not torch.allclose(plain, expected)


def test_captum_misses_a_rectifier_that_is_no_module():
    """Why ours takes over: hooks on modules see neither F.relu nor ReLU6, and say nothing."""
    model, x = Functional(), normal(2, 2, 8, 8).double()
    theirs = captum.attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=1)
    assert not torch.allclose(theirs, by_hand(model, x, 1, "guided_backprop"))


def test_a_model_without_rectifiers_is_warned_of():
    case = CASES["hf_vit"]
    with pytest.warns(UserWarning, match="no ReLU and no ReLU6"):
        result = guided_backprop(case.build(), case.example(), target=1)
    torch.testing.assert_close(result.tensor, gradient(case.build(), case.example(), target=1).tensor)
