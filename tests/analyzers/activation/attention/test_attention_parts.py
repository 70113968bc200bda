"""Attention weights: parts of them, other ways to write attention out, and kernels that do not tell."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens import AttentionWeights, Lens, attention, attention_rollout, errors
from layerlens.analyzers.activation.attention.weights import fused_weights
from tests.snapshot import Snapshot


class Attends(nn.Module):
    """Self-attention of two heads over `(batch, token, 8)`, made in one of several ways by `attend(q, k, v)`."""

    def __init__(self, attend):
        super().__init__()
        self.qkv, self.attend = nn.Linear(8, 24), attend

    def heads(self, x):
        return [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)]

    def forward(self, x):
        return self.attend(*self.heads(x)).transpose(1, 2).flatten(2)


def scores(q, k):
    return q @ k.transpose(-1, -2) / 2


def plain(q, k, v):
    return F.softmax(scores(q, k), dim=-1) @ v


def in_place(q, k, v):  # every step returns its argument
    weights = F.dropout(scores(q, k).softmax(-1), 0.5, False).to(q.dtype).contiguous()
    return weights.masked_fill_(torch.zeros(1, dtype=torch.bool), 0).mul_(torch.ones(1, 2, 1, 1)) @ v


def folded(q, k, v):
    weights = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).div(2).softmax(-1)
    return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, (-1, 2))


def by_einsum(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).div(2).softmax(dim=-1), v)


def transposed(q, k, v):
    weights = scores(q, k).softmax(-1)
    return (v.transpose(-1, -2) @ weights.transpose(-1, -2)).transpose(-1, -2)


def with_a_sink(q, k, v):
    logits = scores(q, k)
    sink = torch.full_like(logits[..., :1], -1e9)  # which takes nothing, so that the rest is plain
    return torch.cat([logits, sink], dim=-1).softmax(-1)[..., :-1] @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


WAYS = [plain, in_place, folded, by_einsum, transposed, with_a_sink, fused]
X = torch.linspace(-2, 2, 80).sin().reshape(2, 5, 8)


def model_of(attend):
    torch.manual_seed(0)
    return nn.Sequential(Attends(attend)).eval()


def expected():
    model = model_of(plain)[0]
    with torch.no_grad():
        q, k, _ = model.heads(X)
        return scores(q, k).softmax(-1)


@pytest.mark.parametrize("attend", WAYS, ids=lambda way: way.__name__)
def test_every_way_to_write_it_gives_the_same_weights(attend):
    model = model_of(attend)
    before = Snapshot(model, X)
    found = attention(model, X)
    before.check()
    assert list(found) == ["0"]
    torch.testing.assert_close(found["0"], expected())


@pytest.mark.parametrize("attend", [plain, folded, fused], ids=lambda way: way.__name__)
@pytest.mark.parametrize("queries, rows", [(-1, [4]), (slice(1, 3), [1, 2]), ([0, -2], [0, 3])])
def test_parts_are_those_of_the_whole(attend, queries, rows):
    found = Lens(model_of(attend)).attention(X, queries=queries, keys=[2, 0])
    torch.testing.assert_close(found["0"], expected()[:, :, rows][..., [2, 0]])
    assert found.queries == {"0": tuple(rows)} and found.keys == {"0": (2, 0)}
    with pytest.raises(errors.InputError, match="all queries and keys"):
        attention_rollout(found)
    with pytest.raises(errors.RecordError, match="all keys"):
        found.entropy()


def test_the_mean_over_heads_is_one_head():
    found = Lens(model_of(fused)).attention(X, heads="mean")
    assert found.heads == "mean"
    torch.testing.assert_close(found["0"], expected().mean(1, keepdim=True))
    whole = attention(model_of(fused), X)
    torch.testing.assert_close(attention_rollout(found), attention_rollout(whole))


@pytest.mark.parametrize("part", [{"queries": 5}, {"keys": [0, -6]}, {"queries": slice(7, 9)}, {"keys": []}], ids=str)
def test_positions_that_are_not_there_are_refused(part):
    with pytest.raises(errors.OptionError, match=r"an attention has 5 (queries|keys)"):
        attention(model_of(fused), X, **part)


def test_other_options_are_checked():
    with pytest.raises(errors.OptionError, match="unknown heads 'all'"):
        attention(model_of(fused), X, heads="all")
    for residual in (1, -0.1):
        with pytest.raises(errors.OptionError, match="share of the skip connection"):
            attention_rollout(attention(model_of(fused), X), residual=residual)


def test_masked_rows_are_zero_as_in_the_kernel_and_nan_is_not_hidden():
    q = torch.randn(1, 2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    weights = fused_weights(q, q, q, mask)
    assert (weights[:, :, 1] == 0).all() and (weights[:, :, 0, 1] == 0).all()
    torch.testing.assert_close(weights @ q, F.scaled_dot_product_attention(q, q, q, mask))
    torch.testing.assert_close(fused_weights(q, q, q, mask, queries=[2, 0]), weights[:, :, [2, 0]])
    torch.testing.assert_close(
        fused_weights(q, q, q, is_causal=True, queries=[1]), fused_weights(q, q, q, is_causal=True)[:, :, [1]]
    )
    assert fused_weights(q * torch.nan, q, q).isnan().all()
    rollout = attention_rollout(AttentionWeights("Net", {"a": weights}, {"a": "by hand"}), residual=0)
    assert rollout.isfinite().all()


def test_dropout_of_a_fused_call_draws_no_random_numbers_and_thins_no_weights():
    class Drops(nn.Module):
        def forward(self, x):
            out, _ = F.multi_head_attention_forward(
                x, x, x, 8, 2, torch.eye(8).repeat(3, 1), None, None, None, False, 0.5, torch.eye(8), None, True
            )
            return out

    weights = attention(Drops(), X)["(model)"]
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 2, 2))


def test_a_softmax_that_is_shared_by_the_batch_is_followed():
    class Shared(nn.Module):
        def forward(self, x):
            return (x[:1] @ x[:1].transpose(1, 2)).softmax(-1).expand(len(x), -1, -1) @ x

    assert attention(Shared(), X)["(model)"].shape[-2:] == (5, 5)


def test_a_layer_that_runs_twice_and_a_softmax_of_its_own_layer():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.softmax = nn.Softmax(dim=-1)

        def forward(self, x):
            return self.softmax(x @ x.transpose(1, 2)) @ x

    layer = Own()
    assert list(attention(nn.Sequential(layer, layer), X)) == ["0", "0#1"]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_kernel_that_does_not_tell_is_named():
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention

    def hidden(q, k, v):
        return flex(q, k, v)

    model = nn.Sequential(Attends(hidden), Attends(fused))
    with pytest.raises(errors.InputError, match=r"0 calls flex_attention.*does not return its weights"):
        attention(model, X)
    assert list(attention(model, X, "1")) == ["1"]


def test_what_a_forward_computes_is_the_models_own():
    lens = Lens(nn.Identity(), forward=lambda model, x: plain(x, x, model(x)))
    assert list(lens.attention(X)) == ["(model)"]
    with pytest.raises(errors.InputError, match="no attention was found in Sequential inside the selected"):
        attention(nn.Sequential(nn.Linear(8, 8), Attends(fused)), X, "0")


def test_tokens_are_told_where_the_tokenizer_can():
    class Tokenizer:
        def __call__(self, texts, return_tensors):
            return {"input_ids": torch.tensor([[ord(letter) for letter in text] for text in texts])}

        def convert_ids_to_tokens(self, ids):
            return [chr(one) for one in ids]

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attend = nn.Embedding(128, 8), Attends(fused)

        def forward(self, input_ids):
            return self.attend(self.embed(input_ids))

    lens = Lens(Reads(), tokenizer=Tokenizer())
    assert lens.attention("cat").tokens == [["c", "a", "t"]]
    assert Lens(Reads()).attention(torch.ones(1, 2, dtype=torch.long)).tokens is None
