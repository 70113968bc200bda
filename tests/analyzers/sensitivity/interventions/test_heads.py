"""Heads against models whose output projection has no weights for them."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens import ablate, errors, patch
from layerlens.analyzers.common.parts.heads import find_heads
from layerlens.axes.followed import followed
from layerlens.inputs.inputs import as_inputs
from layerlens.targets.target import as_target
from tests.analyzers.sensitivity.interventions.oracles import as_double, run, without_head
from tests.cases import CASES, normal

PROJECTIONS = {
    "hf_bert": ("bert.encoder.layer.{}.attention.self", "bert.encoder.layer.{}.attention.output.dense", 4),
    "hf_vit": ("vit.layers.{}.attention", "vit.layers.{}.attention.o_proj", 4),
    "hf_gpt2": ("transformer.h.{}.attn", "transformer.h.{}.attn.c_proj", 4),
    "hf_llama": ("model.layers.{}.self_attn", "model.layers.{}.self_attn.o_proj", 4),
    "encoder": ("encoder.layers.{}.self_attn", "encoder.layers.{}.self_attn.out_proj", 2),
}


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_a_head_is_what_its_columns_of_the_projection_carry(name):
    case, (label, projection, count) = CASES[name], PROJECTIONS[name]
    model, x = case.build().double(), as_double(case.example())
    target = as_target(case.target)
    clean = target(run(model, x))
    found = ablate(model, x, by="head", target=case.target)
    assert len(found) == 2 * count
    for item, value in zip(found.items, found.values.tolist(), strict=True):
        path, _, head = item.rpartition(" head ")
        block = next(k for k in range(2) if path == label.format(k))
        changed = target(run(without_head(model, projection.format(block), int(head), count), x))
        assert value == pytest.approx(float((changed - clean).mean()), rel=1e-8, abs=1e-12), item


class Inside(nn.Module):
    """An attention with time before the batch, in eager arithmetic of its own."""

    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.qkv, self.to_out = nn.Linear(6, 18), nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1))

    def forward(self, x):  # (time, batch, feature)
        time, batch, _ = x.shape
        q, k, v = self.qkv(x).reshape(time, batch, 3, self.heads, 2).permute(2, 1, 3, 0, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v  # (batch, heads, time, 2)
        return self.to_out(mixed.permute(2, 0, 1, 3).reshape(time, batch, 6))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.fc = Inside(), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.attention(x.transpose(0, 1)).sum(0))


def test_an_attention_of_ones_own_with_time_first():
    torch.manual_seed(0)
    model, x = Own().double().eval(), normal(2, 4, 6).double()
    found = ablate(model, x, by="head", target=0)
    assert found.items == tuple(f"attention head {k}" for k in range(3)) and found.settings["at_once"] > 1
    for head, value in enumerate(found.values.tolist()):
        changed = run(without_head(model, "attention.to_out.0", head, 3), x) - run(model, x)
        assert value == pytest.approx(float(changed[:, 0].mean()), rel=1e-9)
    named = ablate(model, x, "attention.to_out.0", by="head", target=0)
    assert torch.equal(named.values, found.values)
    six = ablate(model, x, "attention", by="head", heads=6, target=0)
    assert len(six) == 6
    assert ablate(model, x, "fc", by="head", heads=2, target=0).items == ("fc head 0", "fc head 1")


def test_means_and_other_samples_of_heads():
    case = CASES["encoder"]
    model, x = case.build().double(), case.example()
    reference = {"ids": torch.randint(1, 20, (6, 6), generator=torch.Generator().manual_seed(1))}
    mean = ablate(model, x, by="head", value="mean", reference=reference, target=1, screen="first_order")
    drawn = ablate(model, x, by="head", value="resample", reference=reference, target=1, draws=6)
    assert mean.values.shape == drawn.values.shape == (4,)
    assert float(mean.checks["rank correlation"]) > 0.5
    assert float((mean.values - drawn.values).abs().max()) < 5 * float(drawn.error.max())
    with pytest.warns(UserWarning, match="one draw"):
        same = ablate(model, x, by="head", value="resample", reference={"ids": x["ids"][:1]}, target=1)
    assert float(same.checks["per sample"][:, 0].abs().max()) < 1e-12  # its own values in its place


def test_patched_heads_of_one_layer_add_up_where_the_rest_is_linear():
    torch.manual_seed(0)
    model = Own().double().eval()
    x, other = normal(1, 4, 6).double(), normal(1, 4, 6, seed=3).double()
    found = patch(model, x, other, by="head", target=0)
    assert float(found.values.sum()) == pytest.approx(1, abs=1e-12)  # three heads carry all there is
    assert float(found.values.abs().min()) > 0.01


def heads_of(name, layers=None, heads=None):
    model = CASES[name].build()
    return find_heads(model, followed(model, as_inputs(CASES[name].example())), layers, heads)


def test_where_heads_are_found():
    for name, (label, projection, count) in PROJECTIONS.items():
        found = heads_of(name)
        where = [projection if name != "encoder" else label]
        assert [(one.label, one.path, one.count) for one in found] == [
            (label.format(k), where[0].format(k), count) for k in range(2)
        ]
    assert len(heads_of("hf_gpt2", "transformer.h.1")) == 1  # the attention inside of a block
    with pytest.raises(errors.LayerNotFound, match="among the selected layers"):
        heads_of("hf_gpt2", "transformer.h.1.mlp")
    with pytest.raises(errors.OptionError, match="heads must be a whole number"):
        heads_of("mlp", "0", 0)
    with pytest.raises(errors.LayerNotFound, match="12 features before its projection, which are not 5 heads"):
        ablate(CASES["mlp"].build(), CASES["mlp"].example(), "2", by="head", heads=5)


def test_heads_that_are_given_after_a_residual_are_zeroed_where_they_lie():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(normal(8, 8, seed=3))

        def forward(self, residual, context):
            return residual + context @ self.weight

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.joined, self.out = nn.Linear(8, 24), Joined(), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            context = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            return self.out(self.joined(x, context).mean(1))

    torch.manual_seed(0)
    model, x = Attention().double().eval(), normal(2, 5, 8).double()
    found = ablate(model, x, by="head", target=1)
    for head in range(2):
        entries = torch.arange(4 * head, 4 * head + 4)
        handle = model.joined.register_forward_pre_hook(lambda _, given: (given[0], given[1].index_fill(2, entries, 0)))  # noqa: B023
        changed = model(x)[:, 1]
        handle.remove()
        assert float(found.values[head]) == pytest.approx(float((changed - model(x)[:, 1]).mean().detach()), rel=1e-9)


class Core(nn.Module):
    def __init__(self, apart):
        super().__init__()
        self.apart = apart

    def forward(self, q, k, v):
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)  # (batch, head, place, unit of the head)
        return mixed if self.apart else mixed.transpose(1, 2).flatten(2)


class WithoutProjection(nn.Module):
    """An attention whose output projection is no layer."""

    def __init__(self, apart=False):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.core, self.head = nn.Linear(6, 36), Core(apart), nn.Linear(6, 2)
        self.out = nn.Parameter(normal(12, 6, seed=2))

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        mixed = self.core(q, k, v)
        mixed = mixed.transpose(1, 2).flatten(2) if self.core.apart else mixed
        return self.head(torch.tanh(mixed @ self.out).mean(1))


@pytest.mark.parametrize("apart", [False, True])
def test_heads_that_a_layer_returns_are_those_of_an_edit(apart):
    model, x = WithoutProjection(apart).double().eval(), normal(2, 5, 6).double()
    found = ablate(model, x, "core", by="head", target=1)
    assert found.items == tuple(f"core head {head}" for head in range(3))
    for head in range(3):
        edited = layerlens.run(model, x, edits={"core": layerlens.edits.zero(heads=head)})
        wanted = (edited - model(x))[:, 1].mean().detach()
        assert float(found.values[head]) == pytest.approx(float(wanted), rel=1e-9) and float(wanted) != 0
    with pytest.raises(errors.LayerNotFound, match=r"return heads, to be named with layers=: .*'core'"):
        ablate(model, x, by="head", target=1)
