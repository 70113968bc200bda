"""What is claimed about axes agrees with experiments, on every row of tests/cases.py and on tiny transformers."""

import pytest
import torch
from torch import nn

from layerlens.axes.followed import followed, name_axes
from layerlens.inputs.inputs import as_inputs
from tests.axes.experiments import check, same_claims
from tests.axes.kinds import KINDS
from tests.axes.zoo import TIMM, TORCHVISION, timm_model, torchvision_model
from tests.families import FAMILIES, family

ALONE = {"siglip", "packed_sequence", "graph"}
"""Models that one sample is not like two: it meets an axis of one entry, is shorter, or is a node."""

HELD = {"hf_llava": ["input_ids"]}
"""Inputs that cannot be changed at any place: ids that hold the places of a picture."""

OFTEN = """vit swin levit convnextv2 segformer bert albert deberta funnel gpt2 llama gemma2 mixtral qwen2_moe mamba t5
    bart xlnet clip_text whisper wav2vec2 timesformer perceiver patchtst""".split()
"""Families of the fast tests: one of each kind."""


def assert_claims(name, model, x):
    inputs = as_inputs(x)
    axes = followed(model, inputs)
    found = check(model, inputs, axes, independent=name != "graph", held=HELD.get(name, ()))
    assert not found.wrong
    assert found.confirmed["sizes"] and (found.confirmed["samples"] or name == "graph")
    if name not in ALONE:
        assert not same_claims(axes, followed(model, inputs.rows(torch.tensor([0]))))
    return axes


def test_claims_about_every_case(case):
    assert_claims(case.name, case.build(), case.example())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_claims_about_other_kinds(name):
    axes = assert_claims(name, *KINDS[name]())
    assert all(axis.known for found in axes.output.values() for axis in found)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in FAMILIES]
)
def test_claims_about_transformers(name):
    model, x, _ = family(name)
    assert_claims(name, model, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_claims_about_timm(name):
    pytest.importorskip("torchvision", reason="timm needs torchvision, which no build of fits this torch")
    pytest.importorskip("timm", reason="timm is not installed")
    assert_claims(name, *timm_model(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_claims_about_torchvision(name):
    pytest.importorskip("torchvision", reason="no build of torchvision fits this torch")
    assert_claims(name, *torchvision_model(name))


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
