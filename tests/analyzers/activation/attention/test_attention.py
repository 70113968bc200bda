"""Attention weights against those that transformers itself returns, and by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import Lens, attention, attention_rollout, errors
from layerlens.analyzers.activation.attention.weights import fused_weights
from tests.snapshot import Snapshot


def config(name):
    import transformers as t

    return {
        "bert": lambda: t.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37, vocab_size=50
        ),
        "gpt2": lambda: t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50),
        "llama": lambda: t.LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
            intermediate_size=37,
        ),
        "mixtral": lambda: t.MixtralConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
            intermediate_size=48, num_local_experts=4,
        ),
        "distilbert": lambda: t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=37, vocab_size=50),
        "t5": lambda: t.T5Config(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=50),
    }[name]()  # fmt: skip


def pair(name, attention):
    """A model of that architecture, with its input."""
    import transformers as t

    torch.manual_seed(0)
    model = t.AutoModel.from_config(config(name), attn_implementation=attention).eval()
    ids = torch.tensor([[3, 7, 11, 4, 9], [5, 2, 8, 0, 0]])
    x = {"input_ids": ids}
    if name in ("bert", "distilbert", "llama", "gpt2", "mixtral"):
        x["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return model, x | ({"decoder_input_ids": ids[:, :3]} if name == "t5" else {})


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "mixtral", "distilbert"])
def test_fused_and_eager_are_what_the_model_itself_tells(name):
    eager, x = pair(name, "eager")
    with torch.no_grad():
        expected = eager(**x, output_attentions=True).attentions
    fused, _ = pair(name, "sdpa")
    fused.load_state_dict(eager.state_dict())
    for model, how in ((eager, "softmax and product"), (fused, "scaled_dot_product_attention")):
        found = attention(model, x)
        assert len(found) == len(expected) and set(found.how.values()) == {how}
        for weights, wanted in zip(found.weights.values(), expected, strict=True):
            seen = x["attention_mask"].bool()  # rows of padding attend to what they like
            torch.testing.assert_close(weights.transpose(1, 2)[seen], wanted.transpose(1, 2)[seen], atol=1e-5, rtol=0)


def test_an_encoder_and_a_decoder_with_cross_attention_and_position_biases():
    model, x = pair("t5", "eager")
    with torch.no_grad():
        out = model(**x, output_attentions=True)
    found = attention(model, x)
    expected = [*out.encoder_attentions]
    for own, cross in zip(out.decoder_attentions, out.cross_attentions, strict=True):
        expected += [own, cross]
    assert len(found) == len(expected) == 6
    for weights, wanted in zip(found.weights.values(), expected, strict=True):
        torch.testing.assert_close(weights, wanted, atol=1e-5, rtol=0)
    assert len(attention(model, x, "encoder")) == 2


def test_torchs_own_encoder_in_spite_of_its_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 4, 8)
    before = Snapshot(model, x)
    found = attention(model, x)
    before.check()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        first = model.layers[0].self_attn(x, x, x, need_weights=True, average_attn_weights=False)[1]
    torch.testing.assert_close(found["layers.0.self_attn"], first)
    assert list(found) == ["layers.0.self_attn", "layers.1.self_attn"]


@pytest.mark.parametrize("gqa", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"mask": "bool"}, {"mask": "float"}], ids=str
)
def test_the_weights_give_the_output_of_the_kernel(options, gqa):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2 if gqa else 4, 5, 8), torch.randn(2, 2 if gqa else 4, 5, 8)
    options = dict(options)
    kind = options.pop("mask", None)
    if kind:
        mask = torch.rand(2, 1, 5, 5) > 0.4
        mask[..., 0] = True
        options["attn_mask"] = mask if kind == "bool" else torch.where(mask, 0.5, -torch.inf)
    weights = fused_weights(q, k, v, enable_gqa=gqa, **options)
    values = v.repeat_interleave(2, 1) if gqa else v
    torch.testing.assert_close(weights @ values, F.scaled_dot_product_attention(q, k, v, enable_gqa=gqa, **options))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))


def test_the_output_is_the_same_in_bits_with_and_without():
    model, x = pair("llama", "sdpa")
    outputs = []
    twin = copy.deepcopy(model)
    handle = twin.register_forward_hook(lambda m, a, out: outputs.append(out.last_hidden_state))
    with torch.no_grad():
        twin(**x)
    attention(twin, x)
    handle.remove()
    assert torch.equal(*outputs)


class Router(nn.Module):
    """A softmax that is no attention: it weighs experts, element by element."""

    def __init__(self):
        super().__init__()
        self.gate, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.gate(x).softmax(-1) * 2)


def test_a_model_without_attention_is_told():
    with pytest.raises(errors.InputError, match="no attention was found in Router"):
        attention(Router(), torch.randn(2, 5, 4))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(error):
    class Fails(nn.Module):
        def forward(self, x):
            raise error

    model = nn.Sequential(nn.Linear(2, 2), Fails())
    with pytest.raises(error):
        attention(model, torch.ones(1, 2))
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.nn.modules.module._global_forward_hooks


def test_rollout_is_the_product_over_layers():
    model, x = pair("gpt2", "sdpa")
    found = Lens(model).attention(x)
    one, two = (weights.mean(1) for weights in found.weights.values())
    eye = torch.eye(5)
    expected = (0.5 * two + 0.5 * eye) @ (0.5 * one + 0.5 * eye)
    rollout = attention_rollout(found)
    torch.testing.assert_close(rollout, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, 5))
    assert not rollout[0].triu(1).any()
    t5, words = pair("t5", "eager")
    with pytest.raises(errors.InputError, match="same tokens"):
        attention_rollout(attention(t5, words))
    with pytest.raises(errors.RecordError, match=r"no attention in 'h\.7'"):
        _ = found["h.7"]
    assert found.entropy()["h.0.attn"].shape == (2, 4)
