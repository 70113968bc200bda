"""LSTM and GRU layers as one node: the values of their steps, and the steps where the closed form does not hold."""

import itertools

import pytest
import torch
from torch import nn

from layerlens import relevance
from layerlens.analyzers.graph.graph import Graph
from layerlens.analyzers.graph.operation import Kind, Row
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.analyzers.relevance.rules.operation_table import TABLE, register
from layerlens.analyzers.relevance.rules.recurrent import WHOLE
from layerlens.rules import Epsilon, Part, Rulebook

STARTS = ("zeros", "constant", "input", "cell of the input")


class Net(nn.Module):
    """A recurrent net whose first states are as asked."""

    def __init__(self, kind, start="zeros", **options):
        super().__init__()
        self.rnn, self.start = kind(3, 4, num_layers=2, **options), start
        self.init, width = nn.Linear(3, 4), options.get("proj_size", 4)
        self.head = nn.Linear(width * (1 + self.rnn.bidirectional), 2)

    def forward(self, x):
        steps = x if self.rnn.batch_first else x.transpose(0, 1).contiguous()
        layers, width = 2 * (1 + self.rnn.bidirectional), self.rnn.proj_size or 4
        of_input = self.init(x[:, 0]).expand(layers, -1, -1).contiguous()
        constant = torch.full_like(of_input, 0.3).detach()
        h, c = {
            "zeros": (0 * constant, 0 * constant),
            "constant": (constant, -constant),
            "input": (of_input, 2 * of_input),
            "cell of the input": (constant, of_input),
        }[self.start]
        states = (h[..., :width].contiguous(), c) if isinstance(self.rnn, nn.LSTM) else h
        y, ends = self.rnn(steps, states)
        last = ends[1][-1] if isinstance(self.rnn, nn.LSTM) else ends[-1]
        return self.head(y.mean(1 if self.rnn.batch_first else 0)) + last[:, :2]


class Loop(nn.Module):
    """A cell, step by step."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def both(monkeypatch, net, x, **options):
    """As one node, and step by step."""
    net = net.double().eval()
    whole = relevance(net, x, target=1, **options)
    with monkeypatch.context() as patch:
        for function in list(WHOLE):
            patch.delitem(WHOLE, function)
        return whole, relevance(net, x, target=1, **options)


def cases(kind):
    """(options, first states, rulebook): each value of each."""
    more = [{"proj_size": 3, "bidirectional": True}] if kind is nn.LSTM else []
    yield from zip(itertools.repeat({}), STARTS * 2, ["gate"] * 4 + ["attn"] * 4, strict=False)
    yield from zip(
        [{"batch_first": True}, {"bidirectional": True}, {"bias": False}, *more], STARTS, ["gate"] * 4, strict=False
    )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_layer_as_one_node_has_the_relevance_of_its_steps(monkeypatch, kind):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3).double()
    for more, start, rules in cases(kind):
        whole, steps = both(monkeypatch, Net(kind, start, **more), x, rules=rules, layers="rnn")
        assert "RecurrentLayer" in whole.rules_used and "RecurrentLayer" not in steps.rules_used
        torch.testing.assert_close(whole.tensor, steps.tensor, rtol=1e-10, atol=1e-14)
        assert whole.layers.keys() == steps.layers.keys()
        for name, values in steps.layers.items():
            torch.testing.assert_close(whole.layers[name], values, rtol=1e-10, atol=1e-14)
        assert whole.ledger.by_sample and float(whole.ledger.relative.max()) < 1e-13
        booked, expected = (
            {(e.kind, e.layer, e.source): e.amount for e in one.ledger.entries} for one in (whole, steps)
        )
        if more.get("batch_first"):  # steps book a bias that torch adds to a product as a constant
            booked, expected = (
                {kind: one.ledger.total(kind) for kind in ("additive", "absorbed")} for one in (whole, steps)
            )
        assert booked.keys() == expected.keys()
        for entry, amount in expected.items():
            torch.testing.assert_close(booked[entry], amount, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_a_cell_as_one_node_has_the_relevance_of_its_operations(monkeypatch, kind):
    torch.manual_seed(0)
    whole, steps = both(monkeypatch, Loop(kind), torch.randn(2, 3, 3).double(), rules="attn")
    torch.testing.assert_close(whole.tensor, steps.tensor, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(whole.ledger.by_layer()["cell"], steps.ledger.by_layer()["cell"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_without_a_rulebook_its_backward_pass_is_the_gradient(kind):
    net, x = Net(kind, "input").double(), torch.randn(2, 5, 3).double().requires_grad_()
    with Recorder(Graph([x], TABLE), whole=WHOLE):
        score = net(x)[:, 0].sum()
    assert any(
        info.op == "RecurrentLayer" for info in Graph([x], TABLE).reached(Graph([x], TABLE).visit(score.grad_fn))
    )
    (found,), (expected,) = torch.autograd.grad(score, x), torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, expected)


def test_steps_are_kept_where_a_rule_or_a_question_is_about_a_part_of_them():
    torch.manual_seed(0)
    net, x = Net(nn.LSTM), torch.randn(2, 3, 3)
    assert "RecurrentLayer" in relevance(net, x, target=0).rules_used  # "auto"
    inside = Rulebook("inside", linear=[(Part.DENSE, Epsilon(0.1))])
    for asked in ({"rules": inside}, {"parameters": "rnn.*"}):
        assert "Sigmoid" in relevance(net, x, target=0, **asked).rules_used
    with register("Tanh", Row(Kind.RATIO, lambda node, x: (x * 0 + 1, 0.0)), replace=True), pytest.warns(UserWarning):
        assert "Tanh" in relevance(net, x, target=0).rules_used

    def packed(net, x):
        steps = nn.utils.rnn.pack_padded_sequence(x.transpose(0, 1), [3, 2])
        return net.head(net.rnn(steps)[1][0][-1])

    assert "Sigmoid" in relevance(net, x, target=0, forward=packed).rules_used
