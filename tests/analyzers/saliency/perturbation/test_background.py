"""Shapley values from background data, and of groups over several inputs, against their definition in float64."""

import itertools
import math

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.errors import InputError, OptionError
from tests.cases import normal

pd = pytest.importorskip("pandas")


def shapley(value, count):
    """Shapley values of a game, by definition: `value(members)` for a set of players."""
    found = torch.zeros(count).double()
    for player in range(count):
        others = [one for one in range(count) if one != player]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for members in itertools.combinations(others, size):
                found[player] += weight * (value({*members, player}) - value({*members}))
    return found


def expected_score(score, x, background):
    """The mean score over the background, with the columns of a coalition as in x."""
    return lambda members: torch.stack(
        [score(torch.where(torch.tensor([k in members for k in range(len(x))]), x, row)) for row in background]
    ).mean()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class Two(nn.Module):
    """Interactions within an input and between two."""

    def forward(self, a, b):
        return a[:, :1] * b[:, :1] + a[:, 1:2] * a[:, :1] * b[:, 2:] + b[:, 1:2] ** 2


@torch.no_grad()
def test_values_are_the_expectation_over_the_background():
    model, x, background = net(), normal(3, 4).double(), normal(10, 4).double()[3:]
    score = lambda row: model(row[None])[0, 1]  # noqa: E731
    exact = torch.stack([shapley(expected_score(score, row, background), 4) for row in x])
    change = model(x)[:, 1] - model(background)[:, 1].mean()

    found = layerlens.saliency(model, x, target=1, method="kernel_shap", baselines=background, batch_size=5)
    torch.testing.assert_close(found.tensor, exact)
    torch.testing.assert_close(found.tensor.sum(dim=1), change)
    assert found.settings["baselines"] == "given (7), all passes for each" and "baseline" not in found.settings
    assert found.settings["exact"] and float(found.checks["efficiency gap"].max()) < 1e-12

    drawn = layerlens.saliency(model, x, target=1, method="shapley_sampling", baselines=background)
    assert bool(((drawn.tensor - exact).abs() <= 4 * drawn.standard_error + 1e-9).all())
    torch.testing.assert_close(drawn.tensor.sum(dim=1), change)

    frame, rows = (pd.DataFrame(one.numpy(), columns=list("abcd")) for one in (background, x))
    for given in (
        Lens(model).saliency(rows, target=1, baselines=frame),
        layerlens.saliency(model, x, target=1, baselines=frame),
    ):
        torch.testing.assert_close(given.tensor, exact)
        assert given.method == "kernel_shap" and "4 columns, baselines given (7), all passes for each" in str(given)
    one = layerlens.saliency(model, x, method="kernel_shap", target=1, baselines=background[:1])
    torch.testing.assert_close(one.tensor, layerlens.saliency(model, x, target=1, baseline=background[0]).tensor)


@torch.no_grad()
def test_groups_hold_columns_of_several_inputs():
    model, a, b, back_a, back_b = Two(), normal(2, 2).double(), normal(2, 3).double(), normal(5, 2), normal(5, 3)
    back_a, back_b = back_a.double(), back_b.double()
    players = [([0], [0, 2]), ([1], []), ([], [1])]  # columns of a and of b
    groups = {"p": {"a": [0], "b": [0, 2]}, "q": {"a": [1]}, "r": {"b": [1]}}

    def value(row):
        def score(members):
            kept_a = torch.tensor([any(k in players[one][0] for one in members) for k in range(2)])
            kept_b = torch.tensor([any(k in players[one][1] for one in members) for k in range(3)])
            return model(torch.where(kept_a, a[row], back_a), torch.where(kept_b, b[row], back_b)).mean()

        return score

    exact = torch.stack([shapley(value(row), 3) for row in range(2)])
    frames = [pd.DataFrame(one.numpy(), columns=names) for one, names in ((a, ["s", "t"]), (b, ["u", "v", "w"]))]
    for x, features in (
        ((a, b), groups),
        (tuple(frames), groups),
        (tuple(frames), {"p": ["s", "u", "w"], "q": ["t"], "r": {"b": ["v"]}}),
    ):
        found = Lens(model.double()).saliency(
            x, method="kernel_shap", features=features, baselines={"a": back_a, "b": back_b}
        )
        tolerance = {} if x[0] is a else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found.values["0"].double(), exact[:, [0, 1]], **tolerance)
        torch.testing.assert_close(found.values["1"].double(), exact[:, [0, 2, 0]], **tolerance)
        assert found.settings["features"] == 3


class Read(nn.Module):
    """A text and a table."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 3)

    def forward(self, ids, table):
        return self.embed(ids).sum(dim=(1, 2)) * table[:, :1].sum(1) + table[:, 1]


@torch.no_grad()
def test_a_whole_input_of_any_kind_is_in_a_group():
    model, ids, table = Read().double(), torch.tensor([[1, 2, 3]]), normal(1, 2).double()
    found = Lens(model).saliency(
        (ids, table), method="kernel_shap", features={"text": {"ids": "all"}, "rest": {"table": "all"}}
    )
    product, alone = model(ids, table) - table[:, 1], table[:, 1]
    torch.testing.assert_close(found.values["0"], (product / 2).expand(1, 3))
    torch.testing.assert_close(found.values["1"], (product / 2 + alone).expand(1, 2))


def test_auto_takes_expected_gradients_for_other_inputs():
    torch.manual_seed(0)
    model, x, background = (
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(21, 1)),
        normal(1, 2, 9),
        normal(4, 2, 9),
    )
    found = layerlens.saliency(model, x, baselines=background)
    assert found.method == "gradient_shap" and "baselines given (4)" in found.settings["chosen"]
    torch.testing.assert_close(found.tensor.sum(), (model(x) - model(background).mean()).sum(), rtol=1e-3, atol=1e-4)


WRONG = [
    ({"baseline": normal(7, 4)}, r"shape \(7, 4\) does not .* For the mean over 7 references: .* with baselines="),
    ({"baselines": normal(7, 3)}, r"7 references, .* shape \(3,\) .* Give an array \(references, 4\)\."),
    ({"baselines": normal(7, 4), "baseline": 1.0}, "not both"),
    ({"baselines": {"b": normal(7, 4)}}, "unknown input name in the baseline 'b'. Known: 0, input"),
    ({"baselines": 5}, "cannot read references from int"),
    ({"features": {"p": {"a": [0]}}}, "unknown input name in the features 'a'"),
    ({"features": {"p": {"input": [4]}}}, "column 4 is none of 0 to 3"),
    ({"features": {"p": {"input": 4}}}, "or a dict from input to its columns or 'all'; got 4 for input 'input'"),
    ({"features": {"p": {"input": [0]}, "q": {"input": "all"}}}, "in two groups"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_does_not_fit_says_what_does(options, message):
    with pytest.raises(OptionError, match=message):
        Lens(net().float()).saliency(normal(3, 4), target=1, method="kernel_shap", **options)


def test_a_background_with_other_columns_is_refused():
    frame = pd.DataFrame(normal(3, 4).numpy(), columns=list("abcd"))
    with pytest.raises(InputError, match="the reference has other columns than input '0'"):
        Lens(net().float()).saliency(frame, target=1, baselines=frame[["b", "a", "c", "d"]])
    with pytest.raises(OptionError, match=r"the baseline is the input itself, each sample with its own\. For the mean"):
        Lens(net().float()).saliency(frame, target=1, baseline=frame)
    per_sample = Lens(net().float()).saliency(frame, target=1, baseline=frame + 1)
    assert per_sample.settings["baseline"] == "float32 (3, 4), one for each sample"
