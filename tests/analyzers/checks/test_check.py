"""All checks in one call: a verdict for each, and what to do."""

import pytest
import torch
from torch import nn

from layerlens import check, errors
from tests.analyzers.checks.test_check_gradient import Cancels
from tests.cases import CASES, normal


@pytest.mark.parametrize("name", CASES)
def test_the_zoo_passes(name):
    case = CASES[name]
    found = check(case.build(), case.example(), target=case.target)
    assert found.passed is True, found
    assert [row[0] for row in found.rows] == ["the ledger accounts for the score", "the gradient is right"]


def test_rounding_is_told_from_a_gap_by_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Cancels(), nn.Linear(6, 2))
    found = check(model, normal(1, 4), target=0)
    _, verdict, text, advice = found.rows[0]
    assert verdict is True and not advice and "in float64: rounding" in text


class Odd(torch.autograd.Function):
    """An operation with a right gradient and no rule: x^3."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cube(nn.Module):
    def forward(self, x):
        return Odd.apply(x)


@pytest.mark.filterwarnings("ignore:no relevance rule is known for Odd")
def test_an_operation_that_is_not_accounted_for_fails_in_float64_too():
    model = nn.Sequential(nn.Linear(4, 4), Cube(), nn.Linear(4, 2))
    found = check(model, normal(2, 4), target=0)
    (_, ledger, text, advice), (_, gradient, _, _) = found.rows
    assert ledger is False and "in float64: an operation is not accounted for" in text and "ledger.table()" in advice
    assert gradient is True and found.passed is False


def test_what_cannot_be_checked_is_unclear():
    found = check(nn.Sequential(nn.Linear(4, 2)), normal(2, 4), target=lambda output: output.detach().sum(1))
    assert found.passed is None
    assert all(row[1] is None and row[2] == "cannot be checked" for row in found.rows)
    with pytest.raises(errors.InputError):
        check("no model", normal(2, 4))
