"""Features of a basis as parts and nodes, against modules and hooks written by hand that encode and decode."""

import pytest
import torch
from torch import nn

from layerlens import Basis, attribution_graph, contributions, errors, relevance
from tests.analyzers.concepts.test_basis_everywhere import SAE, case, made
from tests.cases import CASES

pytest.importorskip("sklearn")

ROWS = [("cnn", "pca", "epsilon"), ("cnn", "nmf", "epsilon"), ("lstm", "sae", "gate"), ("lstm", "pca", "gate"),
        ("transformer", "sae", "cp"), ("transformer", "directions", "cp")]  # fmt: skip


class Front(nn.Module):
    """The model up to the basis; its score is what codes, or the error, have of given multipliers."""

    def __init__(self, name, net, basis):
        super().__init__()
        self.name, self.net, self.coder = name, net, basis

    def hidden(self, x):
        if self.name == "cnn":
            return self.net[:3](x).movedim(1, -1)
        if self.name == "lstm":
            return self.net.rnn(x.transpose(0, 1))[0].transpose(0, 1)
        return self.net.block(self.net.embed(x))

    def forward(self, x):
        hidden = self.hidden(x)
        codes = self.coder.encode_last(hidden)
        part = codes if self.of == "codes" else hidden - self.coder.decode_last(codes, hidden)
        return (part * self.slope).flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("name", "kind", "rules"), ROWS)
@pytest.mark.filterwarnings("ignore:relevance. the ledger does not close:UserWarning")  # of features that are off
def test_edges_of_features_are_those_of_a_module_that_encodes(name, kind, rules):
    net, x, layer, *_ = case(name)
    found = made(kind, net, x, layer)
    graph = attribution_graph(net, x, nodes=found, target=1, rules=rules, keep=0)
    assert float(graph.residual.abs().max()) < 1e-9 and float(graph.ledger.relative.max()) < 1e-9
    front = Front(name, net, found)
    hidden = front.hidden(x).detach().requires_grad_()
    tail = {"cnn": lambda h: net[3:](h.movedim(-1, 1)), "transformer": lambda h: net.head(h.mean(dim=1))}.get(
        name,
        lambda h: net.head(h.mean(dim=1)),  # the state goes its own way
    )
    (slope,) = torch.autograd.grad(tail(hidden)[:, 1].sum(), hidden)  # what follows is linear
    with torch.no_grad():
        codes = found.encode_last(hidden)
        zeros = found.decode_last(torch.zeros_like(codes), hidden)
    rows = torch.stack(
        [found.decode_last(one.expand_as(codes), hidden) - zeros for one in torch.eye(codes.shape[-1]).double()]
    )
    by_code = (rows * slope).sum(dim=-1).movedim(0, -1).detach()
    sent = {receiver: graph.sent[place, 0] for place, receiver in enumerate(graph.receivers)}
    for part in range(codes.shape[-1] + 1):
        feature = part < codes.shape[-1]
        node = f"{layer} {found.label(part) if feature else 'error'}"
        front.of, front.slope = ("codes", torch.zeros_like(by_code)) if feature else ("error", slope)
        if feature:
            front.slope[..., part] = by_code[..., part]
            total = (codes * front.slope).flatten(1).sum(dim=1)
        else:
            total = ((hidden - found.decode_last(codes, hidden)) * slope).flatten(1).sum(dim=1).detach()
        torch.testing.assert_close(graph.relevance[graph.nodes.index(node)], total, rtol=0, atol=1e-10)
        if not total.any():
            continue
        whole = relevance(front, x, target=0, rules=rules).values
        torch.testing.assert_close(sent[node], whole.flatten(1).sum(dim=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "kind", "rules"), ROWS)
