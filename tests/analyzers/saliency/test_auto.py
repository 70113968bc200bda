"""`auto`, the default of `saliency`: which method each kind of input gets, why, and what it cost."""

import inspect
import itertools
import math
import warnings

import pandas
import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.analyzers.saliency.auto import auto
from layerlens.errors import InputError, LayerLensError, OptionError, TargetError, UnknownOption
from tests.cases import CASES, normal


def made(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double().eval()


def table(columns):
    return made(lambda: nn.Sequential(nn.Linear(columns, 8), nn.Tanh(), nn.Linear(8, 1)))


def shapley(score, x, baseline):
    """Shapley values by their definition (Shapley 1953), of one sample."""
    count, values = len(x), torch.zeros(len(x), dtype=torch.float64)
    for feature in range(count):
        others = [one for one in range(count) if one != feature]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for chosen in itertools.combinations(others, size):
                without = baseline.clone()
                without[list(chosen)] = x[list(chosen)]
                joined = without.clone()
                joined[feature] = x[feature]
                values[feature] += weight * (score(joined) - score(without))
    return values


class Seen(nn.Module):
    """A picture and the words about it."""

    def __init__(self):
        super().__init__()
        self.look, self.words, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Embedding(9, 8), nn.Linear(8, 2)

    def forward(self, pixel_values, input_ids):
        seen = self.look(pixel_values).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(torch.cat([seen, self.words(input_ids)], dim=1).mean(dim=1)))


