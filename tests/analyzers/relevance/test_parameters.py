"""Relevance of parameters: what of the score passes each weight, contribution by contribution."""

import pytest
import torch
from torch import nn

from layerlens import Rulebook, errors, relevance
from layerlens.rules import AlphaBeta, Gamma, ZPlus
from tests.cases import CASES, double
from tests.snapshot import Snapshot


def contributions(rule, x, w, b, relevance):
    """(sample, in, out): relevance that passes each weight of z_j = sum_i x_i w_ij + b_j, one number at a time."""
    z = x[:, :, None] * w.t()[None]
    plus, minus = z.clamp(min=0), z.clamp(max=0)
    b_plus, b_minus = b.clamp(min=0), b.clamp(max=0)
    if rule is None:
        return z / (z.sum(1) + b)[:, None] * relevance[:, None]
    if isinstance(rule, ZPlus):
        return plus / (plus.sum(1) + b_plus)[:, None] * relevance[:, None]
    if isinstance(rule, AlphaBeta):
        first = plus / (plus.sum(1) + b_plus)[:, None]
        return (rule.alpha * first - rule.beta * minus / (minus.sum(1) + b_minus)[:, None]) * relevance[:, None]
    up, bias = z + rule.gamma * plus, b + rule.gamma * b_plus
    down, bias_down = z + rule.gamma * minus, b + rule.gamma * b_minus
    y = z.sum(1) + b
    above = up / (up.sum(1) + bias)[:, None]
    below = down / (down.sum(1) + bias_down)[:, None]
    return torch.where(y[:, None] > 0, above, below) * relevance[:, None]


@pytest.mark.parametrize("rule", [None, ZPlus(), AlphaBeta(2, 1), Gamma(0.25)], ids=str)
@pytest.mark.parametrize("signed", [True, False])
def test_relevance_of_weights_is_the_sum_of_their_contributions(rule, signed):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    x = x if signed else x.abs()
    book = "epsilon" if rule is None else Rulebook("one", linear=(("0", rule),))
    result = relevance(net, x, target=0, rules=book, layers="0", parameters="0.weight")
    (out,) = result.layers["0"]
    parts = contributions(rule, x, net[0].weight.detach(), net[0].bias.detach(), out)
    torch.testing.assert_close(result.parameters["0.weight"], parts.sum(0).t(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.values, parts.sum(2), rtol=1e-9, atol=1e-12)


ADDED = {  # the parameters that a model adds to its signal
    "mlp": ["*bias"],
    "lstm": ["*bias*"],
    "hf_vit": ["*bias", "*cls_token", "*position_embeddings"],
    "hf_gpt2": ["*bias", "*wpe.weight"],
}


@pytest.mark.parametrize("name", ADDED)
def test_relevance_of_what_is_added_is_what_the_ledger_books(name):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    result = relevance(model, x, target=case.target, rules="epsilon", parameters=ADDED[name])
    found = sum(values.sum() for values in result.parameters.values())
    torch.testing.assert_close(found, result.ledger.additive.sum(), rtol=1e-8, atol=1e-10)


def test_a_convolution_passes_all_relevance_through_its_weights():
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double().eval()
    )
    net[1].running_mean.normal_(), net[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for rules in ("epsilon", "epsilon_plus"):
        result = relevance(net, x, target=1, rules=rules, parameters="0.weight")
        assert result.parameters["0.weight"].shape == net[0].weight.shape
        torch.testing.assert_close(result.parameters["0.weight"].sum(), result.values.sum(), rtol=1e-9, atol=1e-12)


def test_what_a_rule_does_not_define_is_refused():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.randn(2, 2, 6, 6)
    for parameters in ("0.bias", "1.weight", "*"):
        before = Snapshot(net, x)
        with pytest.raises(errors.RelevanceError, match="does not define the relevance of this parameter"):
            relevance(net, x, target=1, rules="epsilon_plus", parameters=parameters)
        before.check()
    with pytest.raises(errors.RelevanceError, match="those of a first layer for none"):
        relevance(net, x, target=1, rules="epsilon_plus_flat", parameters="0.weight")
    with pytest.raises(errors.LayerNotFound, match=r"'0\.wieght' matches no parameter of Sequential.*0\.weight"):
        relevance(net, x, target=1, parameters="0.wieght")


def test_frozen_and_unused_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    x = torch.randn(2, 3)
    before = Snapshot(net, x)
    result = relevance(net, x, target=0, rules="gate", parameters=["*weight", "unused"])
    before.check()
    assert list(result.parameters) == ["unused", "0.weight", "2.weight"]
    assert not result.parameters["unused"].any()
    assert result.parameters["0.weight"].any()