def test_contributions_of_features_are_the_relevance_of_the_basis(name, kind, rules):
    net, x, layer, *_ = case(name)
    found = made(kind, net, x, layer)
    table = contributions(net, x, other=x.flip(0), parts=found, target=1, rules=rules)
    by_layer = relevance(net, x, target=1, rules=rules, layers=found).bases[layer]
    rows = by_layer.checks["per sample"][[place for place, item in enumerate(by_layer.items) if item != "constant"]]
    torch.testing.assert_close(table.total, rows, rtol=0, atol=1e-10)
    left = table.direct.sum(dim=0) + table.inputs + table.constants + table.absorbed
    torch.testing.assert_close(left, table.score.double(), rtol=0, atol=1e-9)
    whole = contributions(net, x, layer, other=x.flip(0), target=1, rules=rules)
    torch.testing.assert_close(table.difference.sum(dim=0), whole.difference[0], rtol=0, atol=1e-9)
    assert table.parts == "feature" and table.items[-1] == f"{layer} error" and table.settings["bases"]


def test_features_among_heads_and_layers_close_at_every_node():
    case = CASES["hf_gpt2"]
    model, x = case.build().double(), case.example()
    width = model.config.n_embd
    torch.manual_seed(0)
    sae = Basis("transformer.h.0", SAE(width, 20).double())
    for rules in ("cp", "attn"):
        graph = attribution_graph(model, x, nodes=["head", sae], target=(-1, 7), keep=0, rules=rules)
        assert float(graph.residual.abs().max()) < 1e-8 and float(graph.ledger.relative.max()) < 1e-8
    plain = attribution_graph(model, x, nodes="head", target=(-1, 7), keep=0, rules=rules)
    shared = [name for name in plain.nodes if name in graph.nodes]
    assert shared == list(plain.nodes) and len(graph.nodes) == len(plain.nodes) + 21
    for name in shared:  # features and error together send on what the stream does
        torch.testing.assert_close(
            graph.relevance[graph.nodes.index(name)], plain.relevance[plain.nodes.index(name)], rtol=0, atol=1e-9
        )
    first = next(name for name, _ in graph.ranked() if " feature " in name)
    assert any(graph.edge(f"transformer.h.0.attn head {head}", first) for head in range(4))


def test_features_below_batch_norm_and_a_decoder_that_is_not_linear():
    net, x, *_ = case("cnn")
    for layer, rules in (("0", "epsilon_plus"), ("0", "epsilon"), ("1", "epsilon_plus")):
        found = made("pca", net, x, layer)
        graph = attribution_graph(net, x, nodes=[found, "3"], target=1, rules=rules, keep=0)
        assert float(graph.residual.abs().max()) < 1e-9 and graph.layers[1:] == (*[layer] * 4, "3")
    with pytest.warns(UserWarning, match="0: is the same tensor as 'the features of 0'"):
        attribution_graph(net, x, "0", nodes=made("pca", net, x, "0"), target=1)
    square = Basis("2", SAE(6, 9, square=True).double())
    graph = attribution_graph(net, x, nodes=["0", square], target=1, keep=0)
    assert float(graph.residual.abs().max()) < 1e-9 and float(graph.ledger.relative.max()) < 1e-9


def test_what_names_no_part():
    net, x, layer, *_ = case("cnn")
    found = made("pca", net, x, layer)
    with pytest.raises(errors.OptionError, match="neither a kind of parts"):
        contributions(net, x, parts="featur", target=1)
    with pytest.raises(errors.OptionError, match="one kind of parts"):
        contributions(net, x, parts=["layer", "channel"], target=1)
    with pytest.raises(errors.OptionError, match="both name layers"):
        contributions(net, x, "0", parts=["1", found], target=1)
    assert contributions(net, x, "0", parts=found, target=1).layers == ("0", *[layer] * 4)
    assert contributions(net, x, parts="unit", target=1).parts == "channel"
    detached = Basis(
        layer, encode=lambda h: h.detach() @ torch.ones(6, 2).double(), decode=lambda c: c @ torch.ones(2, 6).double()
    )
    assert contributions(net, x, parts=detached, target=1).direct.shape == (3, 4)
    with pytest.raises(errors.InputError, match=r"encode of Basis.*has no gradient"):
        attribution_graph(net, x, nodes=detached, target=1)
