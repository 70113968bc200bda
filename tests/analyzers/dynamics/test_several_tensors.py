"""Layers that return several tensors in the analyses of what layers hold: the tensors that the model reads."""

import pytest
import torch
from torch import nn

from layerlens import Lens, errors
from tests.several_tensors import PACKED, pair, two_heads

pytestmark = pytest.mark.filterwarnings("ignore:geometry", "ignore:health", "ignore:with .* permutations")

RNNS = {"lstm": {}, "gru": {"kind": nn.GRU}, "time first": {"batch_first": False}}


def series(count=24):
    return torch.randn(count, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rnn", RNNS)
def test_the_state_is_read_where_the_model_reads_it(rnn):
    by_state, by_output = (Lens(model) for model in pair(**RNNS[rnn]))
    x = series()
    state, output = (lens.geometry(x, "rnn", pool="last") for lens in (by_state, by_output))
    assert state.layers == output.layers == ("rnn",)
    torch.testing.assert_close(state.values, output.values)  # the last step of the output is the state
    named = by_state.geometry(x, ["rnn/h_n", "rnn/output"], pool="last")
    assert named.layers == ("rnn/output", "rnn/h_n")
    torch.testing.assert_close(named.values[0], named.values[1])
    with pytest.raises(errors.SelectionError, match="no tensor 'h'"):
        by_state.geometry(x, "rnn/h", pool="last")
    found = by_state.health(x, ["rnn/h_n", "fc"])
    assert found.layers == ("rnn/h_n", "fc")


@pytest.mark.parametrize("packed", PACKED)
def test_every_tensor_that_is_read_has_a_row(packed):
    lens = Lens(two_heads(packed))
    x = torch.randn(24, 3, dtype=torch.float64)
    names = [f"block/{name}" for name in PACKED[packed][1]]
    assert lens.geometry(x, ["block", "one"]).layers == (*names, "one")
    assert lens.compare_groups(x, ["a", "b"] * 12, names[1]) is not None


def test_what_all_samples_share_is_no_row():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(x), self.fc.weight.mean(dim=1).reshape(1, 4)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.out = Shared(), nn.Linear(4, 2)

        def forward(self, x):
            h, bias = self.block(x)
            return self.out(h.tanh() + bias)

    lens, x = Lens(Net()), torch.randn(24, 3)
    assert lens.geometry(x, ["block", "out"]).layers == ("block", "out")
    assert lens.jacobian(x[:2], ["block", "out"]).layers == ("block", "out")


def test_a_training_is_watched_at_every_tensor():
    model, _ = pair()
    lens, optimizer = Lens(model.train()), torch.optim.SGD(model.parameters(), lr=0.1)
    x = series(8)
    with lens.watch(optimizer, every=1) as watching:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    names = watching.history.layers["activation mean"]
    assert names == ("rnn/output", "rnn/h_n", "rnn/c_n", "fc")
    with torch.no_grad():
        cell = model.rnn(x)[1][1]
    with lens.watch(optimizer, layers=["rnn/c_n"], every=1) as watching:
        model(x).sum().backward()
        optimizer.step()
    assert watching.history.layers["activation mean"] == ("rnn/c_n",)
    torch.testing.assert_close(watching.history.values["activation mean"][0, 0], cell.mean())


def test_the_table_of_layers_shows_every_tensor():
    row = next(row for row in Lens(pair()[0]).layers(series(2)).rows if row.path == "rnn")
    assert row.output == "(2, 6, 5) + (1, 2, 5) + ..."


def test_blocks_that_return_several_streams_are_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, pair):
            a, b = pair
            return a + self.fc(b), b + a

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(4, 3)

        def forward(self, x):
            pair = (x, x)
            for block in self.blocks:
                pair = block(pair)
            return self.head(pair[0] + pair[1])

    lens, x = Lens(Net()), torch.randn(8, 4)
    with pytest.raises(errors.SelectionError, match=r"of one shape\. Name one: 'blocks.0/0', 'blocks.0/1'"):
        lens.logit_lens(x, target=0)
    assert lens.logit_lens(x, layers=["blocks.0/0", "blocks.1/0"], target=0) is not None


def test_nonlinearity_of_a_state_is_that_of_a_layer_that_returns_it_alone():
    class Alone(nn.Module):
        def __init__(self, rnn):
            super().__init__()
            self.inner = rnn

        def forward(self, x):
            return self.inner(x)[1][0][-1]

    by_state, x = pair(**RNNS["lstm"])[0].double(), series(60)
    alone = Lens(nn.Sequential(Alone(by_state.rnn))).nonlinearity(x, "0", rows="sample")
    for layers in ("rnn", "rnn/h_n"):
        found = Lens(by_state).nonlinearity(x, layers, rows="sample")
        assert found.layers == (layers,)
        torch.testing.assert_close(found.values, alone.values)
    with pytest.raises(errors.SelectionError, match="no tensor 'h'"):
        Lens(by_state).nonlinearity(x, "rnn/h")
