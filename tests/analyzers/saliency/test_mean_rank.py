"""`mean_rank`: the mean of the ranks of several maps, against scipy's ranks."""

import contextlib
import dataclasses

import pytest
import scipy.stats
import torch
from torch import nn

from layerlens import Lens, load, mean_rank, saliency
from layerlens.errors import InputError, OptionError
from layerlens.results import Attribution
from tests.cases import normal
from tests.results.examples import attribution, relevance


def ranks(values):
    """From 0 to 1, equal values the mean of their ranks."""
    return torch.tensor((scipy.stats.rankdata(values.flatten().numpy()) - 1) / (values.numel() - 1)).reshape(
        values.shape
    )


def test_ranks_are_those_of_scipy_and_channels_are_added_first():
    first = attribution()
    tied = normal(2, 3, 4, 4, seed=5).mul(2).round()
    second = dataclasses.replace(first, values=tied, method="other")
    found = mean_rank(first, second)
    for row in range(2):
        right = (ranks(first.tensor[row].double().sum(dim=0)) + ranks(tied[row].double().sum(dim=0))) / 2
        torch.testing.assert_close(found.tensor[row].double(), right, atol=1e-6, rtol=0)
    assert found.axes == ("batch", "height", "width") and not found.signed and found.standard_error is None
    assert found.method == f"mean rank of {first.method} and other"
    assert [one["method"] for one in found.settings["maps"]] == [first.method, "other"]


def test_one_map_twice_has_its_own_order():
    one = attribution()
    order = mean_rank(one, one).tensor[0].flatten().argsort()
    assert torch.equal(order, one.tensor[0].sum(dim=0).flatten().argsort())
    assert float(mean_rank(one, one).tensor.max()) == 1 and float(mean_rank(one, one).tensor.min()) == 0


def test_of_relevance_it_is_an_attribution_that_is_saved_and_drawn(tmp_path):
    found = mean_rank(relevance(), relevance())
    assert type(found) is Attribution
    found.save(tmp_path / "ranks.npz")
    assert torch.equal(load(tmp_path / "ranks.npz").tensor, found.tensor)
    found.plot().save(tmp_path / "ranks.png")
    assert "mean rank" in repr(found)


def test_padding_is_not_ranked():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(16, 2))
    one = Lens(net).saliency(torch.tensor([[3, 1, 4, 2]]), target=0, method="input_x_gradient")
    used = dataclasses.replace(one, used=torch.tensor([[True, True, False, True]]))
    found = mean_rank(used, used).tensor[0]
    kept = [0, 1, 3]
    torch.testing.assert_close(found[kept].double(), ranks(one.tensor[0, kept].double()), atol=1e-6, rtol=0)
    assert float(found[2]) == 0


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, first, second):
        return self.a(first) + self.b(second).tanh()


def test_several_inputs_are_ranked_each_by_itself():
    x = {"first": normal(2, 3), "second": normal(2, 4)}
    maps = [Lens(Both()).saliency(x, target=0, method=one) for one in ("gradient", "input_x_gradient")]
    found = mean_rank(*maps)
    for name in x:
        right = torch.stack([ranks(one.values[name][1].double()) for one in maps]).mean(dim=0)
        torch.testing.assert_close(found.values[name][1].double(), right, atol=1e-6, rtol=0)


def test_what_has_no_common_ranks_is_refused():
    one = attribution()
    with pytest.raises(OptionError, match="two maps or more"):
        mean_rank(one)
    with pytest.raises(OptionError, match="takes attributions"):
        mean_rank(one, one.tensor)
    with pytest.raises(InputError, match="their places are"):
        mean_rank(one, dataclasses.replace(one, values=normal(2, 3, 4, 5)))
    with pytest.raises(InputError, match="one is of class 1, the other of class 2"):
        mean_rank(one, dataclasses.replace(one, target="class 2"))
    with pytest.raises(InputError, match="they are of different inputs"):
        mean_rank(one, dataclasses.replace(one, inputs=one.inputs + 1))
    with pytest.raises(InputError, match="NaN"):
        mean_rank(one, dataclasses.replace(one, values=one.tensor * torch.nan))
    with pytest.raises(InputError, match="one is at the input, the other at fc"):
        mean_rank(one, dataclasses.replace(one, settings={"where": "fc"}))


def test_maps_of_a_layer_say_so():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    maps = [
        Lens(net).saliency(normal(2, 3), target=0, method=one, where="1") for one in ("gradient", "input_x_gradient")
    ]
    found = mean_rank(*maps)
    assert found.settings["where"] == maps[0].settings["where"] and found.how.endswith(" at 1")


def test_maps_of_two_dtypes_have_common_ranks():
    net, x = nn.Linear(3, 1, bias=False), torch.tensor([[0.1, 0.7, -2.3]])
    wide = nn.Linear(3, 1, bias=False).double()
    wide.weight.data = net.weight.detach().double()
    one = saliency(net, x, target=0, method="input_x_gradient")
    two = saliency(wide, x.double(), target=0, method="gradient")
    exact = dataclasses.replace(two, inputs=torch.tensor([[0.1, 0.7, -2.3]], dtype=torch.float64))
    for maps in ((one, two), (two, one), (one, exact), (exact, one)):
        expected = mean_rank(*(dataclasses.replace(each, inputs=x) for each in maps))
        assert torch.equal(mean_rank(*maps).tensor, expected.tensor)
    with pytest.raises(InputError, match="different inputs"):
        mean_rank(one, dataclasses.replace(two, inputs=two.inputs + 0.01))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1 + 2j]), torch.tensor([1.0]), False),
        (torch.tensor([1 + 0j]), torch.tensor([1.0]), True),
        (torch.tensor([1], dtype=torch.uint8), torch.tensor([257]), False),
        (torch.tensor([0.1]).half(), torch.tensor([0.1]), True),
    ],
)
def test_inputs_of_two_dtypes_are_compared_by_their_values(one, other, same):
    found = saliency(nn.Linear(1, 1), torch.ones(1, 1), target=0, method="gradient")
    maps = tuple(dataclasses.replace(found, inputs=kept[None]) for kept in (one, other))
    for pair in (maps, maps[::-1]):
        with contextlib.nullcontext() if same else pytest.raises(InputError, match="different inputs"):
            mean_rank(*pair)
