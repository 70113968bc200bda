"""How linear layers are, of layers that are known to be linear or not."""

import contextlib
import math
import warnings

import pytest
import torch
from torch import nn

from layerlens import Lens, errors
from layerlens.analyzers.dynamics import nonlinearity
from layerlens.analyzers.dynamics.blocks.nonlinearity import split_samples, unexplained
from layerlens.analyzers.dynamics.blocks.residual import residual_calls
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, double, normal
from tests.families import FAMILIES


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@contextlib.contextmanager
def quiet():
    """So few samples of so many features are warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def values(found):
    return dict(zip(found.layers, found.values.tolist(), strict=True))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (200, 5)),
        (nn.Linear(5, 3), (60, 4, 5)),
        (nn.Conv1d(3, 4, 3), (60, 3, 12)),
        (nn.Conv1d(3, 4, 4, stride=2, padding=1), (60, 3, 12)),
        (nn.Conv2d(3, 4, 3, padding=1), (60, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, stride=2, padding="valid", dilation=2), (60, 3, 9, 9)),
        (nn.Conv2d(3, 4, (3, 5), padding="same"), (60, 3, 8, 8)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (60, 4, 8, 8)),
        (nn.Conv3d(2, 3, 2), (60, 2, 4, 4, 4)),
        (nn.BatchNorm2d(3), (60, 3, 8, 8)),
        (nn.AvgPool2d(2), (60, 3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (60, 3, 8, 8)),
        (nn.Flatten(), (200, 3, 2)),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (200, 2, 3, 3)),
    ],
    ids=lambda part: str(part).replace("\n", ""),
)
def test_linear_layers_are_at_zero(layer, shape):
    x = normal(*shape).double()
    found = nonlinearity(nn.Sequential(layer).double().requires_grad_(False), x, "0")
    assert 0 <= float(found.values[0]) < 1e-9
    assert float(found.null[0]) < 1e-9


def test_a_square_of_symmetric_input_is_at_one():
    found = nonlinearity(nn.Sequential(Square()), normal(1000, 4).double())
    assert float(found.values[0]) == pytest.approx(1, abs=0.02)
    assert float(found.error[0]) < 0.02


def test_a_relu_of_a_normal_number_has_its_closed_form():
    """Best linear map of max(x, 0): slope 1/2, so R^2 = (1/4) / Var = .25 / (1/2 - 1/(2 pi))."""
    found = nonlinearity(nn.Sequential(nn.ReLU()), normal(4000, 3).double(), max_rows=4000)
    assert float(found.values[0]) == pytest.approx(1 - 0.25 / (0.5 - 0.5 / math.pi), abs=0.02)


def test_in_place_layers_are_read_before_they_write():
    x = normal(500, 3).double()
    by = [nonlinearity(nn.Sequential(nn.ReLU(inplace=flag)), x).values[0] for flag in (False, True)]
    assert float(by[0]) == float(by[1]) > 0.2


def test_the_stream_of_a_residual_block_is_taken_off():
    """x + f(x) with a small f looks linear; f is what is asked for."""

    class Small(Square):
        def forward(self, x):
            return 0.1 * x * x

    net = nn.Sequential(Residual(Small()), Residual(nn.Linear(4, 4)), nn.Linear(4, 2)).double()
    x = normal(1000, 4).double()
    found = nonlinearity(net, x)
    assert found.settings["residual"] == ["0", "1"]
    told = values(found)
    assert told["0"] == pytest.approx(told["0.inner"], abs=1e-9) and told["0"] > 0.9 and told["1"] < 1e-9
    kept = values(nonlinearity(net, x, residual=False))
    assert kept["0"] < 0.05  # the trap


@pytest.mark.parametrize("name", ["hf_vit", "hf_gpt2", "hf_llama"])
def test_blocks_that_add_to_their_stream_are_found_in_the_graph(name):
    case = CASES[name]
    model = case.build().requires_grad_(False)
    calls = residual_calls(model, as_inputs(case.example()), None, 0)
    blocks = {
        path
        for path, module in model.named_modules()
        if type(module).__name__ in ("ViTLayer", "GPT2Block", "LlamaDecoderLayer")
    }
    assert blocks and {name for name in calls if not name.endswith("embeddings")} == blocks
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_no_residual_block():
    class Ends(nn.Module):
        def __init__(self, end):
            super().__init__()
            self.f, self.end = nn.Linear(3, 3), end

        def forward(self, x):
            return self.end(x, self.f(x))

    ends = {
        "norm": (lambda x, y: nn.functional.layer_norm(x + y, (3,)), False),
        "relu": (lambda x, y: torch.relu(x + y), False),
        "alone": (lambda x, y: y, False),
        "same": (lambda x, y: x, False),
        "scaled": (lambda x, y: torch.add(y, x, alpha=0.5), False),
        "scaled other": (lambda x, y: torch.add(x, y, alpha=0.5), True),
        "twice": (lambda x, y: (x + y) + y, True),
        "in place": (lambda x, y: x.clone().add_(y), True),
    }
    for name, (end, expected) in ends.items():
        net = nn.Sequential(Ends(end))
        assert ("0" in residual_calls(net, as_inputs(normal(2, 3)), None, 0)) == expected, name


def test_block_influence_is_one_less_the_cosine_and_slight_blocks_are_named():
    torch.manual_seed(0)
    slight = nn.Linear(16, 16)
    with torch.no_grad():
        slight.weight.mul_(0.01), slight.bias.mul_(0.01)
    net = (
        nn.Sequential(Residual(nn.Sequential(nn.Linear(16, 16), Square())), Residual(slight))
        .double()
        .requires_grad_(False)
    )
    x = normal(200, 7, 16).double()
    found = nonlinearity(net, x, ["0", "1"])
    h = net[0](x)
    for row, (before, after) in enumerate(((x, h), (h, net[1](h)))):
        each = (1 - torch.cosine_similarity(before, after, dim=2)).mean(dim=1)
        assert float(found.checks["block influence"][row]) == pytest.approx(float(each.mean()), rel=1e-9)
        assert float(found.checks["block influence error"][row]) == pytest.approx(
            float(each.std()) / 200**0.5, rel=1e-9
        )
    assert found.settings["redundant"] == ["1"] and "changed by 1." in found.explain()
    assert math.isnan(float(nonlinearity(net, x, "1.inner").checks["block influence"][0]))  # no block


def test_few_rows_for_many_features_are_warned_of_and_shown_by_the_null():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 20)).double()
    with pytest.warns(
        UserWarning, match=r"too few rows for the features of layer 0: a linear layer would get up to 0\.\d\d"
    ):
        found = nonlinearity(net, normal(100, 300).double())
    value, null = float(found.values[0]), float(found.null[0])
    assert value > 0.5 and null == pytest.approx(value, abs=0.1)  # it is linear, and that cannot be told
    assert float(nonlinearity(net, normal(900, 300).double()).values[0]) < 1e-9


def test_input_of_few_directions_needs_few_rows():
    net = nn.Sequential(nn.Linear(300, 20)).double()
    found = nonlinearity(net, normal(100, 10).double() @ normal(10, 300, seed=3).double())
    assert float(found.values[0]) < 1e-9


def test_wide_inputs_are_summed_at_random_and_the_null_tells_the_price():
    net = nn.Sequential(nn.Linear(300, 20)).double()
    with pytest.warns(UserWarning, match="the null"):
        found = nonlinearity(net, normal(900, 300).double(), max_features=100)
    assert int(found.checks["features"][0]) == 300
    assert float(found.values[0]) == pytest.approx(float(found.null[0]), abs=0.1) and float(found.null[0]) > 0.3


def test_the_fit_against_lstsq():
    x, y = normal(100, 6).double(), normal(100, 2).double()
    y[:, 0] += 2 * x[:, 1] + 3
    y[:, 1] -= x[:, 5]
    folds = split_samples(torch.arange(100), 0)
    (found,) = unexplained(x, [y], folds)
    for fold in range(5):
        train, test = folds != fold, folds == fold
        ones = torch.cat([x, torch.ones(100, 1).double()], dim=1)
        w = torch.linalg.lstsq(ones[train], y[train]).solution
        rest = (y[test] - ones[test] @ w).square().sum() / (y[test] - y[train].mean(dim=0)).square().sum()
        assert float(found[fold]) == pytest.approx(float(rest), abs=0.02)  # a penalty may do slightly better or worse


def test_samples_are_held_out_as_a_whole():
    samples = torch.arange(20).repeat_interleave(5)
    folds = split_samples(samples, 0).reshape(20, 5)
    assert bool((folds == folds[:, :1]).all()) and folds[:, 0].bincount().tolist() == [4] * 5
    assert split_samples(torch.tensor([0, 0, 1]), 0).max() == 1


def test_noise_is_not_learned():
    """Held out: of an output that has nothing to do with the input nothing is explained, however many features."""

    class Noise(nn.Module):
        def forward(self, x):
            return (1e6 * x.sum(dim=1, keepdim=True)).sin() * torch.ones(1, 3)

    found = nonlinearity(nn.Sequential(Noise()), normal(100, 60).double())
    assert float(found.values[0]) == pytest.approx(1, abs=0.1)


def test_batches_do_not_matter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    x = normal(90, 3, 8, 8).double()
    with pytest.warns(UserWarning):
        first, second = (nonlinearity(net, x, batch_size=size, max_rows=300) for size in (90, 7))
    torch.testing.assert_close(first.values, second.values, equal_nan=True)


def test_attention_reaches_farther_than_a_place_and_counts_as_nonlinear():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(dim=1, keepdim=True).expand_as(x) * 1.0

    x = normal(200, 5, 4).double()
    net = nn.Sequential(Mean())
    by_place = float(nonlinearity(net, x).values[0])
    whole = float(nonlinearity(net, x, rows="sample").values[0])
    assert by_place > 0.7 and whole < 1e-9


def test_every_case(case):
    model, x = case.build().double(), double(case.example())
    with quiet():
        found = nonlinearity(model, [as_inputs(x)] * 3, batched=True, max_places=4, max_rows=40)
    known = found.values[found.values.isfinite()]
    assert len(known) and float(known.min()) >= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "mixtral", "t5", "swin"])
def test_families_unseen(name):
    import transformers

    kind, configuration, options, data, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, configuration)(**options)).eval()
    with quiet():
        found = nonlinearity(model, [as_inputs(data())] * 4, batched=True, max_places=4, max_rows=40, max_features=32)
    assert len(found) > 5


def test_what_is_refused_and_warned_of(tmp_path):
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), normal(70, 3)
    for options, text in (
        ({"rows": "pixel"}, "unknown rows"),
        ({"window": 2}, "window must be odd"),
        ({"max_rows": 0}, "max_rows must be"),
    ):
        with pytest.raises(errors.OptionError, match=text):
            nonlinearity(net, x, **options)
    with pytest.raises(errors.InputError, match="one sample leaves none to hold out"):
        nonlinearity(net, x[:1])
    with pytest.raises(errors.LayerNotFound):
        nonlinearity(net, x, "9")
    with pytest.raises(errors.InputError, match="no layer has an input and an output"):
        nonlinearity(CASES["hf_llama"].build(), {"input_ids": torch.randint(1, 39, (8, 6))}, "model.embed_tokens")
    with pytest.warns(UserWarning, match="what layer 0 adds is constant"):
        assert math.isnan(float(nonlinearity(nn.Sequential(Residual(Zero())), x.double(), "0").values[0]))
    found = Lens(net).nonlinearity(x)
    assert type(found).load(found.save(tmp_path / "n")).layers == ("0", "1") and "its null" in found.explain()


class Zero(nn.Module):
    def forward(self, x):
        return x * 0.0
