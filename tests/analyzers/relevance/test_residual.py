"""Where the warning of a ledger that does not close starts, and what it advises."""

import warnings

import pytest
import torch
from torch import nn

from layerlens import check, relevance
from tests.cases import normal


class Loses(torch.autograd.Function):
    """x (1 + t), of whose gradient the t is left out: the ledger misses a known share of what passes."""

    share = 0.0

    @staticmethod
    def forward(ctx, x):
        return x * (1 + Loses.share)

    @staticmethod
    def backward(ctx, g):
        return g


class Lossy(nn.Module):
    def forward(self, x):
        return Loses.apply(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 1, bias=False), Lossy()).double()


@pytest.mark.parametrize("share, warns", [(0.0, False), (5e-6, False), (3e-5, True), (5e-4, True), (0.1, True)])
def test_the_warning_starts_where_its_text_says(model, share, warns, monkeypatch):
    monkeypatch.setattr(Loses, "share", share)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = relevance(model, normal(1, 4).double(), target=0)
    texts = [str(one.message) for one in said if "does not close" in str(one.message)]
    assert float(result.ledger.relative.max()) == pytest.approx(share / (1 + share), abs=1e-9)
    assert bool(texts) == warns
    assert all("below 1e-05" in text and "ledger.table()" in text for text in texts)


@pytest.mark.filterwarnings("ignore:no relevance rule is known for Loses")
def test_float32_is_decided_by_a_check_in_float64(model, monkeypatch):
    monkeypatch.setattr(Loses, "share", 3e-4)
    x = normal(1, 4)
    with pytest.warns(UserWarning, match=r"Rounding in float32 can do this.*layerlens\.check\(model, x\)"):
        relevance(model.float(), x, target=0)
    found = check(model, x, target=0)
    ledger = found["ledger"]
    assert ledger.severity == "serious" and "3.0e-04 in float64" in ledger.measured
    assert "an operation is not accounted for" in ledger.means
