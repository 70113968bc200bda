"""The graph against contributions, planted paths, and its own ledgers."""

import warnings

import pytest
import torch
from torch import nn

from layerlens import attribution_graph, contributions, errors
from tests.analyzers.sensitivity.interventions.oracles import as_double
from tests.cases import CASES, case_names, normal


@pytest.mark.parametrize("name", case_names)
def test_the_ledger_of_every_node_closes_in_any_model(name):
    case = CASES[name]
    model, x = case.build().double(), as_double(case.example())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = attribution_graph(model, x, target=case.target, keep=0)
        parts = contributions(model, x, target=case.target)
    assert float(found.residual.abs().max()) < 1e-6 * float(found.score.abs().max().clamp_min(1))
    first = len(found.inputs)
    assert found.nodes[first:] == parts.items
    torch.testing.assert_close(found.sent[0, first:], parts.direct)
    torch.testing.assert_close(found.relevance[first:], parts.total, atol=1e-6, rtol=1e-6)
    assert float(found.ledger.relative.max()) < 1e-5


def test_heads_send_to_heads_what_their_values_read():
    case = CASES["hf_gpt2"]
    model, x = case.build().double(), case.example()
    found = attribution_graph(model, x, nodes="head", target=(-1, 7), keep=0)
    parts = contributions(model, x, target=(-1, 7), parts="head")
    torch.testing.assert_close(found.relevance[1:], parts.total)
    assert float(found.residual.abs().max()) < 1e-10
    later = "transformer.h.1.attn head 0"
    assert found.edge("transformer.h.0.attn head 2", later) != 0
    assert found.edge("transformer.h.1.attn head 1", "transformer.h.1.mlp") != 0
    with pytest.raises(errors.OptionError, match="no node"):
        found.edge("transformer.h.1.attn head 9", later)


def planted():
    """Two parts in a row that carry all, and one that carries nothing."""

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.idle, self.last = (nn.Linear(2, 2, bias=False) for _ in range(3))

        def forward(self, x):
            x = x + self.first(x)
            x = x + self.idle(x)
            return x + self.last(x)

    model = Planted().double()
    with torch.no_grad():
        for layer in (model.first, model.idle, model.last):
            layer.weight.zero_()
        model.first.weight[0, 1], model.last.weight[1, 0] = 3.0, 2.0
    return model


def test_a_planted_circuit_is_found_exactly():
    found = attribution_graph(planted(), torch.tensor([[1.0, 5.0]]).double(), target=1)
    assert found.edges() == [("last", "score", 32.0), ("first", "last", 30.0), ("input", "first", 30.0),
                             ("input", "score", 5.0), ("input", "last", 2.0)]  # fmt: skip
    small = found.prune(0.5)
    assert small.edges() == [("last", "score", 32.0), ("first", "last", 30.0), ("input", "first", 30.0)]
    assert small.residual.abs().max() < 1e-12
    assert set(small.nodes) == {"input", "first", "last"}


def test_what_is_not_opened_is_booked():
    model, x = CASES["encoder"].build().double(), as_double(CASES["encoder"].example())
    whole = attribution_graph(model, x, target=0, keep=0)
    part = attribution_graph(model, x, target=0, keep=0.3)
    assert 1 < len(part.receivers) < len(whole.receivers)
    rest = part.ledger.total("not opened")
    assert rest.abs().max() > 0
    left = part.ledger.inputs + part.ledger.additive + part.ledger.absorbed + rest
    torch.testing.assert_close(left, part.score.double(), atol=1e-10, rtol=1e-10)
    closed = [name for name in whole.receivers if name not in part.receivers]
    with pytest.raises(errors.OptionError, match="not opened"):
        part.edge("input", closed[0])


def test_a_graph_of_networkx():
    networkx = pytest.importorskip("networkx")
    found = attribution_graph(planted(), torch.tensor([[1.0, 5.0]]).double(), target=1)
    graph = found.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph["last"]["score"]["weight"] == 32.0 and graph.nodes["first"]["relevance"] == 30.0


def test_an_option_out_of_range():
    with pytest.raises(errors.OptionError, match="keep"):
        attribution_graph(planted(), normal(1, 2).double(), target=0, keep=2)
