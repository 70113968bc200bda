"""Relevance of layers that return several tensors: passed, booked and held back whole, or by name."""

import pytest
import torch
from torch import nn

from layerlens import Lens, Relevance, concept_relevance, errors, rank_concepts, relevance, top_inputs
from tests.several_tensors import PACKED, flat, pair, two_heads

RNNS = {
    "lstm": {},
    "gru": {"kind": nn.GRU},
    "rnn": {"kind": nn.RNN},
    "two layers": {"layers": 2},
    "time first": {"batch_first": False},
    "bidirectional": {"bidirectional": True},
}


def series():
    return torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rnn", RNNS)
def test_relevance_leaves_a_layer_by_the_tensor_that_is_read(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = series()
    states, outputs = (relevance(model, x, target=0, layers="rnn") for model in (by_state, by_output))
    assert list(states.layers) == ["rnn/h_n"] and list(outputs.layers) == ["rnn/output"]
    assert states.layers["rnn"] is states.layers["rnn/h_n"]
    with torch.no_grad():  # the oracle: h w of the linear layer
        h = by_state.rnn(x if by_state.batch_first else x.transpose(0, 1))[1]
        h = h[0] if isinstance(h, tuple) else h
        ends = h[-2:] if by_state.rnn.bidirectional else h[-1:]
        weight = by_state.fc.weight[0].reshape(len(ends), 1, 5)
    (state,), (output,) = states.layers["rnn"], outputs.layers["rnn"]
    torch.testing.assert_close(state[-len(ends) :], ends * weight)
    time = 1 if by_output.batch_first else 0
    torch.testing.assert_close(output.sum(dim=(time, 2)), state.sum(dim=(0, 2)))
    for found in (states, outputs):
        assert found.profile.layers == ("rnn",)
        torch.testing.assert_close(found.profile.values[0, 0], (ends * weight).sum() / 4)
    torch.testing.assert_close(states.tensor, outputs.tensor)


@pytest.mark.parametrize("rnn", [name for name in RNNS if name != "bidirectional"])
def test_conditions_hold_back_every_tensor(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = series()
    found = [relevance(model, x, target=0, through={"rnn": [0, 3]}) for model in (by_state, by_output)]
    torch.testing.assert_close(found[0].tensor, found[1].tensor)
    torch.testing.assert_close(found[0].ledger.absorbed, found[1].ledger.absorbed)
    assert float(found[0].ledger.relative.max()) < 1e-9 and found[0].ledger.by_sample
    (held,) = [entry for entry in found[0].ledger.entries if "held back" in entry.source]
    (state,) = relevance(by_state, x, target=0, layers="rnn").layers["rnn/h_n"]
    torch.testing.assert_close(held.amount, state[-1][:, [1, 2, 4]].sum(dim=1))
    named = relevance(by_state, x, target=0, through={"rnn/h_n": [0, 3]})
    torch.testing.assert_close(named.tensor, found[0].tensor)
    each = relevance(by_state, x, target=0, through={"rnn": [[0], [1], [0], [2, 3]]})
    torch.testing.assert_close(
        each.tensor, relevance(by_output, x, target=0, through={"rnn": [[0], [1], [0], [2, 3]]}).tensor
    )


def test_what_holds_back_nothing_is_refused():
    by_state, by_output = pair()
    x = series()
    with pytest.raises(errors.RelevanceError, match="no relevance passes 'rnn/output'"):
        relevance(by_state, x, target=0, through={"rnn/output": [0]})
    with pytest.raises(errors.RelevanceError, match="no relevance passes 'rnn#1'"):
        relevance(by_output, x, target=0, through={"rnn#1": [0]})
    with pytest.raises(
        errors.SelectionError, match=r"no tensor 'h' .*'rnn/output', 'rnn/h_n', 'rnn/c_n'.*Closest: h_n"
    ):
        relevance(by_output, x, target=0, through={"rnn/h": [0]})
    with pytest.raises(errors.OptionError, match="two conditions name layer 'rnn'"):
        relevance(by_output, x, target=0, through={"rnn": [0], "r*": [1]})
    both, _ = pair(bidirectional=True)
    with pytest.raises(errors.SelectionError, match="with 5 and 10 units"):
        relevance(both, x, target=0, through={"rnn": [0]})
    assert relevance(both, x, target=0, through={"rnn/h_n": [0]}).tensor.any()


@pytest.mark.parametrize("rnn", RNNS)
def test_concepts_are_the_same(rnn):
    by_state, by_output = pair(**RNNS[rnn])
    x = series()
    if rnn == "bidirectional":
        with pytest.raises(errors.SelectionError, match="Name one: 'rnn/output', 'rnn/h_n'"):
            concept_relevance(by_output, x[:1], "rnn", target=0)
        by_state, by_output = pair(bidirectional=True)
        assert concept_relevance(by_output, x[:1], "rnn/output", target=0).tensor.any()
        return
    ranked = [rank_concepts(model, x, "rnn", target=0, sample=2) for model in (by_state, by_output)]
    assert [concept.unit for concept in ranked[0]] == [concept.unit for concept in ranked[1]]
    torch.testing.assert_close(
        torch.tensor([concept.relevance for concept in ranked[0]]),
        torch.tensor([concept.relevance for concept in ranked[1]]),
    )
    assert ranked[0] == rank_concepts(by_state, x, "rnn/h_n", target=0, sample=2)
    maps = [concept_relevance(model, x[:1], "rnn", target=0) for model in (by_state, by_output)]
    torch.testing.assert_close(maps[0].tensor, maps[1].tensor)
    whole = relevance(by_state, x[:1], target=0).tensor.sum()
    units = concept_relevance(by_state, x[:1], "rnn", units=range(5), target=0).tensor
    torch.testing.assert_close(units.sum(), whole)
    top = [top_inputs(model, x, "rnn", target=0) for model in (by_state, by_output)]
    torch.testing.assert_close(top[0].values, top[1].values)
    assert torch.equal(top[0].index, top[1].index) and [one.layer for one in top] == ["rnn/h_n", "rnn/output"]
    active = top_inputs(by_state, x, "rnn", by="activation")
    assert active.layer == "rnn/h_n" and active.values.shape == (5, 4)


def test_calls_are_named():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.fc = nn.LSTMCell(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.fc(state[0])

    torch.manual_seed(0)
    model, x = Loop().double(), series()
    found = relevance(model, x, target=0, layers="cell")
    assert list(found.layers) == ["cell/h_1", "cell/c_1"] and len(found.layers["cell/h_1"]) == 6
    assert not found.layers["cell/c_1"][-1].any() and found.layers["cell/c_1"][0].any()
    with pytest.raises(errors.SelectionError, match="ran 6 times; name one call, 'cell#0'"):
        rank_concepts(model, x, "cell", target=0)
    assert len(rank_concepts(model, x, "cell#5", target=0)) == 5
    last = concept_relevance(model, x[:1], "cell#5", units=range(5), target=0)
    torch.testing.assert_close(last.tensor.sum(), relevance(model, x[:1], target=0).tensor.sum())


@pytest.mark.parametrize("packed", PACKED)
def test_both_tensors_of_a_block_are_booked(packed):
    model, x = two_heads(packed), torch.randn(3, 3, dtype=torch.float64)
    names = [f"block/{name}" for name in PACKED[packed][1]]
    found = relevance(model, x, target=0, layers="block")
    assert list(found.layers) == names
    with torch.no_grad():
        tensors = [tensor for tensor in flat(model.block(x)) if tensor is not None]
    for name, head, tensor in zip(names, (model.one, model.two), tensors, strict=True):
        torch.testing.assert_close(found.layers[name][0], tensor * head.weight[0].detach())
        alone = relevance(model, x, target=0, through={name: range(4)})
        assert alone.ledger.absorbed.abs().max() < 1e-9  # every unit passes
        other = relevance(model, x, target=0, through={name: [1]})
        torch.testing.assert_close(other.ledger.absorbed, found.layers[name][0][:, [0, 2, 3]].sum(dim=1))
        torch.testing.assert_close(relevance(model, x, target=0, layers=name).layers[name][0], found.layers[name][0])
    with pytest.raises(errors.RecordError, match="'block' names several tensors; name one of"):
        _ = found.layers["block"]
    units = [sum(found.layers[name][0][0, unit].item() for name in names) for unit in range(4)]
    for concept in rank_concepts(model, x, "block", target=0):
        assert abs(concept.relevance - units[concept.unit]) < 1e-9
    with pytest.raises(errors.SelectionError, match=f"several tensors, .*Name one: '{names[0]}', '{names[1]}'"):
        top_inputs(model, x, "block", target=0)
    assert top_inputs(model, x, names[1], target=0).layer == names[1]


class Both(nn.Module):
    """Returns a tensor and what it made of it, so that one lies on the way of the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        a = self.a(x).tanh()
        return self.b(a), a, a


def test_relevance_inside_a_layer_is_not_counted_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.one, self.two = Both(), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            b, a, again = self.block(x)
            return self.one(b) + self.two(a) * 2 + again[:, :2]

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(3, 3, dtype=torch.float64)
    found = relevance(model, x, target=0, layers="block", rules="epsilon")
    with torch.no_grad():
        b, a, _ = model.block(x)
    torch.testing.assert_close(found.layers["block/0"][0], b * model.one.weight[0].detach())
    torch.testing.assert_close(found.layers["block/1"][0], a * model.two.weight[0].detach() * 2)
    torch.testing.assert_close(found.layers["block/2"][0].sum(1), a[:, 0])
    held = relevance(model, x, target=0, through={"block/1": [0]}, rules="epsilon").ledger.absorbed
    torch.testing.assert_close(held, found.layers["block/1"][0][:, 1:].sum(dim=1))


def test_names_of_layers_survive_a_file(tmp_path):
    by_state, _ = pair()
    found = relevance(by_state, series(), target=0, layers=["rnn", "fc"])
    again = Relevance.load(found.save(tmp_path / "found"))
    torch.testing.assert_close(again.layers["rnn"][0], found.layers["rnn/h_n"][0])
    named = Lens(by_state).relevance(series(), target=0, layers=["rnn/c_n", "rnn/h_n"])
    assert named.profile.layers == ("rnn/h_n", "rnn/c_n") and not named.layers["rnn/c_n"][0].any()
