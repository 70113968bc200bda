"""Edges of a circuit, kept and removed, against edge patching written by hand."""

import pytest
import torch
from torch import nn

from layerlens import attribution_graph, circuit_faithfulness, errors
from tests.analyzers.concepts.test_basis_everywhere import SAE
from tests.cases import CASES, normal


class Net(nn.Module):
    """Two convolutions, the second also reads the first, and the score reads both."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x):
        first = self.first(x)
        return self.last(first + self.second(first.tanh()))

    def last(self, states):
        return self.head(states.relu().mean(dim=(2, 3)))


def by_hand_in_the_network(net, x, other, gone, cut):
    """The score when some edges are cut; `gone` returns what takes the place of a channel of a layer."""
    first, second = net.first(x), torch.empty(0)
    for channel in range(3):
        if ("input", f"first channel {channel}") in cut:
            first[:, channel] = net.first(other)[:, channel]

    def read(receiver):
        mixed = first.clone()
        for channel in range(3):
            if (f"first channel {channel}", receiver) in cut:
                mixed[:, channel] = gone("first", channel)
        return mixed

    second = torch.stack([net.second(read(f"second channel {k}").tanh())[:, k] for k in range(3)], dim=1)
    for channel in range(3):
        if (f"second channel {channel}", "score") in cut:
            second[:, channel] = gone("second", channel)
    return net.last(read("score") + second)[:, 1]


def check(found, graph, score, inputs=True):
    """Compare the curves with scores by hand; the best edges are those of the largest size."""
    edges = [edge[:2] for edge in graph.edges() if inputs or edge[0] != "input"]
    start, empty = score(set()), score(set(edges))
    whole = (start - empty).mean()
    for place, share in enumerate(found.points.tolist()[1:-1], start=1):
        k = round(share * len(edges))
        kept, removed = score(set(edges[k:])), score(set(edges[:k]))
        torch.testing.assert_close(found.values[0, place], ((kept - empty) / whole).mean(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.values[1, place], ((removed - empty) / whole).mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.checks["scores"], torch.stack([start.mean(), empty.mean()]))
    return edges


@pytest.mark.parametrize("value", ["other", "zero", "mean", "resample"])
def test_edges_of_channels_by_hand(value):
    torch.manual_seed(0)
    net, x, other = Net().double(), normal(3, 2, 5, 5).double(), normal(3, 2, 5, 5, seed=4).double()
    graph = attribution_graph(net, x, ["first", "second"], nodes="channel", target=1, keep=0)
    with torch.no_grad():
        clean, corrupted = (
            {"first": net.first(one), "second": net.second(net.first(one).tanh())} for one in (x, other)
        )
        if value == "other":
            options, gone = {"other": other}, lambda layer, channel: corrupted[layer][:, channel]
        elif value == "zero":
            options, gone = {}, lambda layer, channel: 0.0
        elif value == "mean":
            options, gone = {"value": "mean"}, lambda layer, channel: clean[layer][:, channel].mean(dim=0)
        else:
            options = {"value": "resample", "reference": other[:1]}
            gone = lambda layer, channel: corrupted[layer][:1, channel]  # noqa: E731
        found = circuit_faithfulness(net, graph, x, target=1, of="edges", k=[1, 4, 9], controls=0, **options)
        edges = check(
            found, graph, lambda cut: by_hand_in_the_network(net, x, other, gone, cut), inputs=value == "other"
        )
    assert found.along == "share of the edges" and found.settings["edges"] == len(edges)
    assert ("first channel 0", "score") in edges and ("input", "score") not in edges


def test_edges_of_heads_by_hand():
    """Heads and MLPs of a language model read streams of their own, with some senders of a corrupted text."""
    case = CASES["hf_gpt2"]
    model, x = case.build().double(), case.example()
    other = {**x, "input_ids": x["input_ids"].flip(1)}
    graph = attribution_graph(model, x, nodes="head", target=(-1, 7), keep=0)
    gpt = model.transformer
    places = torch.arange(x["input_ids"].shape[1])

    def heads_of(block, stream):
        given = []
        handle = block.attn.c_proj.register_forward_pre_hook(lambda module, args: given.append(args[0]))
        causal = torch.full((len(places), len(places)), -torch.inf).double().triu(1)[None, None]
        block.attn(block.ln_1(stream), attention_mask=causal)
        handle.remove()
        return given[0].chunk(4, dim=-1)

    def score(cut, ids=x["input_ids"], held=None):
        made = {}

        def stream(receiver, blocks, heads_too=False):
            def sent(name):
                return held[name] if (name, receiver) in cut else made[name]

            states = gpt.wte(other["input_ids"] if ("input", receiver) in cut else ids) + gpt.wpe(places)
            for number in range(blocks + heads_too):
                names = [f"transformer.h.{number}.attn head {head}" for head in range(4)]
                states = states + gpt.h[number].attn.c_proj(torch.cat([sent(name) for name in names], dim=-1))
                if number < blocks:
                    states = states + sent(f"transformer.h.{number}.mlp")
            return states

        for number, block in enumerate(gpt.h):
            for head in range(4):
                name = f"transformer.h.{number}.attn head {head}"
                made[name] = heads_of(block, stream(name, number))[head]
            name = f"transformer.h.{number}.mlp"
            made[name] = block.mlp(block.ln_2(stream(name, number, True)))
        logits = model.lm_head(gpt.ln_f(stream("score", len(gpt.h))))
        return made if held is None else logits[:, -1, 7]

    with torch.no_grad():
        held = score((), other["input_ids"])
        torch.testing.assert_close(score((), held=held), model(**x).logits[:, -1, 7])
        found = circuit_faithfulness(model, graph, x, other, target=(-1, 7), of="edges", k=[3, 12], controls=0)
        check(found, graph, lambda cut: score(cut, held=held))
        torch.testing.assert_close(found.checks["scores"][1], model(**other).logits[:, -1, 7].mean())


def test_features_of_a_basis_are_kept_and_removed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    from layerlens import Basis

    basis, x, other = Basis("1", SAE(6, 5).double()), normal(3, 4).double(), normal(3, 4, seed=5).double()
    graph = attribution_graph(net, x, nodes=["3", basis], target=1, keep=0)
    for of in ("nodes", "edges"):
        found = circuit_faithfulness(net, graph, x, other, target=1, of=of, k=[1, 2], controls=1, bases=basis)
        assert found.series[-1] == "random removed" and bool(found.values.isfinite().all())
        torch.testing.assert_close(
            found.checks["scores"], torch.stack([net(x)[:, 1].mean(), net(other)[:, 1].mean()]).detach()
        )
    with pytest.raises(errors.LayerLensError):
        circuit_faithfulness(net, graph, x, other, target=1)


def test_what_has_no_edges():
    net = Net()
    with pytest.raises(errors.OptionError, match="of='edges' needs a graph"):
        circuit_faithfulness(net, ["first"], normal(2, 2, 5, 5), target=0, of="edges")
    with pytest.raises(errors.OptionError, match="unknown of"):
        circuit_faithfulness(net, ["first"], normal(2, 2, 5, 5), target=0, of="links")
