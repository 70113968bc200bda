"""Faithfulness of circuits: planted parts, and one run with hooks at a time."""

import pytest
import torch
from torch import nn

from layerlens import ablate, attribution_graph, circuit_faithfulness, contributions, errors
from layerlens.results import Curve, Ranking
from tests.cases import CASES, normal


def linear(weights=(3.0, 1.0, 0.0, -2.0)):
    """y is the sum of four hidden units with these weights."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4)), net[1].weight.copy_(torch.tensor([weights]))
    return net


NAMES = [f"0 channel {number}" for number in range(4)]
X = torch.ones(2, 4).double()


def test_the_curves_of_a_planted_order():
    found = circuit_faithfulness(linear(), NAMES, X, target=0, k=[1, 2, 3], controls=0)
    assert isinstance(found, Curve) and found.series == ("best kept", "best removed")
    assert found.points.tolist() == [0, 0.25, 0.5, 0.75, 1]
    torch.testing.assert_close(found.of("best kept"), torch.tensor([0, 1.5, 2, 2, 1]).double())  # of a score of 2
    torch.testing.assert_close(found.of("best removed"), torch.tensor([1, -0.5, -1, -1, 0]).double())
    area = float(torch.trapezoid(found.of("best kept"), found.points))
    assert float(found.checks["area"][0]) == pytest.approx(area)
    assert found.checks["scores"].tolist() == [2, 0] and found.settings["passes"] == 7


def test_parts_of_results_come_in_order_of_size_or_value():
    net = linear()
    by_contribution = contributions(net, X, "0", parts="channel", target=0)
    size = circuit_faithfulness(net, by_contribution, X, target=0, k=[1, 2], controls=0)
    value = circuit_faithfulness(net, by_contribution, X, target=0, k=[1, 2], controls=0, order="value")
    assert size.of("best kept")[:3].tolist() == pytest.approx([0, 1.5, 0.5])  # 3 of 2, then 3 - 2
    assert value.of("best kept")[:3].tolist() == pytest.approx([0, 1.5, 2])  # then 3 + 1
    graph = attribution_graph(net, X, "0", nodes="channel", target=0)
    ranking = ablate(net, X, "0", by="channel", target=0)
    for parts in (graph, ranking, dict(by_contribution.ranked("total"))):
        again = circuit_faithfulness(net, parts, X, target=0, k=[1, 2], controls=0)
        torch.testing.assert_close(again.values, size.values)


def test_kept_and_removed_by_hooks_and_by_hand():
    """Heads and MLPs of a language model take the values of a corrupted input, all but two of them."""
    case = CASES["hf_gpt2"]
    model, x = case.build().double(), case.example()
    other = {**x, "input_ids": x["input_ids"].flip(1)}
    names = ["transformer.h.1.attn head 2", "transformer.h.0.mlp", "transformer.h.0.attn head 1", "transformer.h.1.mlp"]
    found = circuit_faithfulness(model, names, x, other, target=(-1, 7), k=[2], controls=0)
    sites = {"transformer.h.0.attn.c_proj": [1], "transformer.h.1.attn.c_proj": [2]}
    mlps = ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    held = {}

    def score(given, replaced):
        handles = []
        for path, (head,) in sites.items():

            def cut(module, args, path=path, head=head):
                name = f"{path.removesuffix('.c_proj')} head {head}"
                width = args[0].shape[-1] // 4
                part = slice(head * width, (head + 1) * width)
                if replaced is None:
                    held[name] = args[0][..., part].clone()
                elif name in replaced:
                    new = args[0].clone()
                    new[..., part] = held[name]
                    return (new,)

            handles.append(model.get_submodule(path).register_forward_pre_hook(cut))
        for path in mlps:

            def set_output(module, args, output, path=path):
                if replaced is None:
                    held[path] = output.clone()
                elif path in replaced:
                    return held[path]

            handles.append(model.get_submodule(path).register_forward_hook(set_output))
        with torch.no_grad():
            result = model(**given).logits[:, -1, 7]
        for handle in handles:
            handle.remove()
        return result

    score(other, None)
    start, empty = score(x, ()), score(x, names)
    kept, removed = score(x, names[2:]), score(x, names[:2])
    whole = (start - empty).mean()
    torch.testing.assert_close(found.values[0, 1], ((kept - empty) / whole).mean())
    torch.testing.assert_close(found.values[1, 1], ((removed - empty) / whole).mean())
    torch.testing.assert_close(found.checks["scores"], torch.stack([start.mean(), empty.mean()]))


def test_random_orders_are_a_control():
    found = circuit_faithfulness(linear(), NAMES, X, target=0, k=[2], controls=6, seed=1)
    assert found.series[2:] == ("random kept", "random removed")
    again = circuit_faithfulness(linear(), NAMES, X, target=0, k=[2], controls=6, seed=1)
    assert torch.equal(found.values, again.values)
    assert found.of("random kept")[1] + found.of("random removed")[1] == pytest.approx(1)  # of a linear model


@pytest.mark.parametrize(
    "parts, options, message",
    [
        ([], {}, "no part"),
        ("0 channel 1", {}, "their names"),
        (["0 channel 9"], {}, "no part '0 channel 9'"),
        (["0 feature 1"], {}, "give the basis too: bases=basis"),
        ({"0 channel 1": float("nan")}, {}, "NaN"),
        (NAMES, {"k": [5]}, "4 parts"),
        (NAMES, {"k": [0]}, "k"),
        (NAMES, {"order": "best"}, "order"),
        (NAMES, {"other": X, "reference": X}, "reference"),
    ],
)
def test_what_cannot_be_measured_is_said(parts, options, message):
    with pytest.raises(errors.OptionError, match=message):
        circuit_faithfulness(linear(), parts, X, target=0, **options)


def test_several_series_are_no_order():
    net = linear()
    columns = torch.tensor([[3.0, 0.0], [1.0, 4.0]])
    two = Ranking("effect", ("0 channel 0", "0 channel 1"), columns, "score", True, "by hand", {}, ("first", "second"))
    with pytest.raises(errors.OptionError, match="several series, first, second"):
        circuit_faithfulness(net, two, X, target=0)


def test_parts_that_make_no_difference():
    with pytest.raises(errors.TargetError, match="when all parts are replaced"):
        circuit_faithfulness(linear(), ["0 channel 2"], normal(2, 4).double(), target=0)
