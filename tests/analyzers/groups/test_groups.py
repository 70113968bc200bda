"""Groups of samples and errors on real models: a planted shortcut is found, and nothing where nothing is."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerlens import ErrorExplanation, Lens, capture, compare_groups, explain_errors, load
from layerlens.errors import InputError, LayerNotFound, OptionError, TargetError
from tests.analyzers.groups.planted import corner, pictures, shortcut
from tests.cases import CASES, normal
from tests.snapshot import Snapshot


@pytest.fixture(scope="module")
def planted():
    return pictures(200, torch.Generator().manual_seed(9), agree=0.5)


def words(flags):
    return ["cross" if flag else "plain" for flag in flags.tolist()]


def test_a_planted_shortcut_is_found_between_groups(planted):
    x, _, cross = planted
    options = {"window": 3, "stride": 2}
    found = compare_groups(shortcut(), x, words(cross), target=1, method="occlusion", options=options)
    effects = found.attribution()
    inside, _ = corner(effects.p[0])
    assert inside >= 12 and max(effects.peak()) < 5
    change = effects.difference[0].abs()
    assert change[:5, :5].sum() > 0.7 * change.sum()
    values, null = found.separation.values, found.separation.null
    assert (values[1:] > 0.99).all() and (null < 0.75).all()
    assert found.contrasts == ("cross - plain",) and sum(found.counts) == 200
    layer, _, effect, p = found.strongest(1)[0]
    assert layer in found.activations and abs(effect) > 3 and p < 0.01


@pytest.mark.parametrize("rounding", [1 - 1e-6, 1, 1 + 1e-6])
def test_units_that_a_layer_hands_on_are_listed_under_the_first_name(planted, rounding):
    """Whatever the rounding: a norm behind a convolution, or a factor of -1, has the effects of what it is given."""
    x, _, cross = planted

    class Handed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(x.shape[1], 4, 5), nn.BatchNorm2d(4).eval()
            with torch.no_grad():
                self.norm.weight.copy_(torch.tensor([1.0, -2.0, 3.0, -0.5]) * rounding)
                self.norm.bias.fill_(0.3)

        def forward(self, x):
            return self.norm(self.conv(x)).relu().mean(dim=(2, 3))

    strongest = compare_groups(Handed().eval(), x, words(cross), method=None).strongest(4)
    assert len({unit for _, unit, _, _ in strongest}) == 4
    assert {layer for layer, *_ in strongest} <= {"conv", "relu", "mean"} and strongest[0][0] == "conv"
    sizes = [abs(effect) for *_, effect, _ in strongest]
    assert sizes == sorted(sizes, reverse=True)


def test_the_shortcut_is_found_in_the_errors(planted):
    x, labels, cross = planted
    found = explain_errors(shortcut(), x, labels)
    assert torch.equal(found.predicted, cross.long()), "the model is not fooled"
    assert torch.equal(found.errors, (labels != cross.long()).nonzero().flatten())
    assert found.contrasts == ("error - hit", "error - hit (label 0)", "error - hit (label 1)")
    for row in (1, 2):  # crosses make errors of label 0, their lack errors of label 1: pooled, it cancels
        assert max(found.attribution().peak(row)) < 5
        assert (found.separation.values[1:, row] > 0.99).all()
    assert found.confusions()[0][2] + found.confusions()[1][2] == len(found.errors)
    pooled = explain_errors(shortcut(), x, labels, within="predicted", method=None)
    assert not pooled.attributions and (pooled.separation.values[:, 0] < 0.75).all()


def test_random_groups_do_not_differ(planted):
    x, _, _ = planted
    groups = (torch.arange(200) % 2).tolist()
    found = compare_groups(shortcut(), x, groups)
    assert corner(found.attribution().p[0]) == (0, 0)
    assert all(float(one.p.min()) > 0.05 for one in found.activations.values())
    assert (found.separation.values < found.separation.null + 0.06).all()


def test_strata_keep_the_class_out(planted):
    x, _, cross = planted
    skewed = torch.where(torch.arange(200) % 4 == 0, ~cross, cross)  # a group that mostly is the cross
    plain = compare_groups(shortcut(), x, skewed.tolist(), method=None)
    held = compare_groups(shortcut(), x, skewed.tolist(), method=None, strata=cross)
    assert float(plain.separation.values.max()) > 0.7 > float(held.separation.values.max())
    assert plain.activations["7"].p.min() < 0.01 < 0.05 < held.activations["7"].p.min()


def test_units_are_means_over_places_in_every_kind_of_model():
    for name in ("cnn", "encoder", "lstm", "hf_swin", "hf_bert", "transformer"):
        if name not in CASES:
            continue
        case = CASES[name]
        model, x = case.build(), case.example()
        batch = len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
        data = [x] * 4
        groups = ["a", "b"] * (2 * batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = compare_groups(model, data, groups, method=None, batched=True, permutations=20)
        record = capture(model, x)
        compared = 0
        for layer, module in model.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) or layer not in found.activations:
                continue
            output = record.calls(layer)[0].output.double()
            unit = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
            means = output.movedim(unit, 1).flatten(2).mean(dim=2) if output.ndim > 2 else output
            rows = torch.arange(4 * batch).remainder(batch)
            mine = torch.stack([means[rows[k::2]].mean(dim=0) for k in (0, 1)])
            torch.testing.assert_close(found.activations[layer].means[0], mine, rtol=1e-4, atol=1e-6)
            compared += 1
        assert compared, name


def test_the_batch_and_the_form_of_the_data_do_not_matter(planted):
    x, labels, cross = planted
    x, labels, cross = x[:40], labels[:40], cross[:40]
    options = {"permutations": 50, "target": 1, "method": "gradient"}
    found = compare_groups(shortcut(), x, words(cross), **options)
    loader = DataLoader(TensorDataset(x, cross.long()), batch_size=7)
    again = compare_groups(shortcut(), loader, **options)
    single = compare_groups(shortcut(), iter(list(x)), words(cross), batch_size=1, **options)
    for other, sign in ((again, -1), (single, 1)):  # groups "0" and "1" come in the other order
        torch.testing.assert_close(other.attribution().effect, sign * found.attribution().effect, rtol=1e-3, atol=1e-4)
        for layer in found.activations:
            torch.testing.assert_close(
                other.activations[layer].difference, sign * found.activations[layer].difference, rtol=1e-3, atol=1e-5
            )
    assert torch.equal(compare_groups(shortcut(), x, words(cross), **options).attribution().p, found.attribution().p)


def test_three_groups_are_each_compared_with_the_rest():
    x = normal(60, 5)
    x[20:40, 1] += 4
    found = compare_groups(nn.Linear(5, 3), x, ["a"] * 20 + ["b"] * 20 + ["c"] * 20, target=0, method="gradient")
    assert found.contrasts == ("a - rest", "b - rest", "c - rest") and found.separation.series == found.contrasts
    own = compare_groups(nn.Sequential(nn.Identity()), x, ["a"] * 20 + ["b"] * 20 + ["c"] * 20, method=None)
    assert own.activations["0"].p[1, 1] < 0.01 and own.activations["0"].effect[1, 1] > 2
    assert found.to_pandas().shape[0] == 3 * 3 * len(found.activations) if _pandas() else True


def _pandas():
    try:
        import pandas  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:no layer shows which axis of the input")
def test_texts_series_and_tables_are_compared_by_token_step_and_column():
    torch.manual_seed(0)
    ids = torch.randint(0, 10, (40, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 3] = torch.tensor([8, 9] * 20)
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(24, 2))
    found = compare_groups(net, ids, [0, 1] * 20, target=0, method="input_x_gradient")
    assert found.attribution().axes == ("token",) and found.attribution().p.shape == (1, 6)
    assert found.attribution().peak() == (3,)
    series = compare_groups(nn.Sequential(nn.Flatten(), nn.Linear(60, 2)), normal(30, 20, 3), [0, 1] * 15, target=0)
    assert series.attribution().axes == ("time",) and series.attribution().p.shape == (1, 20)


def test_the_model_and_the_data_are_left_as_they_were(planted):
    x, labels, _ = planted
    model, x = shortcut(), x[:40].clone()
    model.train()
    before = Snapshot(model, x)
    explain_errors(model, x, labels[:40], permutations=100)
    before.check()
    with pytest.raises(OptionError):
        compare_groups(model, x, labels[:40], method="no such method")
    before.check()
    model.eval()


def test_layers_that_cannot_be_compared_are_told():
    class Route(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(self.a(x) if float(x[0, 0]) > 0 else x)

    x = normal(12, 3)
    x[:6, 0], x[6:, 0] = 1.0, -1.0
    found = compare_groups(Route(), x, [0, 1] * 6, method=None, batch_size=6)
    assert found.left_out == {"a": "it did not run for every sample"} and "b" in found.activations


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"groups": None}, InputError, r"no groups: give groups="),
        ({"groups": ["a"] * 3}, InputError, r"one name or number per sample, 20 in all; got 3"),
        ({"groups": "abc"}, InputError, r"one name or number per sample"),
        ({"groups": ["a"] * 20}, InputError, r"all 20 samples are in the group 'a'"),
        ({"groups": ["a"] + ["b"] * 19}, InputError, r"group 'a' has 1 sample"),
        ({"strata": list(range(20))}, InputError, r"strata that hold several groups"),
        ({"layers": "nowhere"}, LayerNotFound, r"nowhere"),
        ({"permutations": 0}, OptionError, r"permutations"),
        ({"method": "saliencyy"}, OptionError, r"saliencyy"),
        ({"target": 7}, TargetError, r"out of range"),
        ({"target": [0, 1]}, TargetError, r"holds 2 classes, and the data at least 16 samples"),
    ],
)
def test_bad_arguments_of_compare_groups_are_told(change, error, match):
    given = {"groups": ["a", "b"] * 10, "target": 0, "method": "gradient", **change}
    with pytest.raises(error, match=match):
        compare_groups(nn.Sequential(nn.Linear(3, 2)), normal(20, 3), **given)


def test_bad_labels_are_told():
    model, x = nn.Linear(3, 2), normal(20, 3)
    right = model(x).argmax(dim=1)
    with pytest.raises(InputError, match=r"no labels"):
        explain_errors(model, x)
    with pytest.raises(InputError, match=r"explain_errors: 5 labels for 16 samples or more"):
        explain_errors(model, x, right[:5])
    with pytest.raises(InputError, match=r"0 of 20 samples are wrong"):
        explain_errors(model, x, right)
    with pytest.raises(TargetError, match=r"one number per sample, which names no class"):
        explain_errors(nn.Linear(3, 1), x, right)
    with pytest.raises(OptionError, match=r"stratum"):
        explain_errors(model, x, right, within="class")


def test_too_few_samples_are_warned_of():
    with pytest.warns(UserWarning, match=r"3 of 'a', 2 of 'b' and 1000 permutations no p can fall below 0\.1"):
        compare_groups(nn.Linear(3, 2), normal(5, 3), ["a", "b", "a", "b", "a"], method=None)


def test_places_of_different_sizes_are_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = [normal(1, 8, 8), normal(1, 9, 9)] * 4
    with pytest.raises(InputError, match=r"places of samples of different sizes"):
        compare_groups(net, data, [0, 1] * 4, target=0, method="gradient", batch_size=1)
    found = compare_groups(net, data * 2, [0, 0, 1, 1] * 4, method=None, batch_size=1)
    assert found.activations["0"].p.shape == (1, 2)


def test_results_are_kept_and_drawn(tmp_path, planted):
    x, labels, _ = planted
    lens = Lens(shortcut(), class_names=["level", "upright"])
    found = lens.explain_errors(x[:60], labels[:60], target="upright", permutations=100)
    back = load(found.save(tmp_path / "errors"))
    assert isinstance(back, ErrorExplanation) and repr(back) == repr(found) and "error - hit" in repr(found)
    for kind in (None, "layers", "separation"):
        assert found.plot(kind).save(tmp_path / f"{kind}.png").stat().st_size > 3000
    units = found.activations["7"].plot()
    assert units.data["effect"].shape == (2,)
    compared = lens.compare_groups(x[:60], words(planted[2][:60]), target="upright", permutations=100)
    assert compared.target == "upright" and compared.plot().data["means"].shape == (2, 16, 16)
