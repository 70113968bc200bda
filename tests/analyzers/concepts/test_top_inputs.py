"""Top inputs of a data set, against brute force in memory."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerlens import Lens, activation_maps, as_target, contrast, errors, relevance, top_inputs
from tests.cases import CASES, double, normal
from tests.snapshot import Snapshot


@pytest.fixture(scope="module")
def net():
    return CASES["cnn"].build().double()


@pytest.fixture(scope="module")
def data():
    return normal(23, 3, 8, 8, seed=3).double()


def brute(maps, reduce, k):
    """For each unit (index, value, place) of the k largest, one sample at a time; the earlier of equal values first."""
    found = []
    for unit in range(maps.shape[1]):
        values = [float(getattr(maps[row, unit], {"max": "amax"}.get(reduce, reduce))()) for row in range(len(maps))]
        order = sorted(range(len(values)), key=lambda row: (-values[row], row))[:k]
        flat = [np.argmax(maps[row, unit].numpy()) for row in order]
        places = [tuple(int(one) for one in np.unravel_index(at, maps.shape[2:])) for at in flat]
        found.append(([*order], [values[row] for row in order], places))
    return found


def check(top, maps, reduce, k):
    for row, (index, values, places) in enumerate(brute(maps, reduce, k)):
        assert top.index[row].tolist() == index
        assert top.values[row].tolist() == pytest.approx(values, rel=1e-9)
        assert [tuple(place) for place in top.places[row].tolist()] == places


@pytest.mark.parametrize("reduce", ["max", "sum", "mean"])
def test_activation_is_brute_force(net, data, reduce):
    maps = activation_maps(net, data, "conv3").values
    check(top_inputs(net, data, "conv3", by="activation", count=5, reduce=reduce, batch_size=4), maps, reduce, 5)


@pytest.mark.parametrize("reduce", ["max", "sum", None])
def test_relevance_is_brute_force(net, data, reduce):
    maps = relevance(net, data, target=2, layers="bn2", rules="epsilon_plus").layers["bn2"][0]
    top = top_inputs(net, data, "bn2", count=4, reduce=reduce, target=2, rules="epsilon_plus", batch_size=5)
    check(top, maps, reduce or "sum", 4)
    assert top.settings["rules"]["name"] == "epsilon_plus" and top.target == "class 2"


@pytest.mark.parametrize("name, layer", [("lstm", "rnn"), ("hf_bert", "bert.encoder.layer.0"), ("mlp", "2")])
@pytest.mark.parametrize("by", ["activation", "relevance"])
def test_places_of_other_kinds_of_models(name, layer, by):
    case = CASES[name]
    model, x, target = case.build().double(), double(case.example()), case.target
    top = top_inputs(model, x, layer, by=by, count=2, target=target, reduce="max", batch_size=1)
    if by == "activation":
        maps = activation_maps(model, x, layer).values
    else:
        maps = relevance(model, x, target=target, layers=layer).layers[layer][0].movedim(-1, 1)
    check(top, maps, "max", 2)
    sample = top.inputs[0]
    assert top.regions.shape == (*top.index.shape, sample["input_ids"].ndim if name == "hf_bert" else sample.ndim, 2)


def forms(data):
    labels = torch.arange(len(data)) % 4
    pairs = [(x, int(label)) for x, label in zip(data, labels, strict=True)]
    return {
        "tensor": (data, None),
        "array": (data.float().numpy(), None),
        "list": (list(data), None),
        "generator": ((x for x in data), None),
        "pairs": (pairs, None),
        "batches": ([data[:5], data[5:6], data[6:]], True),
        "pairs of batches": ([(data[:9], labels[:9]), (data[9:], labels[9:].tolist())], True),
        "Dataset": (TensorDataset(data, labels), None),
        "DataLoader": (DataLoader(TensorDataset(data, labels), batch_size=7), None),
        "DataLoader of samples": (DataLoader(list(data), batch_size=None), None),
    }


@pytest.mark.parametrize("form", list(forms(torch.zeros(4, 1))))
@pytest.mark.parametrize("size", [1, 6, 64])
def test_the_form_of_the_data_and_the_size_of_a_batch_do_not_matter(net, data, form, size):
    given, batched = forms(data)[form]
    model = CASES["cnn"].build() if form == "array" else net
    options = {"by": "activation", "count": 3, "regions": False}
    expected = top_inputs(net, data, "conv3", **options)
    found = top_inputs(model, given, "conv3", batch_size=size, batched=batched, **options)
    assert torch.equal(found.index, expected.index) and torch.equal(found.places, expected.places)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-4)
    assert found.count == len(data) and set(found.inputs) == set(found.index.flatten().tolist())
    for index, sample in found.inputs.items():
        torch.testing.assert_close(sample.double(), data[index], rtol=1e-6, atol=1e-6)


def test_dicts_of_tokens_and_samples_of_different_length():
    case = CASES["hf_bert"]
    model, x = case.build().double(), case.example()
    rows = [{name: part[row] for name, part in x.items()} for row in range(2)]
    short = {name: part[:-2] for name, part in rows[0].items()}
    options = {"by": "activation", "units": [0, 3], "count": 2}
    whole, single = (top_inputs(model, given, "bert.encoder.layer.0", **options) for given in (x, rows))
    assert torch.equal(whole.index, single.index) and torch.equal(whole.places, single.places)
    mixed = top_inputs(model, [*rows, short, rows[0]], "bert.encoder.layer.0", **options)
    assert mixed.count == 4


def test_ties_go_to_the_earlier_sample():
    data = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0]).reshape(-1, 1)
    for size in (1, 2, 5):
        top = top_inputs(
            nn.Sequential(nn.Identity(), nn.Linear(1, 2)), data, "0", by="activation", count=4, batch_size=size
        )
        assert top.index.tolist() == [[1, 3, 4, 2]] and top.places.shape == (1, 4, 0)


def test_two_passes_are_equal_and_k_may_exceed_the_data(net, data):
    first, second = (top_inputs(net, data, "conv1", count=99, target=1, units=[2, -1]) for _ in range(2))
    assert first.index.shape == (2, 23) and first.units == (2, 7)
    for name in ("index", "values", "places", "regions"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_labels_and_one_class_per_sample_are_targets(net, data):
    labels = torch.arange(len(data)) % 4
    options = {"count": 3, "batch_size": 5, "regions": False}
    expected = relevance(net, data, target=labels, layers="conv3").layers["conv3"][0]
    for top in (
        top_inputs(net, TensorDataset(data, labels), "conv3", target="label", **options),
        Lens(net).top_inputs(list(zip(data, labels, strict=True)), "conv3", target="label", **options),
        top_inputs(net, data, "conv3", target=labels, **options),
    ):
        check(top, expected, "sum", 3)
    with pytest.raises(errors.TargetError, match="target='label', but sample 0"):
        top_inputs(net, data, "conv3", target="label")
    with pytest.raises(errors.TargetError, match="needs class indices, got 'cat'"):
        top_inputs(net, [(x, "cat") for x in data], "conv3", target="label")
    for wrong in (labels[:-1], torch.cat([labels, labels])):
        with pytest.raises(errors.TargetError, match=r"one per sample"):
            top_inputs(net, data, "conv3", target=wrong, batch_size=4)


@pytest.mark.parametrize(
    "target",
    [
        lambda labels: contrast(labels, (labels + 1) % 4),
        lambda labels: contrast(labels),
        lambda labels: contrast(1, labels),
        lambda labels: 2 * contrast(labels, 0),
        lambda labels: contrast(None, 2),
        lambda labels: 3 * contrast(None, labels),
        lambda labels: contrast(labels, None) - as_target(2),
    ],
    ids=["two lists", "others", "a class and a list", "a multiple", "predicted", "predicted and a list", "mixed"],
)
def test_contrasts_with_one_class_per_sample_are_read_batch_by_batch(net, data, target):
    aim = target(torch.arange(len(data)) % 4)
    expected = relevance(net, data, target=aim, layers="conv3").layers["conv3"][0]
    check(top_inputs(net, data, "conv3", target=aim, count=3, batch_size=5, regions=False), expected, "sum", 3)


def test_a_list_of_another_length_is_refused(net, data):
    labels = torch.arange(len(data)) % 4
    with pytest.raises(errors.TargetError, match="46 classes for 23 samples"):
        top_inputs(net, data, "conv3", target=contrast(torch.cat([labels, labels]), 0), regions=False)


def test_the_region_is_the_receptive_field(net):
    torch.manual_seed(0)
    convs = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, stride=2, padding=1))
    data = normal(6, 1, 12, 12)
    top = top_inputs(convs, data, "1", by="activation", count=3, level=0.0, batch_size=4)
    for row in range(4):
        for rank in range(3):
            place = top.places[row, rank].tolist()
            box = [[max(0, 2 * at - 2), min(12, 2 * at + 3)] for at in place]
            assert top.regions[row, rank].tolist() == [[0, 1], *box]
    smaller = top_inputs(convs, data, "1", by="activation", count=3, level=0.2)
    assert bool(
        ((smaller.regions[..., 1] - smaller.regions[..., 0]) <= (top.regions[..., 1] - top.regions[..., 0])).all()
    )
    dead = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    dead[0].bias.data.fill_(-99)
    assert top_inputs(dead, normal(2, 3), "1", by="activation").regions.abs().sum() == 0


def test_no_more_than_a_batch_is_alive():
    model = CASES["cnn"].build()

    def stream(most):
        made = []
        for index in range(60):
            sample = normal(3, 8, 8, seed=index)
            made.append(weakref.ref(sample))
            alive = sum(one() is not None for one in made)
            assert alive <= most, f"{alive} samples are alive"
            yield sample

    for by in ("activation", "relevance"):
        top = top_inputs(model, stream(5), "conv3", by=by, count=2, batch_size=4, target=1)
        assert top.count == 60 and len(top.inputs) <= 2 * len(top.units)
    with pytest.raises(AssertionError, match="4 samples are alive"):
        top_inputs(model, stream(3), "conv3", by="activation", batch_size=4)


def test_the_kept_samples_do_not_hold_their_batch():
    data = normal(40, 3, 8, 8)
    top = top_inputs(CASES["cnn"].build(), data, "conv3", by="activation", count=1, units=0)
    (sample,) = top.inputs.values()
    assert sample.untyped_storage().nbytes() == sample.numel() * sample.element_size()
    assert sample.data_ptr() != data[next(iter(top.inputs))].data_ptr()


def test_the_progress_bar_counts_and_is_wiped(net, data, capsys):
    top_inputs(net, data, "conv3", by="activation", count=1, batch_size=4, regions=False, progress=True)
    shown = capsys.readouterr().err
    assert "top inputs by activation" in shown and "/6" in shown and shown.split("\r")[-2].strip() == ""
    top_inputs(net, data, "conv3", by="activation", count=1, progress=False)
    assert capsys.readouterr().err == ""


def test_ctrl_c_gives_the_model_back(data):
    model = CASES["cnn"].build().train()
    x = data.float()

    def stream():
        yield from x[:9]
        raise KeyboardInterrupt

    for by in ("activation", "relevance"):
        before = Snapshot(model, x)
        with pytest.raises(KeyboardInterrupt):
            top_inputs(model, stream(), "conv3", by=by, batch_size=4, target=1, progress=True)
        before.check()


@pytest.mark.parametrize("batched", [None, True])
def test_nan_is_refused_by_its_index(net, data, batched):
    bad = data.clone()
    bad[17, 0, 3, 3] = float("nan")
    given = [bad[:10], bad[10:]] if batched else list(bad)
    with pytest.raises(errors.InputError, match=r"sample 17 of the data holds NaN"):
        top_inputs(net, given, "conv3", by="activation", batched=batched)
    with pytest.raises(errors.InputError, match=r"sample 17 of the data holds NaN"):
        top_inputs(net, bad, "conv3", batch_size=5, target=1)

    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x)

    positive = torch.ones(6, 2)
    positive[4, 1] = -1
    with pytest.raises(errors.InputError, match=r"the value of unit 1 for sample 4 of the data is NaN"):
        top_inputs(nn.Sequential(Log()), positive, "0", by="activation", batch_size=4)


@pytest.mark.parametrize("given, says", [
    ([], "is empty"), (torch.zeros(0, 3, 8, 8), "is empty"), (5, "data is int"), ("text", "several samples"),
    (torch.tensor(1.0), "a single number"), ({"x": torch.ones(2), "y": torch.ones(3)}, r"one length, got \[2, 3\]"),
    (["text"], "cannot be read at sample 0: text needs a tokenizer"), ([None], "cannot be read at sample 0"),
])  # fmt: skip
def test_bad_data_is_refused(net, given, says):
    with pytest.raises(errors.InputError, match=says):
        top_inputs(net, given, "conv3", by="activation")


def test_other_bad_use(net, data):
    with pytest.raises(errors.OptionError, match="unknown ranking 'gradient'"):
        top_inputs(net, data, "conv3", by="gradient")
    with pytest.raises(errors.OptionError, match="count must be"):
        top_inputs(net, data, "conv3", count=0)
    with pytest.raises(errors.OptionError, match="there is no unit 99"):
        top_inputs(net, data, "conv3", units=99)
    with pytest.raises(errors.InputError, match=r"1 labels for the 2 sample\(s\) from index 0"):
        top_inputs(net, [(data[:2], [3])], "conv3", batched=True)
    with pytest.raises(errors.RecordError, match="ran once"):
        top_inputs(net, data, "conv3", call=1, by="activation")


def test_a_table(net, data):
    pytest.importorskip("pandas")
    top = top_inputs(net, data, "conv3", by="activation", count=2, regions=False)
    frame = top.to_pandas()
    assert (
        len(frame) == 16
        and frame["index"][0] == top.index[0, 0]
        and frame["place"][3] == tuple(top.places[1, 1].tolist())
    )
    assert repr(top).startswith("TopInputs(layer: conv3, method: activation, max over places, kept: 2 of 23 samples")
    with pytest.raises(errors.OptionError, match="unit 77 of layer 'conv3' was not ranked"):
        top.row(77)


def test_text_is_read_by_the_tokenizer_of_the_lens():
    case = CASES["hf_bert"]
    model, x = case.build(), case.example()

    def tokenizer(texts, return_tensors, padding=False):
        return {name: part[: len(texts)] for name, part in x.items()}

    top = Lens(model, tokenizer=tokenizer).top_inputs(["one", "two"], "bert.encoder.layer.0", by="activation", count=2)
    assert top.count == 2
