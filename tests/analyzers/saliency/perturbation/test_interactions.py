"""Interactions of features, against games whose parts are known."""

import itertools
import math

import pytest
import torch
from torch import nn

from layerlens import Lens, interactions
from layerlens.errors import InputError, OptionError
from layerlens.faithfulness import known_shapley

pytest.importorskip("shapiq")


class Letters:
    """What names of tokens need of a tokenizer."""

    def __call__(self, text, **options):
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids):
        return ["abcdefghi"[index] for index in ids]

    def decode(self, ids):
        return " ".join(self.convert_ids_to_tokens(ids))


def known(task, sample=0):
    """SII of a sum of unanimity games: a product of |T| columns gives each pair in it prod / (|T| - 1)."""
    model, x = task.model, task.x
    weights = model.weights.detach()[task.target[sample]] * model.products(x)[sample]
    columns = x.shape[1]
    values = torch.zeros(columns, columns, dtype=torch.float64)
    for members, weight in zip(model.members, weights.detach(), strict=True):
        for a, b in itertools.permutations(members.nonzero().flatten().tolist(), 2):
            values[a, b] += weight / (int(members.sum()) - 1)
    return values


def test_exact_on_products():
    task = known_shapley(batch=2, columns=5, products=6)
    for index in ("SII", "k-SII"):
        found = interactions(task.model, task.x[1:], target=int(task.target[1]), index=index)
        off = ~torch.eye(5, dtype=torch.bool)
        torch.testing.assert_close(found.values[off], known(task, 1)[off])
    assert found.method == "k-SII, exact" and float(found.checks["efficiency gap"]) < 1e-9
    shared = found.values.diagonal() + (found.values * off).sum(dim=1) / 2  # pairs in equal parts: Shapley values
    torch.testing.assert_close(shared, task.values[1])


def test_estimates_are_near_and_repeatable():
    task = known_shapley(batch=1, columns=9, products=10)
    off = ~torch.eye(9, dtype=torch.bool)
    for index in ("k-SII", "STII", "FSII"):
        exact = interactions(task.model, task.x, target=0, index=index)
        near = interactions(task.model, task.x, target=0, index=index, budget=300)
        again = interactions(task.model, task.x, target=0, index=index, budget=300)
        assert torch.equal(near.values, again.values) and "exact" not in near.method
        assert ".error is their standard error" in near.explain() and "error" not in exact.explain()
        assert exact.error is None and near.error.shape == near.values.shape
        assert torch.corrcoef(torch.stack([exact.values[off], near.values[off]]))[0, 1] > 0.9, index


def test_intervals_of_estimates_hold_the_exact_values():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 16), (16, 1)))
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False)).double()
    net[0].weight.data, net[2].weight.data = one.T.clone(), two.T.clone()
    x = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    for index in ("k-SII", "SII", "FSII"):
        truth = interactions(net, x, target=0, index=index).values
        runs = [interactions(net, x, target=0, index=index, budget=210, seed=seed) for seed in range(25)]
        held = [(low <= truth) & (truth <= high) for low, high in (one.interval(0.9) for one in runs)]
        assert 0.85 < float(torch.stack(held).double().mean()) < 0.95, index
        spread = torch.stack([one.values for one in runs]).std(dim=0).square().mean().sqrt()
        assert spread < 0.05 * truth.abs().max() and runs[0].settled().float().mean() > 0.5
    stii = interactions(net, x, target=0, index="STII", budget=210)  # single features are exact: S(i) - S()
    alone = (net(torch.diag(x[0])) - net(torch.zeros(1, 8).double()))[:, 0]
    torch.testing.assert_close(stii.values.diagonal(), alone.detach())
    assert float(stii.error.diagonal().max()) < 1e-9 < float(stii.error.max())


def test_until_stops_early_and_equals_one_run():
    task = known_shapley(batch=1, columns=10, products=12)
    found = interactions(task.model, task.x, target=0, budget=1000, until=0.15)
    used = found.settings["coalitions"]
    assert used < 900 and found.settings["until"] == 0.15
    low, high = found.interval(0.9)
    assert float((high - low).max()) / 2 / float(found.values.abs().max()) <= 0.15
    once = interactions(task.model, task.x, target=0, budget=used)
    torch.testing.assert_close(found.values, once.values)
    torch.testing.assert_close(found.error, once.error)
    three = interactions(task.model, task.x, target=0, order=3, index="SII", budget=800)
    assert three.error.shape == three.values.shape and three.degrees == found.degrees == 29
    rough = interactions(task.model, task.x, target=0, budget=240)
    assert not rough.settled().all()
    picture = rough.plot("network", count=45)
    assert "dotted" in "".join(text.get_text() for text in picture.fig.texts)


def test_names_groups_and_larger_groups():
    class Net(nn.Module):
        def forward(self, x):
            return (x[:, 0] * x[:, 1] * x[:, 2] + x[:, 3])[:, None]

    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    lens = Lens(Net(), feature_names=["a", "b", "c", "d"])
    assert lens.interactions(x, target=0).at("a", "b") == pytest.approx(3.0)
    groups = lens.interactions(x, target=0, features={"left": ["a", "b"], "c": ["c"], "d": ["d"]})
    assert groups.rows == ("left", "c", "d") and groups.at("left", "c") == pytest.approx(6.0)
    three = lens.interactions(x, target=0, order=3, index="STII")
    assert three.ranked()[0] == ("a x b x c", pytest.approx(6.0)) and len(three) == math.comb(4, 3) + 6 + 4
    picture = lens.interactions(x, target=0).plot("network")
    assert picture.data["pairs"][0] in {("a", "b"), ("a", "c"), ("b", "c")} and len(picture.data["pairs"]) == 3


def test_tokens_and_images_are_cut_into_features():
    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    assert interactions(words, torch.tensor([[1, 2, 3]]), target=0).rows == ("token 0", "token 1", "token 2")
    named = Lens(words, tokenizer=Letters()).interactions(torch.tensor([[1, 2, 1]]), target=0)
    assert named.rows == named.columns == ("0 b", "1 c", "2 b")
    grouped = Lens(words, tokenizer=Letters()).interactions(
        torch.tensor([[1, 2, 1]]), target=0, features=torch.tensor([[0, 0, 1]])
    )
    assert grouped.rows == ("token 0", "token 1")
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    found = interactions(image, torch.randn(1, 1, 8, 8), target=1, features=4)
    assert found.values.shape == (4, 4) and torch.equal(found.values, found.values.T)


def test_what_is_refused():
    net, x = nn.Linear(30, 2), torch.randn(1, 30)
    for error, text, options in [
        (OptionError, "budget=100 coalitions for 465 groups", {"budget": 100}),
        (OptionError, "order must be a whole number of at least 2, got 1", {"order": 1}),
        (OptionError, "index of interactions", {"index": "shapley"}),
    ]:
        with pytest.raises(error, match=text):
            interactions(net, x, target=0, **options)
    with pytest.raises(InputError, match="give x"):
        interactions(net, torch.randn(2, 30), target=0)
    with pytest.raises(OptionError, match="order=3 needs at least so many"):
        interactions(nn.Linear(2, 2), torch.randn(1, 2), target=0, order=3)
