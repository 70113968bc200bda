"""Contributions against direct logit attribution by hand, planted paths, and the ledger of every model of the zoo."""

import warnings

import pytest
import torch
from torch import nn

from layerlens import contributions, errors, relevance
from tests.analyzers.sensitivity.interventions.oracles import as_double
from tests.cases import CASES, case_names, normal


@pytest.fixture
def gpt2():
    case = CASES["hf_gpt2"]
    return case.build().double(), case.example()


def normalized(model, states, stream):
    """What the final norm makes of a part of the stream, with the deviation of the whole stream."""
    norm = model.transformer.ln_f
    deviation = (stream.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (states - states.mean(dim=-1, keepdim=True)) / deviation * norm.weight


def kept(model, modules, run):
    """What each module returned, or was given, during a run."""
    values, handles = {}, []
    for name, given in modules:

        def keep(module, args, output, name=name, given=given):
            values[name] = (args[0] if given else output[0] if isinstance(output, tuple) else output).detach()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    run()
    for handle in handles:
        handle.remove()
    return values


def test_layers_are_direct_logit_attribution_by_hand(gpt2):
    model, x = gpt2
    names = [f"transformer.h.{block}.{part}" for block in range(2) for part in ("attn", "mlp")]
    found = contributions(model, x, target=(-1, 7))
    assert list(found.items) == names
    every = [*((name, False) for name in names), ("transformer.ln_f", True)]
    values = kept(model, every, lambda: model(**x))
    unembedding = model.lm_head.weight[7]
    for item, row in zip(found.items, found.direct, strict=True):
        by_hand = normalized(model, values[item], values["transformer.ln_f"])[:, -1] @ unembedding
        torch.testing.assert_close(row, by_hand.detach(), atol=1e-10, rtol=1e-10)
    left = found.direct.sum(dim=0) + found.inputs + found.constants + found.absorbed
    torch.testing.assert_close(left, found.score.double(), atol=1e-10, rtol=1e-10)


def test_heads_are_what_their_columns_of_the_projection_write(gpt2):
    model, x = gpt2
    found = contributions(model, x, target=(-1, 7), parts="head")
    values = kept(model, [("transformer.h.1.attn.c_proj", True), ("transformer.ln_f", True)], lambda: model(**x))
    heads, weight = values["transformer.h.1.attn.c_proj"], model.transformer.h[1].attn.c_proj.weight
    width = heads.shape[-1] // 4
    for head in range(4):
        columns = slice(head * width, (head + 1) * width)
        written = heads[..., columns] @ weight[columns]
        by_hand = normalized(model, written, values["transformer.ln_f"])[:, -1] @ model.lm_head.weight[7]
        row = found.direct[found.items.index(f"transformer.h.1.attn head {head}")]
        torch.testing.assert_close(row, by_hand.detach(), atol=1e-10, rtol=1e-10)
    table = found.matrix()
    assert table.values.shape == (2, 4) and table.axes == ("layer", "head")


@pytest.mark.parametrize("parts", ["layer", "channel"])
@pytest.mark.parametrize("name", case_names)
def test_the_parts_add_up_to_the_score_in_any_model(name, parts):
    case = CASES[name]
    model, x = case.build().double(), as_double(case.example())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = contributions(model, x, target=case.target, parts=parts)
        whole = relevance(model, x, target=case.target, layers=found.layers[0].partition(" #")[0])
    assert float(found.ledger.relative.max()) < 1e-5
    torch.testing.assert_close(found.direct.sum(dim=0), found.ledger.total("part"))
    (first, *_) = whole.layers.values()
    rows = [row for row, layer in enumerate(found.layers) if layer == found.layers[0]]
    assert float(first[0].sum()) == pytest.approx(float(found.total[rows].sum()), rel=1e-6, abs=1e-9)


def test_a_planted_path_has_all_of_the_score():
    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.late = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = x + self.used(x)
            x = x + self.unused(x)
            return x + self.late(x)

    model = Planted().double()
    with torch.no_grad():
        for layer in (model.used, model.unused, model.late):
            layer.weight.zero_(), layer.bias.zero_()
        model.used.weight[0, 1] = 3.0  # the first number gets three times the second
        model.late.weight[1, 0] = 2.0  # and the second then twice the first
    found = contributions(model, torch.tensor([[1.0, 5.0]]).double(), target=1)
    assert found.items == ("used", "unused", "late")
    # y1 = x1 + 2 (x0 + 3 x1) = 5 + 2 + 30
    assert found.direct[:, 0].tolist() == [0, 0, 32] and found.inputs.tolist() == [5]
    assert found.total[:, 0].tolist() == [30, 0, 32]


def test_a_chain_gives_its_last_layer_the_direct_contribution():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    found = contributions(model, normal(2, 3).double(), ["1", "3"], target=0)
    assert found.direct[0].abs().max() == 0
    torch.testing.assert_close(found.direct[1] + found.constants, found.score)


def test_what_cannot_be_cut_is_said():
    model = CASES["mlp"].build()
    x = CASES["mlp"].example()
    with pytest.raises(errors.LayerNotFound, match="no attention"):
        contributions(model, x, target=0, parts="head")
    with pytest.raises(errors.LayerNotFound, match="no axis of positions"):
        contributions(model, x, target=0, parts="position")
    with pytest.raises(errors.OptionError, match="parts"):
        contributions(model, x, target=0, parts="heads")
    found = contributions(model, x, target=0)
    with pytest.raises(errors.OptionError, match="whole layers"):
        found.matrix()


def test_the_model_comes_back_as_it_was(gpt2):
    model, x = gpt2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    contributions(model, x, target=(-1, 7), parts="head")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_relevance_patching_is_the_multiplier_times_the_change(gpt2):
    model, x = gpt2
    other = {**x, "input_ids": x["input_ids"].flip(1)}
    found = contributions(model, x, other=other, target=(-1, 7), multipliers="rules")
    names = [(name, False) for name in found.items]
    here, there = (kept(model, names, lambda given=given: model(**given)) for given in (x, other))
    whole = relevance(model, x, target=(-1, 7), layers=list(found.items))
    for item, row in zip(found.items, found.difference, strict=True):
        multiplier = whole.layers[item][0] / here[item]
        by_hand = (multiplier * (here[item] - there[item])).sum(dim=(1, 2))
        torch.testing.assert_close(row, by_hand, atol=1e-9, rtol=1e-7)
    assert found.ranked("difference")[0][0] in found.items
    with pytest.raises(errors.OptionError, match="other="):
        contributions(model, x, target=(-1, 7)).values("difference")
    short = {name: value[:, :-1] for name, value in x.items()}
    for multipliers in ("rules", "difference"):
        with pytest.raises(errors.InputError, match="same shape"):
            contributions(model, x, other=short, target=(-1, 7), multipliers=multipliers)


def test_an_other_input_that_lacks_a_tensor_is_said():
    class Two(nn.Module):
        def forward(self, series, table):
            return series * table

    x = {"series": torch.ones(1, 2), "table": torch.ones(1, 2)}
    net = nn.ModuleDict({"two": Two()})
    net.forward = lambda series, table: net["two"](series, table)
    with pytest.raises(errors.InputError, match="same inputs, got 'series', 'table' and 'series'"):
        contributions(net, x, "two", other={"series": x["series"]}, target=0)


def changed(example):
    """Another input of the same shapes: numbers and tokens in the reverse order."""
    if isinstance(example, dict):
        return {name: value if "mask" in name else changed(value) for name, value in example.items()}
    return example.flip(tuple(range(1, example.ndim)))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("hf_gpt2", ["transformer.h.0", "transformer.h.1"]), ("hf_llama", ["model.layers.0", "model.layers.1"]),
     ("lstm", ["rnn/output"]), ("cnn", ["pool"])],
)  # fmt: skip
def test_the_differences_of_all_that_the_score_passes_add_up_to_its_change(name, layers):
    case = CASES[name]
    model, x = case.build().double(), as_double(case.example())
    found = contributions(model, x, layers, other=changed(x), target=case.target, parts="channel")
    scores = [contributions(model, one, layers, target=case.target).score for one in (x, changed(x))]
    within = 1e-6 if name == "hf_llama" else 1e-10  # its norms are computed in float32
    for layer in dict.fromkeys(found.layers):
        rows = [row for row, of in enumerate(found.layers) if of == layer]
        torch.testing.assert_close(found.difference[rows].sum(dim=0), scores[0] - scores[1], atol=within, rtol=within)


