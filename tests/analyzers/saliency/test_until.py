"""Drawing until intervals are narrow enough: the same as that number at once, and a warning where it does not reach."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.common.rounds import Rounds
from layerlens.errors import OptionError
from tests.cases import normal


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(normal(16, 10).double() / 2)

    def forward(self, x):
        return torch.tanh(x @ self.one.T).sum(dim=1, keepdim=True)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 10).double()
        self.embedding.weight.data = normal(50, 10).double() / 3
        self.net = Net()

    def forward(self, ids):
        return self.net(self.embedding(ids).sum(dim=1))


IDS = torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(0))
TABLE = (Net(), normal(2, 10).double())
DRAWING = {  # method -> model and input, the number of draws and its option, and how narrow
    "shapley_sampling": (*TABLE, "permutations", 400, 0.4),
    "kernel_shap": (*TABLE, "samples", 900, 0.1),
    "lime": (*TABLE, "samples", 2000, 0.2),
    "rise": (*TABLE, "samples", 2000, 0.25),
    "sobol": (*TABLE, "draws", 500, 0.4),
    "permutation": (Net(), normal(20, 10).double(), "draws", 400, 0.5),
    "smooth_grad": (*TABLE, "samples", 500, 0.1),
    "smooth_grad_squared": (*TABLE, "samples", 500, 0.2),
    "var_grad": (*TABLE, "samples", 500, 0.3),
    "gradient_shap": (*TABLE, "samples", 512, 0.05, {"baselines": normal(3, 10, seed=5).double()}),
    "leave_one_out": (Text(), IDS, "draws", 29, 0.6),
}


@pytest.mark.parametrize("method", DRAWING)
def test_drawing_until_intervals_are_narrow_gives_what_that_number_gives_at_once(method):
    model, x, option, most, until, *more = DRAWING[method]
    options = {"target": 0, "method": method, **(more[0] if more else {})}
    found = layerlens.saliency(model, x, until=until, **{option: most}, **options)
    count = found.settings[option]
    assert count < most and found.settings["until"] == until
    low, high = found.interval(0.9)
    widest = (high - low).amax(dim=1) / 2 / found.tensor.abs().amax(dim=1)
    assert (widest <= until).all()
    torch.testing.assert_close(found.checks["widest interval"], widest.double(), rtol=1e-4, atol=0)
    assert f"until: {until}, {option}: {count}" in repr(found)
    assert found.cost.startswith(str(count)) or method not in ("smooth_grad", "lime", "rise", "kernel_shap")
    once = layerlens.saliency(model, x, **{option: count}, **options)
    torch.testing.assert_close(found.tensor, once.tensor)
    torch.testing.assert_close(found.standard_error, once.standard_error)
    assert found.degrees == pytest.approx(once.degrees)


def test_maps_of_a_method_are_averaged_until_they_are_narrow():
    model, x = TABLE
    options = {"target": 0, "method": "smooth_grad", "of": "input_x_gradient"}
    found = layerlens.saliency(model, x, until=0.2, samples=500, **options)
    count = found.settings["samples"]
    assert 16 <= count < 500 and (found.checks["widest interval"] <= 0.2).all()
    once = layerlens.saliency(model, x, samples=count, **options)
    torch.testing.assert_close(found.tensor, once.tensor)
    assert found.cost == once.cost


@pytest.mark.parametrize("stdevs", [0.0, 0.1])
def test_points_of_paths_are_kept_and_each_is_run_once(stdevs):
    model, x = TABLE
    rows: list[int] = []
    handle = model.register_forward_hook(lambda *_: rows.append(torch.is_grad_enabled()))
    options = {"target": 0, "method": "gradient_shap", "baselines": normal(3, 10, seed=5).double(), "stdevs": stdevs}
    options |= {"batch_size": 2, "samples": 999, "seed": 3}  # a point of both samples in a pass
    found = layerlens.saliency(model, x, until=0.02, **options)
    taken = sum(rows)
    handle.remove()
    count = found.settings["samples"]
    assert 60 <= count < 999 and taken == count  # several rounds, and no point twice
    once = layerlens.saliency(model, x, **{**options, "samples": count})
    torch.testing.assert_close(found.tensor, once.tensor)
    torch.testing.assert_close(found.standard_error, once.standard_error)
    torch.testing.assert_close(found.checks["completeness gap"], once.checks["completeness gap"])


def test_a_number_that_does_not_reach_is_named():
    model, x = TABLE
    with pytest.warns(
        UserWarning, match=r"lime: after samples=80 an interval still .* until=0\.01; about \d+ are"
    ) as said:
        found = layerlens.saliency(model, x, target=0, method="lime", samples=80, until=0.01)
    assert found.settings["samples"] == 80 and (found.checks["widest interval"] > 0.01).any()
    needed = int(str(said[0].message).split("about ")[1].split()[0])
    assert needed == pytest.approx(80 * (float(found.checks["widest interval"].max()) / 0.01) ** 2, rel=0.1)


def test_drawn_references_have_an_error_that_points_do_not_lower():
    with pytest.raises(OptionError, match="until= needs the references that are meant"):
        layerlens.saliency(*TABLE, target=0, method="gradient_shap", until=0.1)


@pytest.mark.parametrize("wrong", [0, -1, "narrow", True])
def test_until_is_a_share(wrong):
    with pytest.raises(OptionError, match="until must be a share of the largest value"):
        Rounds("lime", "samples", 100, wrong, first=10)


def test_rounds_grow_to_what_the_widest_interval_calls_for():
    rounds, seen = Rounds("mean", "samples", 10_000, 0.1, first=10, step=2), []
    for count in rounds:
        seen.append(count)
        rounds.look(
            {"a": torch.ones(2, 3), "b": 2 * torch.ones(2, 3)},
            {name: torch.full((2, 3), count**-0.5) for name in "ab"},
            None,
        )
    assert seen == [10, 20, 40, 68]  # 1.645 / sqrt(68) / 2 = 0.0997
    values, error = torch.zeros(1, 3), torch.zeros(1, 3)
    rounds = Rounds("mean", "samples", 100, 0.1, first=10)
    for _ in rounds:
        rounds.look({"": values}, {"": error}, 9)
    assert rounds.count == 10  # zeros without noise are settled
