"""Edits of heads, which lie before the output projection of an attention, against hooks written by hand."""

import pytest
import torch
from torch import nn

from layerlens import Lens, Probe, errors
from layerlens.edits import mean, scale, zero
from tests.cases import CASES
from tests.snapshot import Snapshot


class Attention(nn.Module):
    """An attention written by hand; `shared` queries read each head of keys and values."""

    def __init__(self, heads=3, shared=1, projection=nn.Linear):
        super().__init__()
        self.heads, self.shared = heads, shared
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12 // shared), nn.Linear(12, 12 // shared)
        self.norm, self.project = nn.LayerNorm(12 // heads), projection(12, 12)

    def forward(self, x):
        q, k, v = (part(x).unflatten(2, (-1, 12 // self.heads)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = k.repeat_interleave(self.shared, 1), v.repeat_interleave(self.shared, 1)
        weights = (self.norm(q) @ k.transpose(2, 3)).softmax(3)
        return self.project((weights @ v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention, self.head = attention, nn.Linear(12, 2)

    def forward(self, x):
        return self.head(x + self.attention(x)).mean(1)


@pytest.fixture
def x():
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def model_of(*args, **kwargs):
    torch.manual_seed(0)
    return Model(Attention(*args, **kwargs)).eval()


def without_units(layer, units, model, x):
    """Run the model with some units of what a layer is given set to 0."""

    def hook(module, args):
        given = args[0].clone()
        given[..., units] = 0
        return (given, *args[1:])

    handle = layer.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            return model(**x) if isinstance(x, dict) else model(x)
    finally:
        handle.remove()


@pytest.mark.parametrize("heads", [1, [1], [-2], (1, 3)])
@pytest.mark.parametrize("layer", ["attention", "attention.project"])
@pytest.mark.parametrize("shared", [1, 3])
def test_a_head_is_what_the_projection_reads_of_it(x, layer, heads, shared):
    model = model_of(shared=shared)
    before = Snapshot(model, x)
    found = Lens(model).run(x, edits={layer: zero(heads=heads)})
    before.check()
    torch.testing.assert_close(found, without_units(model.attention.project, slice(4, 8), model, x))


def test_heads_are_found_behind_any_projection(x):
    class Own(nn.Module):
        def __init__(self, *sizes):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(sizes))

        def forward(self, given):
            return torch.einsum("bti,io->bto", given, self.matrix)

    model = model_of(projection=Own)
    found = Lens(model).run(x, edits={"attention": zero(heads=2)})
    torch.testing.assert_close(found, without_units(model.attention.project, slice(8, 12), model, x))


@pytest.mark.parametrize(
    ("case", "layer", "projection"),
    [
        ("hf_gpt2", "transformer.h.1.attn", "transformer.h.1.attn.c_proj"),
        ("hf_bert", "bert.encoder.layer.1.attention", "bert.encoder.layer.1.attention.output.dense"),
        ("hf_llama", "model.layers.0.self_attn", "model.layers.0.self_attn.o_proj"),
        ("hf_vit", "vit.layers.1", "vit.layers.1.attention.o_proj"),
    ],
)
def test_heads_of_published_models(case, layer, projection):
    model, given = CASES[case].build(), CASES[case].example()
    found = Lens(model).run(given, edits={layer: zero(heads=2)})
    width = model.get_submodule(projection).weight.shape[0] // 4
    truth = without_units(model.get_submodule(projection), slice(2 * width, 3 * width), model, given)
    torch.testing.assert_close(found.logits, truth.logits)


def test_weights_that_an_attention_returns_as_well_are_not_its_heads(x):
    class Weighing(Attention):
        def forward(self, x):
            return super().forward(x), self.seen.softmax(3)

    class First(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.attention, self.head = attention, nn.Linear(12, 2)

        def forward(self, x):
            q, k = (part(x).unflatten(2, (-1, 4)).transpose(1, 2) for part in (self.attention.q, self.attention.k))
            self.attention.seen = self.attention.norm(q) @ k.transpose(2, 3)
            return self.head(x + self.attention(x)[0]).mean(1)

    torch.manual_seed(0)
    model = First(Weighing()).eval()
    found = Lens(model).run(x, edits={"attention": zero(heads=1)})
    truth = without_units(model.attention.project, slice(4, 8), model, x)
    torch.testing.assert_close(found, truth)
    assert not torch.allclose(found, model(x))


def test_heads_of_torchs_attention_lie_inside_of_it(x):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)[0]

    model = Model(Wrapped()).eval()
    found = Lens(model).run(x, edits={"attention.attention": zero(heads=0)})
    with torch.no_grad():
        q, k, v = (
            (x @ attention.in_proj_weight.T + attention.in_proj_bias).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        )
        mixed = ((q / 2) @ k.transpose(2, 3)).softmax(3) @ v
        mixed[:, 0] = 0
        truth = model.head(x + attention.out_proj(mixed.transpose(1, 2).flatten(2))).mean(1)
    torch.testing.assert_close(found, truth)
    one = Lens(model).run(x, edits={"attention.attention": zero(heads=0, positions=[1, 3])})
    with torch.no_grad():
        mixed = ((q / 2) @ k.transpose(2, 3)).softmax(3) @ v
        mixed[:, 0, [1, 3]] = 0
        truth = model.head(x + attention.out_proj(mixed.transpose(1, 2).flatten(2))).mean(1)
    torch.testing.assert_close(one, truth)


def test_a_tensor_with_an_axis_of_heads(x):
    model = model_of()
    found = Lens(model).run(x, edits={"attention.norm": scale(0.0, heads=1)})
    with torch.no_grad():
        plain = model(x)
    assert not torch.allclose(found, plain)
    other = Lens(model).run(x, edits={"attention.norm": lambda q: q.index_fill(1, torch.tensor([1]), 0)})
    torch.testing.assert_close(found, other)


def test_what_is_not_a_head_is_refused(x):
    model, lens = model_of(), Lens(model_of())
    for layer, edit, message in [
        ("attention", zero(heads=3), r"no head 3 in attention 'attention': it has 3 \(0 to 2\)"),
        ("attention", zero(heads=(0, 12)), "has 3 heads, not 12: give heads=0"),
        ("head", zero(heads=0), "layer 'head' has no heads.*Layers with heads: 'attention'.*units=range"),
    ]:
        with pytest.raises(errors.OptionError, match=message):
            lens.run(x, edits={layer: edit})
    two = nn.Sequential(model.attention, model_of().attention)
    with pytest.raises(errors.OptionError, match="holds 2 attentions: name one of '0', '1'"):
        Lens(two).run(x, edits={"": zero(heads=0)})


def test_a_probe_follows_the_axes_when_the_model_is_called(x):
    model = model_of()
    with torch.no_grad(), Probe(model, "head", edits={"attention": zero(heads=1), "head": mean(units=[0])}) as record:
        first, second = model(x), model(x.flip(0))
    truth = without_units(model.attention.project, slice(4, 8), model, x)
    torch.testing.assert_close(first[:, 1], truth[:, 1])
    torch.testing.assert_close(second, first.flip(0))
    assert [call.index for call in record.calls("head")] == [0, 1]