def test_a_model_that_takes_another_route_is_told_what_to_give():
    class Route(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            h = self.layer(x)
            return h.relu() if x.sum() > 0 else h.tanh()

    model, x = Route(), torch.ones(1, 2)
    with pytest.raises(errors.InputError, match="multipliers='rules'"):
        contributions(model, x, "layer", other=-x, target=0)
    assert contributions(model, x, "layer", other=-x, target=0, multipliers="rules").difference.shape == (1, 1)


def test_the_difference_of_a_linear_model_with_batch_norm_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)).double().eval()
    x, other = normal(2, 2, 6, 6).double(), normal(2, 2, 6, 6, seed=3).double()
    for layer in ("0", "1", "2"):
        found = contributions(model, x, layer, other=other, target=1)
        torch.testing.assert_close(found.difference.sum(dim=0), (model(x) - model(other))[:, 1].detach())


def test_a_model_that_draws_noise_does_not_differ_from_itself():
    case = CASES["vae"]
    model, x = case.build().double(), as_double(case.example())
    found = contributions(model, x, other=x, target=case.target)
    assert float(found.difference.abs().max()) == 0 and float(found.total.abs().max()) > 0


def test_a_block_whose_attention_is_cut_into_heads_is_named(gpt2):
    model, x = gpt2
    with pytest.warns(UserWarning, match=r"transformer.h.0: holds attentions that are cut into heads"):
        found = contributions(model, x, ["transformer.h.0", "transformer.h.1.mlp"], target=(-1, 7), parts="head")
    assert found.items == (*(f"transformer.h.0.attn head {head}" for head in range(4)), "transformer.h.1.mlp")


def test_layers_that_are_found_are_those_that_are_named_also_where_something_writes_into_them():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)

        def forward(self, x):
            added = self.first(x)
            x = x + added
            added.zero_()
            return x + self.second(self.norm(x))

    torch.manual_seed(0)
    model, x = Writes().double(), normal(2, 3).double()
    found = contributions(model, x, target=0)
    named = contributions(model, x, list(found.layers), target=0)
    assert found.items == named.items == ("first", "second") and float(found.direct[0].abs().min()) > 0
    torch.testing.assert_close(found.direct, named.direct)
    torch.testing.assert_close(found.total, named.total)
