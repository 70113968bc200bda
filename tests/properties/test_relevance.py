"""The ledger of relevance closes, and relevance is gradient x input where both are the same."""

import pytest
import torch

import layerlens
from layerlens.analyzers.relevance.rules.rulebook import RULEBOOKS
from layerlens.errors import RelevanceError
from tests.oracles import gradient_times_input

from .networks import assume, for_networks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:relevance. .*zero")]

CLOSED = 1e-9
"""Largest residual, relative to the largest amount at stake, in float64."""

REFUSED = ("measures a size", "a first-layer rule (flat, w2, z-box) is used")
"""By nature: no relevance passes a standard deviation, and a first-layer rule needs the input as it is."""


@for_networks(70, rules=["auto", *RULEBOOKS])
def test_the_ledger_closes(network, rules):
    """inputs + additive + absorbed = score, for each sample, each rulebook and each operation."""
    model, x = network.model(), network.x()
    try:
        result = layerlens.relevance(model, x, target=network.target, rules=rules, strict=True, layers=None)
    except RelevanceError as error:
        assume(not any(reason in str(error) for reason in REFUSED))
        raise
    ledger = result.ledger
    assert ledger.by_sample
    torch.testing.assert_close(ledger.score, model(x)[:, network.target].detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ledger.inputs, result.tensor.flatten(1).sum(1), rtol=1e-9, atol=1e-12)
    assert float(ledger.relative.max()) < CLOSED


@for_networks(50, pieces=True, start="numbers")
def test_relevance_is_gradient_times_input(network):
    """For linear pieces, in the limit epsilon -> 0; without biases, it sums to the score."""
    model, x = network.model(), network.x()
    result = layerlens.relevance(model, x, target=network.target, rules="epsilon")
    leaf = x.clone().requires_grad_()
    score = model(leaf.clone())[:, network.target]
    torch.testing.assert_close(result.tensor, gradient_times_input(score, leaf), rtol=1e-9, atol=1e-10)
    if not network.biases:
        torch.testing.assert_close(result.ledger.inputs, score.detach(), rtol=1e-9, atol=1e-10)
