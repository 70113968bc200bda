"""The engine on architecture families and real weights that it has never been told about."""

import copy

import pytest
import torch

from layerlens import errors, relevance
from layerlens.rules import Gamma, Kind, Part, Row, Rulebook, register
from tests.cases import normal, zero_additive
from tests.families import FAMILIES, family

GAMMA = Rulebook("gamma everywhere", linear=[(Part.ANY, Gamma(0.1))])


@pytest.mark.parametrize("rules", ["epsilon", "attn", GAMMA], ids=["epsilon", "attn", "gamma"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_ledger_accounts_for_the_whole_score(name, rules):
    model, x, target = family(name)
    result = relevance(model, x, target=target, rules=rules, strict=True)
    assert float(result.ledger.relative.max()) < 1e-5, result.ledger.table()[:10]
    assert result.ledger.by_sample or name in ("timesformer", "xlnet")  # which have time before the batch


@pytest.mark.parametrize("name", ["resnet", "vit", "bert", "gpt2", "llama"])
def test_relevance_is_conserved_when_nothing_is_added(name):
    model, x, target = family(name)
    result = relevance(zero_additive(model), x, target=target, rules="epsilon")
    assert float(result.ledger.gap.max()) < 1e-4


class OwnGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, g):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(torch.nn.functional.gelu(x, approximate="tanh"), x, g)[0]


def bloom_with_a_function_of_its_own():
    model, x, target = family("bloom")
    for block in model.transformer.h:
        block.mlp.gelu_impl.forward = OwnGelu.apply
    return model, x, target


def test_a_function_of_the_users_own_is_named():
    model, x, target = bloom_with_a_function_of_its_own()
    with pytest.raises(errors.UnknownOperation, match="no relevance rule is known for OwnGelu"):
        relevance(model, x, target=target, strict=True)


def test_a_rule_for_it_can_be_registered():
    def ratio(ctx, _):
        (x,) = ctx.saved_tensors
        return (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))) / 2, 0.0

    model, x, target = bloom_with_a_function_of_its_own()
    with register("OwnGelu", Row(Kind.RATIO, ratio)):
        result = relevance(model, x, target=target, strict=True)
        with pytest.raises(errors.OptionError, match="has a rule already"):
            register("OwnGelu", Row(Kind.LINEAR))
    assert float(result.ledger.relative.max()) < 1e-5
    assert result.rules_used["OwnGelu"] == "ratio f(x) / x"
    with pytest.raises(errors.UnknownOperation):
        relevance(model, x, target=target, strict=True)
    with pytest.raises(errors.OptionError, match="must be a Row"):
        register("OwnGelu", ratio)


@pytest.fixture(scope="module")
def efficientnet():
    from layerlens.demo.efficientnet import load_efficientnet

    return load_efficientnet()


@pytest.mark.slow
def test_efficientnet_with_its_trained_weights(efficientnet):
    result = relevance(efficientnet, normal(2, 3, 224, 224), strict=True)
    assert float(result.ledger.relative.max()) < 1e-5
    assert float(result.ledger.gap.max()) > 0.01  # its biases matter, and the ledger says so


@pytest.mark.slow
def test_efficientnet_conserves_the_score_once_its_biases_are_zero(efficientnet):
    result = relevance(zero_additive(copy.deepcopy(efficientnet)), normal(2, 3, 224, 224), strict=True, rules="epsilon")
    assert float(result.ledger.gap.max()) < 1e-4
