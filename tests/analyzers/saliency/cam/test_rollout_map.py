import pytest
import torch
from torch import nn

from layerlens import attention, attention_rollout, attention_rollout_map
from layerlens.errors import InputError, OptionError
from tests.cases import CASES, normal
from tests.snapshot import Snapshot


def vit():
    return CASES["hf_vit"].build(), CASES["hf_vit"].example()


def test_each_pixel_has_the_share_of_its_patch():
    model, x = vit()
    before = Snapshot(model, x)
    found = attention_rollout_map(model, x)
    before.check()
    row = attention_rollout(attention(model, x))[:, 0]  # from the class token
    side = round((row.shape[1] - 1) ** 0.5)
    pixels = x["pixel_values"].shape[-1] // side
    assert found.tensor.shape == (2, 16, 16) and found.target == "token 0"
    for y in range(16):
        for z in range(16):
            patch = 1 + (y // pixels) * side + z // pixels
            assert torch.equal(found.tensor[:, y, z], row[:, patch])
    total = found.tensor.sum(dim=(1, 2)) / pixels**2 + found.checks["left out"]
    assert torch.allclose(total, found.score, atol=1e-6) and torch.equal(found.inputs, x["pixel_values"])
    assert found.plot(sample=0).data["values"].shape == (16, 16)


def test_of_another_query():
    model, x = vit()
    rollout = attention_rollout(attention(model, x))
    found = attention_rollout_map(model, x, query=-1)
    assert torch.equal(found.tensor[:, 0, 0], rollout[:, -1, 1])


def test_tokens_have_the_mean_over_all_queries():
    model, x = CASES["hf_bert"].build(), CASES["hf_bert"].example()
    found = attention_rollout_map(model, x)
    expected = attention_rollout(attention(model, x)).mean(dim=1)
    assert found.axes == ("batch", "token") and torch.equal(found.tensor, expected)
    assert torch.allclose(found.tensor.sum(dim=1), found.score, atol=1e-6)


def test_what_cannot_be_is_said():
    model, x = vit()
    with pytest.raises(OptionError, match="query=99"):
        attention_rollout_map(model, x, query=99)

    class Wide(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, :7]
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    with pytest.raises(InputError, match="the 7 tokens form no grid over an image of 8 x 5"):
        attention_rollout_map(Wide(), normal(1, 3, 8, 5))
