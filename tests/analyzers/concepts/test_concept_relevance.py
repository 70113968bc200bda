"""Concept relevance: relevance through single units adds up to all of it."""

import pytest
import torch
from torch import nn

from layerlens import Lens, concept_relevance, errors, rank_concepts, relevance
from tests.cases import CASES, double, normal
from tests.snapshot import Snapshot

LAYER = {"cnn": "conv1", "hf_resnet": "resnet.encoder.stages.0", "mlp": "0", "hf_vit": "vit.layers.0", "gan": "3"}


def layer_of(name, model):
    paths = [path for path, _ in model.named_modules() if path]
    wanted = LAYER[name]
    return wanted if wanted in paths else next(path for path in paths if path.count(".") == wanted.count("."))


@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus"])
@pytest.mark.parametrize("name", ["cnn", "gan", "mlp"])
def test_the_relevance_through_each_unit_adds_up(name, rules):
    """Every rule is linear in the relevance that comes in."""
    case = CASES[name]
    model, x = case.build().double(), double(case.example())[:1]
    target = case.target[:1] if isinstance(case.target, list) else case.target
    layer = layer_of(name, model)
    whole = relevance(model, x, target=target, rules=rules, layers=layer)
    count = whole.layers[layer][0].shape[1]
    parts = concept_relevance(model, x, layer, units=list(range(count)), target=target, rules=rules)
    torch.testing.assert_close(parts.values.sum(dim=0), whole.values[0], rtol=1e-9, atol=1e-12)
    assert float(parts.ledger.relative.max()) < 1e-9
    assert parts.targets[1].endswith("unit 1")
    ranked = rank_concepts(model, x, layer, target=target, rules=rules)
    sums = whole.layers[layer][0][0].reshape(count, -1).sum(dim=1)
    assert [concept.unit for concept in ranked] == sums.abs().argsort(descending=True).tolist()
    assert ranked[0].relevance == pytest.approx(float(sums[ranked[0].unit]))
    assert sum(concept.share for concept in ranked) == pytest.approx(1)


def test_all_units_are_no_condition_and_a_mask_is_one():
    model, x = CASES["hf_vit"].build().double(), double(CASES["hf_vit"].example())
    layer = "vit.embeddings"  # all relevance passes it; around a layer inside a block some goes by the skip connection
    whole = relevance(model, x, target=1, layers=layer)
    shape = whole.layers[layer][0].shape
    all_units = relevance(model, x, target=1, through={layer: list(range(shape[-1]))})
    torch.testing.assert_close(all_units.tensor, whole.tensor)
    tokens = torch.zeros(shape[1], 1, dtype=torch.bool)
    tokens[2:5] = True
    some, rest = (relevance(model, x, target=1, through={layer: mask}) for mask in (tokens, ~tokens))
    torch.testing.assert_close(some.tensor + rest.tensor, whole.tensor)
    assert float(some.ledger.relative.max()) < 1e-9
    assert any(entry.source == "held back by the condition" for entry in some.ledger.entries)


def test_conditions_hold_together():
    model, x = CASES["cnn"].build().double(), double(CASES["cnn"].example())
    first, second = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)][:2]
    both = relevance(model, x, target=1, through={first: 0, second: [1, 2]})
    assert float(both.ledger.relative.max()) < 1e-9
    more = relevance(model, x, target=1, through={second: [1, 2]})
    assert not torch.equal(both.values, more.values)


def test_the_model_is_borrowed():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    before = Snapshot(model, x)
    Lens(model).concept_relevance(x[:1], layer_of("cnn", model), units=2, target=1)
    before.check()


@pytest.mark.parametrize("units, says", [
    (99, "there is no unit 99"), ([], "no unit of layer"), ([[0], [1], [2]], "units for 3 samples"),
    (torch.ones(7, 7, dtype=torch.bool), "does not broadcast"), ([True], "there is no unit True"),
])  # fmt: skip
def test_bad_units_are_refused(units, says):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(errors.OptionError, match=says):
        relevance(net, normal(2, 3), target=0, through={"0": units})


def test_other_bad_use():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(errors.InputError, match="one sample at a time"):
        concept_relevance(net, normal(2, 3), "0", target=0)
    with pytest.raises(errors.LayerNotFound):
        relevance(net, normal(2, 3), target=0, through={"7": 0})