class Attending(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.read = nn.Conv2d(1, 8, 4, stride=4) if dims == 4 else nn.Linear(3, 8)
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.read(x)
        return self.head(self.block(tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens).mean(dim=1))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Heard(nn.Module):
    """Convolutions, and a recurrent layer over what they find, also step by step."""

    def __init__(self, kind):
        super().__init__()
        self.read, self.head, self.kind = nn.Conv1d(3, 6, 3), nn.Linear(6, 2), kind
        self.rnn = nn.GRU(6, 6, batch_first=True) if kind == "gru" else nn.GRUCell(6, 6)

    def forward(self, x):
        steps, state = self.read(x).relu().transpose(1, 2), None
        if self.kind == "gru":
            return self.head(self.rnn(steps)[0][:, -1])
        for step in steps.unbind(1):
            state = self.rnn(step, state)
        return self.head(state)


class Hard(nn.Module):
    """Reads its input by a step that no gradient passes."""

    def __init__(self, how, *layers):
        super().__init__()
        self.how, self.net = how, nn.Sequential(*layers)

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.net(x)
        return self.net({"round": x.round(), "step": (x > 0).to(x), "detach": x.detach()}[self.how])


def wave(size):
    return nn.Sequential(
        nn.Conv1d(1, 4, 9, stride=4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, size)
    )


class Waveform(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = wave(2)

    def forward(self, x):
        return self.net(x.unsqueeze(1))


# -- each kind ---------------------------------------------------------------------------------------------------------


def test_it_is_the_default_everywhere():
    assert inspect.signature(layerlens.saliency).parameters["method"].default == "auto"
    assert (
        inspect.signature(layerlens.over(nn.Linear(2, 1), torch.ones(2, 2)).saliency).parameters["method"].default
        == "auto"
    )
    lens, x = Lens(table(3)), normal(2, 3).double()
    assert torch.equal(lens.saliency(x).tensor, lens.saliency(x, method="auto").tensor)
    text = repr(lens.saliency(x))
    assert "kernel_shap" in text and "a table of 3 columns, baseline zero: docs/saliency.md; 6 forward passes" in text


@pytest.mark.parametrize("columns", [1, 3, 6])
def test_a_small_table_gets_exact_shapley_values(columns):
    net, x = table(columns), normal(2, columns).double()
    found = layerlens.saliency(net, x)
    with torch.no_grad():
        for row in range(2):
            exact = shapley(lambda one: net(one[None])[0, 0], x[row], torch.zeros(columns).double())
            torch.testing.assert_close(found.tensor[row], exact)
            data = normal(20, columns).double().mean(dim=0)
            exact = shapley(lambda one: net(one[None])[0, 0], x[row], data)
            torch.testing.assert_close(layerlens.saliency(net, x, baseline=data).tensor[row], exact)


def test_a_wider_table_gets_sampled_shapley_values():
    for columns, orders in ((10, 26), (38, 26), (100, 10), (250, 4)):
        net, x = table(columns), normal(2, columns).double()
        found = layerlens.saliency(net, x)
        assert (found.method, found.settings["permutations"], found.settings["seed"]) == ("shapley_sampling", orders, 0)
        assert found.cost == f"{orders} forward passes a feature (permutations)"
        with torch.no_grad():
            change = (net(x) - net(torch.zeros_like(x)))[:, 0]
        torch.testing.assert_close(found.tensor.sum(dim=1), change)
        assert torch.equal(found.tensor, layerlens.saliency(net, x).tensor)


@pytest.mark.parametrize(
    ("build", "shape", "method", "why"),
    [
        (lambda: Attending(4), (2, 1, 16, 16), "relevance, cp", "a picture, and a network with attention"),
        (lambda: Attending(3), (2, 9, 3), "deep_lift", "a series, and a network with attention"),
        (lambda: wave(2), (2, 1, 800), "deep_lift", "a series, and a network with convolutions"),
        (Waveform, (2, 800), "deep_lift", "a table, and a network with convolutions and no attention"),
        (lambda: Heard("gru"), (2, 3, 9), "integrated_gradients", "a series, and a network with recurrent layers"),
        (lambda: Heard("cell"), (2, 3, 9), "integrated_gradients", "a series, and a network with recurrent layers"),
        (Last, (2, 9, 3), "integrated_gradients", "a series, and no convolutions or attention in the network"),
        (lambda: nn.Linear(800, 2), (2, 800), "integrated_gradients", "a table, and no convolutions or attention"),
    ],
)  # fmt: skip
def test_pictures_series_and_waveforms(build, shape, method, why):
    net, x = made(build), normal(*shape).double()
    found = layerlens.saliency(net, x, target=1)
    assert found.method == method and found.settings["chosen"].startswith(why)
    assert found.settings["chosen"].endswith(": docs/saliency.md") and found.cost.endswith(
        "1 gradient to choose it" if method.startswith("relevance") else "about 3 gradients to try relevance"
    )
    if not method.startswith("relevance"):
        change = net(x)[:, 1] - net(torch.zeros_like(x))[:, 1]
        torch.testing.assert_close(found.tensor.flatten(1).sum(dim=1), change, rtol=0.05, atol=1e-3)
    given = layerlens.saliency(net, x, target=1, baseline=0.5)
    assert given.method == "integrated_gradients" and "baseline 0.5" in given.settings["chosen"]


def test_a_series_that_deep_lift_does_not_add_up_on_gets_integrated_gradients():
    """A running product has no rule in DeepLIFT; what is said of that trial is not said of the result."""

    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = wave(2)

        def forward(self, x):
            return self.net((1 + x / 10).cumprod(dim=2))

    net, x = made(Running), normal(2, 1, 60).double()
    with pytest.warns(UserWarning, match="no rule is known for Cumprod"), pytest.warns(UserWarning, match="miss S"):
        layerlens.saliency(net, x, target=1, method="deep_lift")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = layerlens.saliency(net, x, target=1)
    assert found.method == "integrated_gradients" and "deep_lift does not add up" in found.settings["chosen"]
    assert found.cost.endswith("to try relevance, 1 gradient and 1 forward pass to try deep_lift")
    assert torch.equal(found.tensor, layerlens.saliency(net, x, target=1, method="integrated_gradients").tensor)


def test_a_series_that_deep_lift_does_not_take_gets_integrated_gradients():
    """Zeros take another route than the series: more layers run on it."""

    class Deeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.more, self.net = nn.Conv1d(1, 1, 3, padding=1), wave(2)

        def forward(self, x):
            return self.net(self.more(x).tanh() if float(x.detach().abs().max()) > 0.5 else x)

    net, x = made(Deeper), normal(2, 1, 60).double()
    with pytest.raises(LayerLensError, match="another route"):
        layerlens.saliency(net, x, target=1, method="deep_lift")
    with pytest.warns(UserWarning, match="integrated_gradients: after 200 steps"):  # the model jumps on the path
        found = layerlens.saliency(net, x, target=1)
    assert found.method == "integrated_gradients" and "which deep_lift does not take" in found.settings["chosen"]


def test_pictures_of_a_convolutional_network():
    case = CASES["cnn"]
    found = auto(case.build(), case.example(), target=case.target)
    assert found.method == "relevance, epsilon_plus"
    expected = "a picture, and a network with convolutions and no attention: docs/faithfulness.md"
    assert found.settings["chosen"] == expected and found.cost == "about 3 gradients, 1 gradient to choose it"


def test_an_image_and_tokens_are_attributed_in_the_same_units():
    net, x = (
        made(Seen),
        {"pixel_values": normal(2, 3, 16, 16).double(), "input_ids": torch.tensor([[1, 4, 2], [5, 5, 7]])},
    )
    found = layerlens.saliency(net, x, target=1)
    assert found.method == "shapley_sampling" and found.settings["permutations"] == 4
    assert found.settings["chosen"] == "a picture and token ids, 67 features together, baseline zero: docs/saliency.md"
    cells = found.values["pixel_values"][:, 0, ::2, ::2]  # 64 cells of 2 x 2 pixels
    with torch.no_grad():
        empty = net.head(torch.tanh(net.look(torch.zeros(1, 3, 16, 16).double()).sum(dim=(2, 3)) / 19))
        change = net(**x)[:, 1] - empty[:, 1]
    torch.testing.assert_close(cells.flatten(1).sum(dim=1) + found.values["input_ids"].sum(dim=1), change)
    long = {**x, "input_ids": torch.arange(400).reshape(2, 200) % 9}
    found = layerlens.saliency(net, long, target=1)
    assert found.method == "relevance, epsilon_plus" and set(found.values) == {"pixel_values", "input_ids"}


def test_categories_of_several_tables_are_columns():
    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Embedding(5, 4), nn.Embedding(7, 4), nn.Linear(10, 1)

        def forward(self, kinds, numbers):
            parts = [self.first(kinds[:, 0]), self.second(kinds[:, 1]), numbers]
            return self.head(torch.tanh(torch.cat(parts, dim=1)))

    x = {"kinds": torch.tensor([[3, 6], [1, 0]]), "numbers": normal(2, 2).double()}
    found = layerlens.saliency(made(Columns), x)
    assert found.method == "kernel_shap" and found.settings["chosen"].startswith("a table of 4 columns")


# -- no gradient -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["round", "step", "no_grad", "detach"])
def test_without_gradients_it_perturbs(how):
    net, x = (
        made(lambda: Hard(how, nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 2))),
        normal(2, 1, 12, 12),
    )
    found = layerlens.saliency(net, 2 * x.double(), target=0)
    assert found.method == "shapley_sampling" and "no gradient reaches" in found.settings["chosen"]
    assert bool(found.tensor.any()) and found.cost == (
        "4 forward passes a feature (permutations), 1 gradient to choose it"
    )
    with torch.no_grad():
        change = net(2 * x.double())[:, 0] - net(torch.zeros_like(x).double())[:, 0]
    labels = torch.arange(12) * 8 // 12
    per_cell = torch.bincount(labels).double()
    weight = 1 / (per_cell[labels][:, None] * per_cell[labels][None])
    torch.testing.assert_close((found.tensor[:, 0] * weight).sum(dim=(1, 2)), change)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_perturbed(dtype):
    class Sum(nn.Module):
        def forward(self, x):
            return (x.double() * torch.arange(1.0, 4.0)).sum(dim=1)

    x = torch.tensor([[2, 0, 1], [1, 3, 0]]).to(dtype)
    found = layerlens.saliency(Sum(), x)
    torch.testing.assert_close(found.tensor.double(), x.double() * torch.arange(1.0, 4.0))
    with pytest.raises(InputError, match=r"Conv2d does not take .*it runs with x\.float\(\)"):
        layerlens.saliency(nn.Conv2d(3, 2, 3), torch.ones(1, 3, 5, 5).to(dtype), target=0)


def test_an_input_that_no_gradient_reaches_is_not_left_out():
    class Half(nn.Module):
        def forward(self, x, y):
            return x.sum(dim=(1, 2, 3)) + 2 * y.detach().sum(dim=(1, 2, 3))

    x, y = normal(1, 1, 8, 8).double(), normal(1, 1, 8, 8).double()
    found = layerlens.saliency(Half(), (x, y))
    assert found.settings["chosen"].startswith("no gradient reaches input 1")
    torch.testing.assert_close(found.values["1"], 2 * y)  # the score is linear, and each pixel is a cell
    torch.testing.assert_close(found.values["0"], x)


def test_a_layer():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    found = layerlens.saliency(net, normal(2, 3).double(), where="1")
    assert (
        found.method == "integrated_gradients"
        and found.settings["chosen"] == "a layer, baseline zero: docs/saliency.md"
    )
    hard = Hard("round", nn.Linear(3, 8), nn.Flatten(), nn.Linear(8, 2)).double()
    assert layerlens.saliency(hard, normal(2, 3).double(), target=0, where="net.0").method == "integrated_gradients"

    class Stepped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.last((self.first(x) > 0).double())

    found = layerlens.saliency(made(Stepped), normal(2, 3).double(), where="first")
    assert found.method == "shapley_sampling" and found.how == "shapley_sampling at first"
    assert found.settings["chosen"].startswith("no gradient reaches layer first")


# -- what is said and refused ------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    net, x = table(3), normal(2, 3).double()
    with pytest.raises(UnknownOption, match=r"auto\(\) chooses the method, and has no option 'steps'"):
        layerlens.saliency(net, x, steps=5)
    with pytest.raises(TargetError, match="class 7 is out of range"):
        layerlens.saliency(made(Last), normal(2, 9, 3).double(), target=7)
    with pytest.raises(OptionError, match="does not broadcast"):
        layerlens.saliency(net, x, baseline=torch.ones(4))


def test_the_model_is_as_it_was():
    net, x = made(Last), normal(2, 9, 3).double()
    net.train()
    before = {name: one.clone() for name, one in net.state_dict().items()}
    state = torch.random.get_rng_state()
    layerlens.saliency(net, x, target=0)
    assert net.training and all(one.grad is None and one.requires_grad for one in net.parameters())
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_batches_that_get_other_methods_are_noticed(tmp_path):
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(torch.tanh(self.words(ids).mean(dim=1)))

    texts = [torch.tensor([1, 4, 2]), torch.arange(210) % 9]
    with pytest.warns(UserWarning, match=r"auto took centered_relevance for some samples and leave_one_out"):
        layerlens.over(made(Any).float(), texts, batch_size=1, store=tmp_path / "s").saliency(target=0)


def test_a_table_far_from_zero_gets_a_warning_that_names_its_columns():
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 50.0, 2.0])
    net = nn.Linear(3, 1)
    with pytest.warns(
        UserWarning, match=r"a row of zeros, which is far from the mean of column 1 \(49\.7\)\. Give rows"
    ):
        auto(net, rows, target=0)
    table = pandas.DataFrame(rows.numpy(), columns=["z", "age", "w"])
    with pytest.warns(UserWarning, match=r"the mean of age \(\d\d.*\)\. Give rows of your data"):
        Lens(net).saliency(table.iloc[0])
    for fine in (rows - rows.mean(0), torch.rand(40, 3), torch.ones(6, 3)):
        auto(net, fine, target=0)  # a warning is an error here
    found = Lens(net).saliency(table, baseline=table.mean())
    expected = (rows - rows.mean(0)) * net.weight.detach()
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-4)


