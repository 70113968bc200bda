"""Parity: the engine against independent ways to the same relevance, in float64."""

import copy

import pytest
import torch
from torch import nn

from layerlens import errors, input_of, relevance
from layerlens.targets.target import as_target
from tests import oracles
from tests.cases import CASES, double, normal


def test_dense_lrp_zero_unit_by_unit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)).double()
    x = normal(2, 4).double()
    layers = [
        (net[0].weight.data, net[0].bias.data, torch.tanh),
        (net[2].weight.data, net[2].bias.data, nn.functional.gelu),
        (net[4].weight.data, net[4].bias.data, None),
    ]
    found = relevance(net, x, target=1).values
    for sample in range(2):
        expected = oracles.dense_lrp_zero(layers, x[sample], 1)
        torch.testing.assert_close(found[sample], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cnn", "early_exit", "hf_resnet"])
def test_piecewise_linear_nets_equal_gradient_times_input(name):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    given = x["pixel_values"] if isinstance(x, dict) else x
    leaf = given.clone().requires_grad_()
    output = model(**{"pixel_values": leaf}) if isinstance(x, dict) else model(leaf)
    expected = oracles.gradient_times_input(as_target(case.target)(output), leaf)
    torch.testing.assert_close(
        relevance(model, x, target=case.target, rules="epsilon").tensor, expected, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("attention", ["cp", "attn"])
@pytest.mark.parametrize("name", ["hf_vit", "hf_convnext", "hf_bert", "hf_gpt2", "hf_llama", "encoder"])
def test_networks_with_attention_equal_the_detach_trick(name, attention):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    expected = by_detaching(model, x, case.target, attention)
    result = relevance(model, x, target=case.target, rules="epsilon" if attention == "cp" else "attn")
    exact = name != "hf_llama"  # whose norm runs in float32
    torch.testing.assert_close(result.tensor, expected, rtol=1e-7 if exact else 1e-4, atol=1e-10 if exact else 1e-6)


class AttentionByHand(nn.Module):
    """nn.MultiheadAttention, batch first, in plain functions that a function mode can see."""

    batch_first = False  # keeps nn.TransformerEncoderLayer from looking for its fast path

    def __init__(self, original):
        super().__init__()
        self.original = original

    def forward(self, q, k, v, **_):
        o = self.original
        parts = nn.functional.linear(q, o.in_proj_weight, o.in_proj_bias).chunk(3, -1)
        heads = [part.unflatten(-1, (o.num_heads, -1)).transpose(1, 2) for part in parts]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return o.out_proj(mixed), None


def test_what_the_projection_of_multihead_attention_takes_is_read_inside():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Flatten()).eval()
    by_hand = copy.deepcopy(model)
    for name, module in list(by_hand.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            by_hand.set_submodule(name, AttentionByHand(module))
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    found = relevance(model, x, target=5, layers=input_of("**.out_proj"))
    expected = relevance(by_hand, x, target=5, layers=input_of("**.out_proj"))
    assert list(found.layers) == [f"input of 0.layers.{number}.self_attn.out_proj" for number in (0, 1)]
    for (own,), (other,) in zip(found.layers.values(), expected.layers.values(), strict=True):
        torch.testing.assert_close(own.transpose(0, 1), other, rtol=1e-9, atol=1e-12)  # (place, batch, unit)
    chosen = relevance(model, x, target=5, layers=input_of("0.layers.1.self_attn.out_proj#0"))
    assert len(chosen.layers) == 1
    with pytest.raises(errors.SelectionError, match="returned no tensor '7'"):
        relevance(model, x, target=5, layers=input_of("0.layers.1.self_attn.out_proj/7"))


def by_detaching(model, x, target, attention):
    model = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "NewGELUActivation":  # written by hand in GPT-2
            model.set_submodule(name, nn.GELU(approximate="tanh"))
        if isinstance(module, nn.MultiheadAttention):
            model.set_submodule(name, AttentionByHand(module))
    leaves = []

    def start(module, args, output):
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0]

    if "pixel_values" not in x:
        words = max((m for m in model.modules() if isinstance(m, nn.Embedding)), key=lambda m: len(m.weight))
        words.register_forward_hook(start)
        with oracles.DetachTrick(attention):
            score = as_target(target)(model(**x))
        return oracles.gradient_times_input(score, leaves[0]).sum(-1)
    leaf = x["pixel_values"].clone().requires_grad_()
    with oracles.DetachTrick(attention):
        score = as_target(target)(model(pixel_values=leaf))
    return oracles.gradient_times_input(score, leaf)


def test_lstm_equals_the_rules_written_out_by_hand():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    net, x = Net().double(), normal(2, 7, 3).double()
    expected = oracles.lstm_relevance(net.rnn, net.head, x, 1)
    torch.testing.assert_close(relevance(net, x, target=1).tensor, expected, rtol=1e-8, atol=1e-12)


def test_saturated_lstm_is_exact_where_the_result_alone_would_not_tell_the_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    net, x = Net(), 40 * normal(2, 5, 3)  # tanh(z) is exactly 1 in float32
    expected = oracles.lstm_relevance(copy.deepcopy(net.rnn).double(), copy.deepcopy(net.head).double(), x.double(), 0)
    torch.testing.assert_close(relevance(net, x, target=0).tensor.double(), expected, rtol=1e-4, atol=1e-5)


def test_fused_attention_equals_eager_attention():
    case = CASES["hf_llama"]
    fused, eager = case.build().double(), case.build().double()
    fused.set_attn_implementation("sdpa")
    eager.set_attn_implementation("eager")
    for rules in ("epsilon", "attn"):
        one = relevance(fused, case.example(), target=case.target, rules=rules)
        other = relevance(eager, case.example(), target=case.target, rules=rules)
        assert any(op.startswith("ScaledDotProduct") for op in one.rules_used)
        assert not any(op.startswith("ScaledDotProduct") for op in other.rules_used)
        torch.testing.assert_close(one.tensor, other.tensor, rtol=1e-4, atol=1e-7)  # its norm runs in float32


def test_relu6_keeps_relevance_where_it_saturates():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU6(inplace=True), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(5.0)
    result = relevance(net, torch.ones(1, 3).double(), target=0)
    assert float(result.values.sum()) == pytest.approx(float(result.score), rel=1e-12)
    assert float(result.score) != 0
