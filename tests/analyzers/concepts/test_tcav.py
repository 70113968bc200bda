"""TCAV, on networks in which one concept matters and another does not."""

import pytest
import torch
from torch import nn

from layerlens import Data, Lens, tcav
from layerlens.errors import InputError, OptionError

pytest.importorskip("sklearn")


class Planted(nn.Module):
    """Class 1 reads a bright left column; the right one is in the units too, and not read."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.conv.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])[:, :, None, None]
        self.head = nn.Linear(3, 2)
        self.head.weight.data = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))


def examples(count, channel=None, seed=0):
    x = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    if channel is not None:
        x[:, channel] += 1.5
    return x


@pytest.fixture(scope="module")
def found():
    concepts = {"read": examples(40, 0, 1), "other": examples(40, 1, 2), "nothing": examples(40, None, 3)}
    return Lens(Planted()).tcav(
        examples(30, seed=4), concepts, "conv", random=examples(120, seed=5), target=1, draws=3, permutations=19
    )


def test_the_concept_that_is_read_is_found(found):
    scores = dict(zip(found.series, found.values[0].tolist(), strict=True))
    assert scores["read"] == 1.0 and found.layers == ("conv",)
    assert found.values.shape == found.null.shape == found.error.shape == (1, 3)
    assert float(found.checks["separated read"]) > 0.95 and "TCAV" in repr(found)


def test_slopes_are_those_of_small_steps_along_the_vector():
    """The share that rises, against finite steps of the layer's output along a known direction."""
    from layerlens.analyzers.concepts.tcav import _shares
    from layerlens.inputs.batches import Data

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    x, columns = examples(20).double(), torch.randn(3, 7, dtype=torch.float64)
    hidden = net[0](x)
    before = net[1:](hidden)[:, 1]
    steps = [net[1:](hidden + 1e-6 * v[:, None, None])[:, 1] > before for v in columns.T]
    expected = torch.stack([one.double().mean() for one in steps])
    torch.testing.assert_close(_shares(net, Data(x, batch_size=6), 1, {"0": columns}, None)[0][0], expected)


class TimeFirst(nn.Module):
    """Its layers take `(time, batch, units)`, with as many steps as samples in a batch."""

    def __init__(self):
        super().__init__()
        self.into, self.act, self.out = nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return self.out(self.act(self.into(x.transpose(0, 1))).square().mean(dim=0))


def test_all_layers_take_one_pass_whatever_their_layout():
    """The vectors that are returned give the shares, by finite steps; more layers cost no more passes."""
    torch.manual_seed(0)
    net, x = TimeFirst().double(), torch.randn(24, 4, 2).double()
    options = {"random": x, "target": 1, "draws": 2, "permutations": 3, "batch_size": 4}
    shown, runs = {"one": x[:8] + 1, "two": x[8:16] - 1}, []
    for layers in ("act", ["into", "act"]):
        before = net.runs
        made = tcav(net, x, shown, layers, **options)
        runs.append(net.runs - before)
    hidden = net.into(x)
    after = {"into": lambda h: net.out(net.act(h).square().mean(dim=1))[:, 1]}
    after["act"] = lambda h: net.out(h.square().mean(dim=1))[:, 1]
    for row, (layer, value) in enumerate((("into", hidden), ("act", hidden.tanh()))):
        assert made.vectors[layer].shape == (2, 2, 3)
        shares = [
            [float((after[layer](value + 1e-6 * v) > after[layer](value)).double().mean()) for v in one]
            for one in made.vectors[layer]
        ]
        torch.testing.assert_close(made.values[row], torch.tensor(shares).double().mean(dim=1))
    assert runs[1] <= runs[0] + 2, runs


def test_the_planted_concept_differs_from_random_ones_and_another_does_not():
    """Of 24 units the score reads the first, along which the examples of one concept differ."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.Linear(24, 2))
    net[1].weight.data = torch.zeros(2, 24)
    net[1].weight.data[1, 0] = 1.0
    x = torch.randn(200, 24, generator=generator)
    shown = {name: torch.randn(50, 24, generator=generator) for name in ("read", "other")}
    shown["read"][:, 0] += 3
    shown["other"][:, 5] += 3
    made = tcav(net, x[:20], shown, "0", random=x, target=1, draws=3)
    assert float(made.checks["p of slope read"]) == 1 / 40 and float(made.checks["p of slope other"]) > 0.1
    assert float(made.checks["p read"]) > 0.3  # every random direction has a share of 0 or 1 here


def test_concepts_are_present_in_the_groups_that_show_them():
    """Against a direction that the data gives: the mean of activations along it, by group."""
    concepts = {"left": examples(60, 0, 1), "right": examples(60, 1, 2)}
    data = torch.cat([examples(20, 0, 6), examples(20, 1, 7), examples(20, None, 8)])
    groups = ["a left"] * 20 + ["b right"] * 20 + ["nothing"] * 20
    options = {"random": examples(200, seed=5)}
    net = Planted()
    found = Lens(net).concept_activation(data, concepts, "conv", groups=groups, **options)
    assert found.rows == ("a left", "b right", "nothing") and found.columns == ("left", "right")
    assert float(found.values.diagonal().min()) > 3 and float(found.values[2].abs().max()) < 1
    alone = net.conv(data).mean(dim=(2, 3)).double()[:, :2]  # units that read one channel each, not standardized
    for column in range(2):
        means = torch.stack([part.mean() for part in alone[:, column].split(20)])
        assert torch.equal(means.argsort()[-1:], found.values[:, column].argsort()[-1:])
    by_label = Lens(net).concept_activation(Data(data, labels=groups), concepts, "conv", **options)
    assert torch.equal(by_label.values, found.values)
    one = Lens(net).concept_activation(data, concepts, "conv", **options)
    torch.testing.assert_close(one.values[0], found.values.mean(dim=0))
    for error, text, bad in [
        (OptionError, "dict of the examples", {"concepts": data}),
        (InputError, "2 examples of each concept and 4 random", {"random": data[:3]}),
        (InputError, "groups", {"groups": groups[:-1]}),
    ]:
        with pytest.raises(error, match=text):
            Lens(net).concept_activation(data, **{"concepts": concepts, "layer": "conv", **options, **bad})


def test_what_is_refused():
    x, net = examples(9), Planted()
    with pytest.raises(OptionError, match="dict of the examples"):
        tcav(net, x, x, "conv", random=x)
    with pytest.raises(InputError, match="2 examples of each concept"):
        tcav(net, x, {"one": x[:1]}, "conv", random=x)
