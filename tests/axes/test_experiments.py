"""What is claimed about axes agrees with experiments, on every row of tests/cases.py and on tiny transformers."""

import pytest
import torch
from torch import nn

from layerlens.axes.followed import followed, name_axes
from layerlens.inputs.inputs import as_inputs
from tests.axes.experiments import check, same_claims
from tests.families import FAMILIES, family

ALONE = {"siglip"}
"""Models in which an axis of one entry meets a batch of one sample: which is which cannot be seen."""


def assert_claims(name, model, x):
    inputs = as_inputs(x)
    axes = followed(model, inputs)
    found = check(model, inputs, axes)
    assert not found.wrong
    assert found.confirmed["sizes"] and found.confirmed["samples"]
    alone = followed(model, inputs.rows(torch.tensor([0])))
    if name not in ALONE:
        assert not same_claims(axes, alone)


def test_claims_about_every_case(case):
    assert_claims(case.name, case.build(), case.example())


@pytest.mark.parametrize("name", FAMILIES)
def test_claims_about_transformers(name):
    model, x, _ = family(name)
    assert_claims(name, model, x)


class Turned(nn.Module):
    """A convolution behind a transposition."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 6)

    def forward(self, x):
        return self.head(self.conv(x).permute(0, 3, 2, 1))


def test_wrong_claims_are_contradicted():
    net, x = Turned().eval(), torch.randn(2, 3, 16, 16)
    inputs = as_inputs(x)
    assert not check(net, inputs, followed(net, inputs)).wrong
    name_axes(net, {"head": ("batch", "height", "width", "unit")})
    wrong = check(net, inputs, followed(net, inputs)).wrong
    assert len(wrong) >= 2 and all("places of ('head'" in text or "places of (''" in text for text in wrong)
    name_axes(net, {"head": ("height", "batch", "width", "unit")})
    with pytest.raises(AssertionError):
        assert not check(net, inputs, followed(net, inputs)).wrong