def test_a_sorted_data_set_is_judged_by_rows_from_all_of_it():
    rows = torch.linspace(0.01, 1, 128)[:, None].repeat(1, 3)  # of each batch, zero is many deviations away
    net, state = nn.Linear(3, 1), torch.get_rng_state()
    found = layerlens.over(net, rows, batch_size=32).saliency(target=0)  # a warning is an error here
    torch.testing.assert_close(found["values"][:], (rows * net.weight).detach())
    with pytest.warns(UserWarning, match=r"samples 0 to 31: .*the mean of column 1 \(50\.5\)\. Give rows"):
        layerlens.over(net, rows + torch.tensor([0.0, 50.0, 0.0]), batch_size=32).saliency(target=0)
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_warned_of_depends_on_the_kind_of_input_and_not_on_words():
    rows = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    rows[:, 7] += 50
    with pytest.warns(UserWarning, match=r"the mean of column 7 \(50\.\d\)"):  # wider than Shapley values take
        assert auto(nn.Linear(300, 1), rows, target=0).method == "integrated_gradients"
    kinds, numbers = torch.randint(5, (40, 1)), rows[:, 7:8]
    with pytest.warns(UserWarning, match="column 0"):
        auto(nn.Linear(1, 1), numbers, target=0)
    auto(nn.Linear(1, 1), numbers, target=0, baseline=50.0)
    assert auto(nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(2, 1)), kinds, target=0).values.shape == (
        40,
        1,
    )


def test_where_a_gradient_is_not_finite_relevance_is_taken():
    """A spectrum in silence: the root of 0 has no slope, and integrated gradients would be NaN."""

    class Heard(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.waves, self.cell, self.head = nn.Conv1d(1, 8, 8, 4, bias=False), nn.LSTMCell(4, 6), nn.Linear(6, 1)

        def forward(self, sound):
            waves, state = self.waves(sound.unsqueeze(1)), None
            for frame in (waves[:, :4] ** 2 + waves[:, 4:] ** 2).sqrt().unbind(dim=2):
                state = self.cell(frame, state)
            return self.head(state[0])

    sound = torch.zeros(1, 300)
    sound[:, 100:200] = torch.sin(torch.arange(100.0))
    found = layerlens.saliency(Heard(), sound)
    assert found.method.startswith("relevance") and "a gradient that is not finite" in found.settings["chosen"]
    assert bool(found.tensor.isfinite().all()) and not found.tensor[0, :100].any()
    assert layerlens.saliency(Heard(), sound + 0.01).method == "integrated_gradients"  # as measured for such networks
