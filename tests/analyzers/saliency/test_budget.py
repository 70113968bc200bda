"""`auto(budget=...)`: the method that is best for so many passes, and what is refused."""

import pytest
import torch
from torch import nn

from layerlens import Lens, mean_rank, saliency
from layerlens.errors import InputError, OptionError, TargetError
from tests.cases import normal


class Rounded(nn.Module):
    """Without a gradient."""

    def forward(self, x):
        return torch.stack([x.sum(dim=1).round(), (x > 0).double().sum(dim=1)], dim=1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.read(x)[0][:, -1])


def case(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = {
            "table": lambda: (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), normal(1, 6)),
            "picture": lambda: (
                nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)),
                normal(1, 1, 8, 8),
            ),
            "text": lambda: (
                nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(48, 2)),
                torch.arange(12)[None],
            ),
            "series": lambda: (Recurrent(), normal(1, 20, 2)),
            "no gradient": lambda: (Rounded(), normal(1, 6)),
        }[name]()
    return model.double().eval(), x if name == "text" else x.double()


def passes(model, x, **options):
    """The rows that a method runs through the model."""
    rows = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    try:
        found = saliency(model, x, target=0, **options)
    finally:
        hook.remove()
    return found, sum(rows)


EXPECTED = {
    "table": {3: "integrated_gradients", 20: "integrated_gradients", 50: "shapley_sampling", 70: "kernel_shap"},
    "picture": dict.fromkeys((3, 50, 202), "relevance, epsilon_plus"),
    "text": {3: "centered_relevance", 11: "centered_relevance", 12: "leave_one_out", 50: "leave_one_out"},
    "series": dict.fromkeys((3, 50, 500), "integrated_gradients"),
    "no gradient": {14: "shapley_sampling", 66: "kernel_shap"},
}
PREPARING = 8
"""Passes that prepare a method, which its budget does not count."""


@pytest.mark.parametrize(
    ("name", "budget", "method"),
    [(name, budget, method) for name, each in EXPECTED.items() for budget, method in each.items()],
)
def test_the_method_takes_no_more_than_its_budget(name, budget, method):
    model, x = case(name)
    found, _ = passes(model, x, budget=budget)
    assert found.method == method
    assert f"at most {budget} passes" in found.settings["chosen"]
    options = {key: found.settings[key] for key in ("samples", "permutations", "draws", "steps", "max_steps")
               if key in found.settings}  # fmt: skip
    alone, taken = passes(model, x, method=method.partition(",")[0], **options)
    torch.testing.assert_close(found.tensor, alone.tensor, rtol=0, atol=0)
    assert taken <= budget + PREPARING


def test_more_passes_are_spent():
    model, x = case("series")
    steps = [passes(model, x, budget=budget)[0].settings["steps"] for budget in (3, 10, 1000)]
    assert steps == [1, 8, 200]
    model, x = case("text")
    assert [saliency(model, x, target=0, budget=one).settings["draws"] for one in (12, 24, 60)] == [1, 2, 4]
    model, x = case("table")
    assert saliency(model, x, target=0, budget=66).method == saliency(model, x, target=0).method == "kernel_shap"


def test_a_layer_and_a_baseline():
    model, x = case("table")
    found = Lens(model).saliency(x, target=0, where="0", budget=7)
    assert found.method == "integrated_gradients" and found.settings["steps"] == 5
    model, x = case("picture")
    found = Lens(model).saliency(x, target=0, baseline="blur", budget=7)
    assert found.method == "integrated_gradients" and found.settings["steps"] == found.settings["max_steps"] == 5


def test_what_a_budget_cannot_pay_is_refused():
    model, x = case("table")
    for wrong in (0, 2, 2.5, True, "10"):
        with pytest.raises(OptionError, match="budget must be a whole number of at least 3"):
            saliency(model, x, target=0, budget=wrong)
    with pytest.raises(OptionError, match="against one baseline"):
        saliency(model, x, target=0, budget=50, baselines=normal(4, 6).double())
    model, x = case("no gradient")
    with pytest.raises(OptionError, match=r"budget=10 is too small.*Give budget=14"):
        saliency(model, x, target=0, budget=10)
    assert saliency(model, x, target=0, budget=14).method == "shapley_sampling"


def test_what_is_wrong_with_the_input_is_said_before_the_budget():
    net = nn.Linear(9, 2)
    with pytest.raises(InputError, match="takes float32, not bool"):
        saliency(net, torch.ones(1, 9, dtype=torch.bool), target=0, budget=3)
    with pytest.raises(TargetError, match="holds infinite values"):
        saliency(net, torch.full((1, 9), torch.inf), target=0, budget=3)


def test_a_large_budget_for_a_picture_ranks_by_relevance_and_masks():
    model, x = case("picture")
    found, _ = passes(model, x, budget=203)
    maps = [saliency(model, x, target=0, method="relevance"), saliency(model, x, target=0, method="rise", samples=200)]
    assert found.method == "mean rank of relevance, epsilon_plus and rise"
    assert torch.equal(found.tensor, mean_rank(*maps).tensor)
    assert found.cost == "about 3 gradients and 200 forward passes (samples), 1 gradient to choose it"
    assert found.tensor.shape == (1, 8, 8) and "at most 203 passes" in found.settings["chosen"]
