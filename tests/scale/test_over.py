"""A whole data set gives what single calls give, row by row, for every analysis, kind of model and kind of store."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import layerlens
from layerlens import Lens, contrast, open_store, over
from layerlens.errors import (
    LayerNotFound,
    OptionError,
    RecordError,
    SampleError,
    SelectionError,
    StoreError,
    TargetError,
)
from layerlens.scale import LocalEngine, RayEngine
from layerlens.scale.data.background import read_ahead
from layerlens.scale.store.plan import Plan
from layerlens.targets.target import as_target

from ..cases import CASES, case_names
from ..several_tensors import pair
from .helpers import Broken, net, pictures


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["memory", "files"])
def store(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "run"


def test_capture_is_what_a_plain_capture_gives(store):
    model, data = net(), pictures()
    found = over(model, data, store=store, batch_size=4, shard_size=8).capture(["0", "3"])
    wanted = layerlens.capture(model, data, ["0", "3"])
    assert found.complete and list(found) == ["0", "3"] and found.ids.tolist() == list(range(21))
    for layer in ("0", "3"):
        same(found[layer].tensor(), wanted[layer])
        same(found[layer][20], wanted[layer][20])
        same(found[layer][-1], wanted[layer][-1])
        same(found[layer][[17, 2]], wanted[layer][[17, 2]])
        same(found[layer][6:19], wanted[layer][6:19])
        same(found[layer][6:19:5], wanted[layer][6:19:5])
        same(torch.stack(list(found[layer])), wanted[layer])
        assert found[layer].shape == tuple(wanted[layer].shape)
    assert found["3"][5:5].shape == (0, 4)


@pytest.mark.parametrize("name", case_names)
def test_every_case_is_captured_as_it_is_by_itself(name):
    """Both samples in a batch of one each: what a plain capture of one sample gives, samples first."""
    case = CASES[name]
    model, x = case.build(), layerlens.inputs.inputs.as_inputs(case.example())
    data = [x.rows(torch.tensor([row])) for row in range(x.batch)]
    layers = "lm_head" if name == "hf_llava" else "*"  # its model returns a list with a tensor for each picture
    found = over(model, data, batch_size=1).capture(layers)
    for row, one in enumerate(data):
        torch.manual_seed(row)  # as a run over data does, for models that draw random numbers
        wanted = layerlens.capture(model, one, layers).numpy()
        for column in found:
            if row not in found[column].ids.tolist():
                continue
            array = wanted[column]
            kept = found[column].of(row).numpy()
            np.testing.assert_allclose(kept.reshape(-1), array.reshape(-1), rtol=1e-4, atol=1e-5, err_msg=column)
    covered = {column for column in found if len(found[column]) == len(data)}
    always = set.intersection(*(set(layerlens.capture(model, one, layers).numpy()) for one in data))
    assert covered == always


def test_saliency_and_its_attributions(store):
    model, data = net(), pictures()
    found = over(model, data, store=store, batch_size=4, shard_size=8).saliency(
        target=2, method="integrated_gradients", steps=16, tolerance=math.inf
    )
    wanted = layerlens.saliency(model, data, target=2, method="integrated_gradients", steps=16, tolerance=math.inf)
    same(found["values"].tensor(), wanted.tensor)
    same(found["score"].tensor(), wanted.score)
    some, direct = (
        found.attribution([19, 3]),
        layerlens.saliency(model, data[[19, 3]], target=2, method="integrated_gradients", steps=16, tolerance=math.inf),
    )
    same(some.tensor, direct.tensor)
    same(some.checks["completeness gap"], direct.checks["completeness gap"])
    for field in ("axes", "signed", "units", "target", "method", "targets", "cost"):
        assert getattr(some, field) == getattr(direct, field), field
    assert some.plot().fig.axes


def test_warnings_come_once_with_their_place_in_the_data(store):
    class Step(nn.Module):
        def forward(self, x):
            return torch.where(x > 0.5, 1.0, 0.0 * x)

    data = torch.tensor([[0.1], [0.2], [2.0], [0.3], [3.0]])
    whole = over(Step(), data, store=store, batch_size=2)
    with pytest.warns(
        UserWarning, match=r"5 warnings of saliency; samples 0 to 1: .*sample\(s\) 0, 1 are zero"
    ) as told:
        found = whole.saliency(target=0, method="guided_ig", steps=4)
    assert len(told) == 1 and {span for span, _ in found.warnings} == {range(0, 2), range(2, 4), range(4, 5)}
    assert "5, see .warnings" in repr(found)


def test_relevance_its_layers_and_its_ledger(store):
    model, data = net(), pictures()
    found = over(model, data, store=store, batch_size=4).relevance(target=contrast(1, 2), layers="0", rules="epsilon")
    wanted = layerlens.relevance(model, data, target=contrast(1, 2), layers="0", rules="epsilon")
    same(found["values"].tensor(), wanted.tensor)
    same(found["layers/0"].tensor(), wanted.layers["0"][0])
    same(found["ledger/additive"].tensor(), wanted.ledger.additive)
    one = found.attribution(7)
    assert float(one.ledger.relative.max()) < 1e-5 and one.ledger.additive.dtype == torch.float64
    same(one.layers["0"][0], wanted.layers["0"][0][7:8])


def test_statistics_are_those_of_all_values_at_once(store):
    model, data = net(), pictures()
    found = over(model, data, store=store, batch_size=4, shard_size=8).statistics()
    record = layerlens.capture(model, data)
    assert found.layers == tuple(layer for layer in record if layer) and found.samples == 21
    for layer in found.layers:
        values = record[layer].double()
        units = values.movedim(1, 0).reshape(values.shape[1], -1)
        same(found.of("mean", layer), units.mean(dim=1))
        same(found.of("std", layer), units.std(dim=1, correction=0))
        same(found.of("low", layer), units.amin(dim=1))
        same(found.of("high", layer), units.amax(dim=1))
        same(found.of("zeros", layer), (units == 0).double().mean(dim=1))
    assert found.to_pandas().loc[("1", 0), "zeros"] == float(found.zeros["1"][0])
    assert found.profile().layers == found.layers and found.plot().fig.axes


def test_statistics_count_what_is_not_finite_apart():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(x.masked_fill(x < 0, -torch.inf))

    data = pictures().reshape(21, -1)
    found, kept = over(Masked(), data, batch_size=4).statistics("inner"), data.clamp_min(0)
    assert torch.equal(found.not_finite["inner"], (data < 0).double().sum(dim=0))
    same(found.mean["inner"], kept.double().sum(dim=0) / (data >= 0).sum(dim=0))
    assert bool((found.low["inner"] >= 0).all())


def test_units_of_dropout_between_tokens_are_features_and_mixed_units_are_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).eval()
    data = [torch.randn(length, 3) for length in (2, 5, 5, 1)]
    found, values = over(model, data, batch_size=2).statistics("1"), torch.cat([model(one) for one in data]).double()
    same(found.mean["1"], values.mean(dim=0))
    with pytest.raises(OptionError, match="layer '0' has 2 units for some samples and 5 for others"):
        over(nn.Sequential(nn.Identity()), [torch.ones(2), torch.ones(5)], on_error="record").statistics("0")


def test_random_models_draw_other_numbers_in_every_batch_and_the_same_when_resumed(tmp_path):
    class Sampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(x + torch.randn_like(x))

    def run(folder):
        return over(Sampled(), torch.zeros(8, 1), batch_size=2, shard_size=2, store=folder).capture("inner")["inner"]

    torch.manual_seed(5)
    before, first = torch.random.get_rng_state(), run(tmp_path / "a").tensor()
    assert len(first.unique()) == 8 and torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    (tmp_path / "a" / "shard-000002.safetensors").unlink()
    assert torch.equal(run(tmp_path / "a").tensor(), first)


def test_layers_whose_names_look_like_calls(store):
    model = nn.Sequential()
    for name in ("z #1", "values", "a"):
        model.add_module(name, nn.Linear(2, 2))
    found = over(model, torch.ones(3, 2), store=store).relevance(target=0, layers="*")
    assert set(found.attribution(1).layers) == {"z #1", "values", "a"}
    place = None if store is None else store.with_name("other")
    assert list(over(model, torch.ones(3, 2), store=place).capture()) == ["z #1", "values", "a"]


@pytest.mark.parametrize("by", ["activation", "relevance"])
def test_top_inputs_are_those_of_one_pass(by, store):
    model, data = net(), pictures()
    options = (
        {"by": by, "count": 3, "target": list(range(4)) * 5 + [0]} if by == "relevance" else {"by": by, "count": 3}
    )
    found = over(model, data, store=store, batch_size=4, shard_size=8).top_inputs("1", **options)
    wanted = layerlens.top_inputs(model, data, "1", **options)
    same(found.values, wanted.values)
    assert torch.equal(found.index, wanted.index) and torch.equal(found.places, wanted.places)
    assert torch.equal(found.regions, wanted.regions) and found.count == wanted.count == 21
    assert set(found.inputs) == set(wanted.inputs) and found.plot().fig.axes


def test_labels_and_lists_of_classes_belong_to_their_samples(store):
    model, data = net(), pictures()
    labels = [index % 4 for index in range(21)]
    wanted = layerlens.saliency(model, data, target=torch.tensor(labels), method="gradient").tensor
    lens = Lens(model, class_names=["a", "b", "c", "d"])
    pairs = list(zip(data, labels, strict=True))
    by_label = lens.over(pairs, store=store, batch_size=4, shard_size=8).saliency(target="label", method="gradient")
    same(by_label["values"].tensor(), wanted)
    by_list = lens.over(data, batch_size=4).saliency(target=labels, method="gradient")
    same(by_list["values"].tensor(), wanted)
    assert by_list.attribution(6).target_of(0) == "c" and by_label.attribution([6, 7]).targets == ("class 2", "class 3")
    with pytest.raises(TargetError, match="3 classes for 21 samples"):
        lens.over(data).saliency(target=[0, 1, 2], method="gradient")


def test_lists_of_classes_in_a_joined_target_belong_to_their_samples():
    model, data, labels = net(), pictures(), [2 * (index % 2) for index in range(21)]
    wanted = layerlens.saliency(model, data, target=contrast(labels, 1), method="gradient").score
    same(
        over(model, data, batch_size=4).saliency(target=contrast(labels, 1), method="gradient")["score"].tensor(),
        wanted,
    )
    with pytest.raises(TargetError, match="5 classes for 21 samples"):
        over(model, data).saliency(target=contrast(labels[:5], 1), method="gradient")
    mixed = 2 * as_target(labels) - as_target(None)  # the class of a list, and that which is predicted batch by batch
    wanted = layerlens.saliency(model, data, target=mixed, method="gradient").score
    same(over(model, data, batch_size=4).saliency(target=mixed, method="gradient")["score"].tensor(), wanted)


class Letters:
    """A tokenizer of one token per letter."""

    def __call__(self, texts, return_tensors, padding=False):
        return {"input_ids": torch.tensor([[ord(letter) - 97 for letter in text] for text in texts])}

    def convert_ids_to_tokens(self, ids):
        return [chr(97 + one) for one in ids]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(26, 4), nn.Linear(4, 26)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


def test_texts_keep_their_tokens_and_their_lengths(store):
    lens = Lens(Reader().eval(), tokenizer=Letters())
    data = ["abc", "de", "fgh", "xyz"]
    found = lens.over(data, store=store, batch_size=2).saliency(target=(-1, 3), method="input_x_gradient")
    for sample, text in enumerate(data):
        one, direct = found.attribution(sample), lens.saliency(text, target=(-1, 3), method="input_x_gradient")
        same(one.tensor, direct.tensor)
        assert one.tokens == direct.tokens == [list(text)]
    assert found.texts("tokens") == [list(text) for text in data]
    with pytest.raises(StoreError, match="differ in shape"):
        found.attribution([0, 1])


def test_numbers_on_disk_are_read_without_layerlens(tmp_path):
    model, data = net(), pictures()
    over(model, data, store=tmp_path / "run", batch_size=4, shard_size=8).capture("3")
    parts = [load_file(path) for path in sorted((tmp_path / "run").glob("shard-*.safetensors"))]
    np.testing.assert_allclose(
        np.concatenate([part["values/3"] for part in parts]), model(data).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    assert np.concatenate([part["ids"] for part in parts]).tolist() == list(range(21))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["model"]["sha256"] and manifest["versions"]["torch"] == torch.__version__


def test_views_for_other_tools(store):
    found = over(net(), pictures(), store=store, batch_size=4).saliency(target=1, method="gradient")
    table = found.to_pandas()
    assert table.index.tolist() == list(range(21)) and table["score"].tolist() == found["score"].tensor().tolist()
    assert found.to_xarray()["values"].sel(sample=4).shape == (1, 6, 6)
    assert found.numpy()["values"].shape == (21, 1, 6, 6)
    assert found.texts("target") == [found.attribution(0).target] * 21
    assert "21 of 21, complete" in repr(found) and "(21, 1, 6, 6)" in repr(found["values"])


def test_rows_of_several_shapes(store):
    data = [torch.randn(length, 3) for length in (2, 5, 5, 1)]
    model = nn.Sequential(nn.Linear(3, 2))
    found = over(model, data, store=store, batch_size=2).capture("0")
    assert found["0"].shape is None and len(found["0"]) == 4
    for place, one in enumerate(data):
        same(found["0"][place], model(one).detach())
        same(found["0"].of(place), model(one).detach())
    assert [tuple(row.shape) for row in found["0"]] == [(2, 2), (5, 2), (5, 2), (1, 2)]
    assert isinstance(found["0"][1:3], list)
    with pytest.raises(StoreError, match="differ in shape"):
        found["0"].tensor()


def test_layers_that_run_for_some_samples_only(store):
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x):
            return self.left(x) if float(x.sum()) > 0 else self.right(x)

    data = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0], [-2.0, 1.0]])
    found = over(Forked(), data, store=store, batch_size=1).capture(["left", "right"])
    assert found["left"].ids.tolist() == [0, 2] and found["right"].ids.tolist() == [1, 3]
    with pytest.raises(StoreError, match="sample 1 has no row in column 'left'"):
        found["left"].of(1)


def test_a_capture_of_nothing_is_told():
    class Quiet(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.used(x)

    with pytest.raises(OptionError, match="reduce returned float for layer 'used'"):
        over(Quiet(), torch.ones(5, 2), on_error="record").capture("used", reduce=lambda y: float(y.mean()))
    with pytest.raises(RecordError, match="no sample ran idle"):
        over(Quiet(), torch.ones(5, 2)).capture("idle")


def test_numbers_in_another_type(store):
    found = over(net(), pictures(), store=store).capture("3", dtype=torch.bfloat16)
    assert found["3"].dtype == torch.bfloat16 and found["3"].numpy().dtype == np.float32
    with pytest.raises(OptionError, match="floating-point type"):
        over(net(), pictures()).capture("3", dtype=torch.int8)


def test_bad_samples_are_noted_or_end_the_run(tmp_path):
    data = Broken(unreadable=(5,), nan=(9,))
    with pytest.raises(SampleError, match=r"sample 5 of the data: OSError: picture 5 is cut off.*on_error='record'"):
        over(net(), data, store=tmp_path / "a", batch_size=4, shard_size=4).capture("3")
    assert open_store(tmp_path / "a").ids.tolist() == [0, 1, 2, 3] and not open_store(tmp_path / "a").complete
    with pytest.warns(UserWarning, match="2 of 21 samples of the data are bad"):
        found = over(net(), data, store=tmp_path / "a", batch_size=4, shard_size=4, on_error="record").capture("3")
    assert set(found.errors) == {5, 9} and "cut off" in found.errors[5] and "NaN" in found.errors[9]
    good = [index for index in range(21) if index not in (5, 9)]
    assert found.ids.tolist() == good
    same(found["3"].tensor(), net()(pictures()[good]).detach())


def test_a_run_is_resumed_when_a_sample_was_mended(tmp_path):
    """Also one of those that identify the data."""
    with pytest.raises(SampleError, match="sample 10 of the data"):
        over(net(), Broken(unreadable=(10,)), store=tmp_path / "a", batch_size=4, shard_size=4).capture("3")
    assert open_store(tmp_path / "a").ids.tolist() == list(range(8))
    found = over(net(), Broken(), store=tmp_path / "a", batch_size=4, shard_size=4).capture("3")
    assert found.complete
    same(found["3"].tensor(), net()(pictures()).detach())
    with pytest.raises(StoreError, match="holds another run: data"):
        over(net(), Broken(nan=(0,)), store=tmp_path / "a", batch_size=4, shard_size=4).capture("3")


def test_samples_on_which_the_model_fails_are_found_one_by_one(store):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            if bool((x == 7).any()):
                raise RuntimeError("a seven")
            return self.inner(x)

    data = torch.arange(20.0).reshape(20, 1)
    with pytest.raises(SampleError, match=r"capture failed on samples 4 to 7 of the data: RuntimeError: a seven"):
        over(Picky(), data, store=store, batch_size=4).capture("inner")
    for analysis in ("capture", "statistics"):
        with pytest.warns(UserWarning, match="1 of 20 samples"):
            found = getattr(over(Picky(), data, batch_size=4, on_error="record"), analysis)("inner")
        values = found["inner"].tensor().flatten().tolist() if analysis == "capture" else None
        assert values is None or values == [float(index) for index in range(20) if index != 7]
        assert analysis == "capture" or found.samples == 19
    with pytest.raises(SampleError, match="all 3 samples of the data are bad"):
        over(Picky(), torch.full((3, 1), 7.0), on_error="record").capture("inner")


def test_what_is_wrong_for_all_samples_is_raised_in_any_case():
    model, data = net(), pictures()
    with pytest.raises(LayerNotFound, match="nowhere"):
        over(model, data, on_error="record").capture("nowhere")
    with pytest.raises(OptionError, match="unknown saliency method"):
        over(model, data, on_error="record").saliency(method="magic")
    with pytest.raises(OptionError, match="has no option 'stepz'"):
        over(model, data, on_error="record").saliency(method="integrated_gradients", stepz=3)
    with pytest.raises(OptionError, match="relevance of parameters"):
        over(model, data).relevance(parameters="*")


def test_the_model_and_the_data_are_borrowed(tmp_path):
    model, data = net().train(), pictures()
    before, kept = {name: value.clone() for name, value in model.state_dict().items()}, data.clone()
    flow = torch.random.get_rng_state()
    whole = over(model, data, store=tmp_path / "run", batch_size=4)
    whole.relevance(target=0, rules="epsilon")
    over(model, data, batch_size=4).statistics()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.training and torch.equal(data, kept) and torch.equal(torch.random.get_rng_state(), flow)
    assert not any(module._forward_hooks for module in model.modules())


def test_engines_and_options():
    assert "LocalEngine" in repr(over(net(), pictures(), engine="local"))
    assert isinstance(over(net(), pictures(), engine=LocalEngine()).engine, LocalEngine)
    with pytest.raises(OptionError, match=r"unknown engine 'rai'\. Closest: ray"):
        over(net(), pictures(), engine="rai")
    with pytest.raises(OptionError, match="engine must be one of"):
        over(net(), pictures(), engine=3)
    with pytest.raises(OptionError, match="a folder that all of them can reach"):
        over(net(), pictures(), engine="torchrun").capture("3")
    with pytest.raises(OptionError, match="actors must be"):
        RayEngine(actors=0)
    with pytest.raises(OptionError, match="batch_size"):
        over(net(), pictures(), batch_size=0)
    with pytest.raises(OptionError, match="on_error"):
        over(net(), pictures(), on_error="skip")
    with pytest.raises(OptionError, match="stream"):
        over(net(), iter(pictures())).top_inputs("1")


def test_an_offloaded_model_goes_on_in_the_store_of_the_one_in_place(tmp_path):
    import accelerate

    data = pictures()
    wanted = (
        over(net(), data, store=tmp_path / "run", batch_size=4, shard_size=8).relevance(target=1)["values"].tensor()
    )
    (tmp_path / "run" / "shard-000001.safetensors").unlink()
    away = net()
    accelerate.cpu_offload(away, execution_device="cpu")
    found = over(away, data, store=tmp_path / "run", batch_size=4, shard_size=8).relevance(target=1)
    assert torch.equal(found["values"].tensor(), wanted)
    assert all(parameter.is_meta for parameter in away.parameters())


def test_tensors_of_a_layer_by_name():
    model, _ = pair()
    data = torch.randn(7, 6, 3, dtype=torch.float64)
    over = Lens(model).over(data, batch_size=3)
    with torch.no_grad():
        _, (h, c) = model.rnn(data)
    captured = over.capture(["rnn/h_n"])
    assert list(captured) == ["rnn/h_n"]
    torch.testing.assert_close(torch.as_tensor(captured["rnn/h_n"][:]), h.movedim(1, 0))
    found = over.statistics("rnn")
    assert set(found.layers) == {"rnn/output", "rnn/h_n", "rnn/c_n"}
    torch.testing.assert_close(found.of("mean", "rnn/c_n"), c.mean(dim=(0, 1)))
    assert over.statistics(["rnn/h_n"]).layers == ("rnn/h_n",)
    assert over.top_inputs("rnn", target=0, count=2).layer == "rnn/h_n"
    with pytest.raises(SelectionError, match="matches 2 layers, one is needed"):
        over.top_inputs(["rnn", "fc"], target=0)
    stored = over.relevance(target=0, layers="rnn")
    assert "layers/rnn/h_n" in list(stored)


def test_rows_of_a_table_run_together_and_a_begun_store_keeps_its_batches(tmp_path):
    table, small = pictures(100).flatten(1), nn.Sequential(nn.Linear(36, 5), nn.ReLU())
    assert over(small, table).plan == Plan(100, 8 * 4096, 4096)
    assert over(nn.Linear(36, 30_000), table).plan.batch == over(net(), pictures()).plan.batch == 16
    first = over(small, table, store=tmp_path, batch_size=8, shard_size=40).capture("1")
    again = over(small, table, store=tmp_path).capture("1")
    assert again.manifest.plan == first.manifest.plan == Plan(100, 40, 8)
    assert torch.equal(first["1"].tensor(), again["1"].tensor())


def test_reading_hands_on_quick_items_together_and_an_error_in_its_place():
    def items():
        yield from range(100)
        raise OSError("cut off")

    got, lists = [], 0
    with pytest.raises(OSError, match="cut off"):
        for several in read_ahead(items()):
            got += several
            lists += 1
    assert got == list(range(100)) and lists < 100
