"""Runs that go on where they were, and stores that are damaged, foreign or of another run."""

import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from layerlens import Record, capture, contrast, open_store, over
from layerlens.errors import SampleError, StoreError
from layerlens.scale.store import shard_files
from layerlens.scale.store.manifest import read

from .helpers import Broken, net, pictures


def make(path, model=None, data=None, layer="3", **options):
    given = {"batch_size": 4, "shard_size": 4, **options}
    return over(net() if model is None else model, pictures() if data is None else data, store=path, **given).capture(
        layer
    )


def stamps(path):
    return {file.name: file.stat().st_mtime_ns for file in path.glob("shard-*")}


class Counted(Broken):
    """Pictures that note which of them were read."""

    def __init__(self):
        super().__init__()
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_a_run_goes_on_where_it_was(tmp_path):
    whole = make(tmp_path / "whole")
    with pytest.raises(SampleError, match="sample 14"):
        make(tmp_path / "run", data=Broken(unreadable=(14,)))
    first = stamps(tmp_path / "run")
    assert sorted(first) == [f"shard-{number:06d}.safetensors" for number in range(3)]
    data = Counted()
    found = make(tmp_path / "run", data=data)
    assert set(data.read) == {0, 10, 20, *range(12, 21)}  # three for the digest of the data, and what was missing
    again = stamps(tmp_path / "run")
    assert {name: again[name] for name in first} == first
    assert torch.equal(found["3"].tensor(), whole["3"].tensor()) and found.ids.tolist() == list(range(21))
    data.read.clear()
    make(tmp_path / "run", data=data)
    assert set(data.read) == {0, 10, 20} and stamps(tmp_path / "run") == again


def test_a_stream_goes_on_as_well(tmp_path):
    def flow(stop=None):
        for number, picture in enumerate(pictures()):
            if number == stop:
                raise OSError("the line is cut")
            yield picture

    whole = make(tmp_path / "whole")
    with pytest.raises(OSError, match="the line is cut"):
        make(tmp_path / "run", data=flow(stop=10))
    assert open_store(tmp_path / "run").ids.tolist() == list(range(8))
    found = make(tmp_path / "run", data=flow())
    assert torch.equal(found["3"].tensor(), whole["3"].tensor()) and found.complete
    assert found.manifest.plan.count == 21
    with pytest.raises(StoreError, match="has no samples"):
        over(net(), iter(())).capture("3")


def test_a_store_is_read_while_it_is_filled(tmp_path):
    seen = []

    class Curious(Broken):
        def __getitem__(self, index):
            if index == 17:
                store = open_store(tmp_path / "run")
                seen.append((len(store.ids), store.complete, store.missing))
            return super().__getitem__(index)

    over(net(), Curious(), store=tmp_path / "run", batch_size=2, shard_size=2).capture("3")
    (count, complete, missing), *_ = seen
    assert not complete and 0 < count <= 16 and 8 in missing
    assert open_store(tmp_path / "run").complete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "1"}, "settings, layers: .'3'. there, .'1'. now"),
        ({"data": pictures() + 1}, "data, digest"),
        ({"data": pictures()[:20]}, "data, samples: 21 there, 20 now"),
        ({"batch_size": 2}, "plan, batch: 4 there, 2 now"),
        ({"shard_size": 8}, "plan, shard: 4 there, 8 now"),
    ],
)
def test_another_run_is_not_mixed_in(tmp_path, change, message):
    make(tmp_path)
    with pytest.raises(StoreError, match=f"holds another run: .*{message}"):
        make(tmp_path, **change)


def test_other_weights_and_other_methods_are_told(tmp_path):
    make(tmp_path)
    other = net()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(StoreError, match="model, sha256"):
        make(tmp_path, model=other)
    with pytest.raises(StoreError, match="kind: 'capture' there, 'saliency' now"):
        over(net(), pictures(), store=tmp_path, batch_size=4, shard_size=4).saliency(method="gradient")


def test_functions_are_told_apart_by_what_they_do(tmp_path):
    def run(reduce):
        return over(net(), pictures(), store=tmp_path, batch_size=4).capture("0", reduce=reduce)

    run(lambda x: x.mean(dim=(2, 3)))
    assert run(lambda x: x.mean(dim=(2, 3)))["0"].shape == (21, 3)
    with pytest.raises(StoreError, match="settings, reduce"):
        run(lambda x: x.sum(dim=(2, 3)))


def scaled(factor):
    return lambda x: x * factor


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


@pytest.mark.parametrize(
    ("analysis", "one", "other", "message"),
    [
        ("capture", {"reduce": scaled(1.0)}, {"reduce": scaled(2.0)}, "reduce"),
        ("capture", {"reduce": Times(1.0)}, {"reduce": Times(2.0)}, "reduce"),
        ("capture", {"edits": {"0": partial(torch.mul, other=1)}}, {"edits": {"0": scaled(2.0)}}, "edits"),
        ("saliency", {"target": lambda y: y[:, 0]}, {"target": lambda y: y[:, 1]}, "target"),
        ("saliency", {"target": contrast([0, 1] * 10 + [0], 2)}, {"target": contrast([1, 0] * 10 + [0], 2)}, "target"),
        ("saliency", {"baseline": np.zeros((1, 6, 6), "f4")}, {"baseline": np.ones((1, 6, 6), "f4")}, "baseline"),
    ],
)  # fmt: skip
def test_options_are_told_apart_by_what_they_hold(tmp_path, analysis, one, other, message):
    def run(options):
        given = {"layers": "3", **options} if analysis == "capture" else {"method": "input_x_gradient", **options}
        if "baseline" in options:
            given |= {"method": "integrated_gradients", "steps": 2, "tolerance": float("inf")}
        return getattr(over(net(), pictures(), store=tmp_path, batch_size=21), analysis)(**given)

    assert run(one).complete and run(one).complete
    with pytest.raises(StoreError, match=f"settings, {message}"):
        run(other)


def test_other_calls_and_other_layers_with_the_same_weights_are_told(tmp_path):
    over(net(), pictures(), store=tmp_path / "a", forward=lambda model, x: model(x)).capture("3")
    with pytest.raises(StoreError, match="settings, forward"):
        over(net(), pictures(), store=tmp_path / "a", forward=lambda model, x: model(2 * x)).capture("3")
    make(tmp_path / "b")
    other = net()
    other[1] = torch.nn.Tanh()
    with pytest.raises(StoreError, match="model, modules"):
        make(tmp_path / "b", model=other)


def test_folders_that_are_no_stores(tmp_path):
    with pytest.raises(StoreError, match="there is no folder"):
        open_store(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"is not a store of layerlens: it has no manifest\.json"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"has 'notes\.txt' in it and is not a store"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(StoreError, match="is a file"):
        make(tmp_path / "notes.txt")
    (tmp_path / "manifest.json").write_text('{"format": "zarr/3"}')
    with pytest.raises(StoreError, match="has format 'zarr/3'"):
        open_store(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        open_store(tmp_path)


def test_damage_is_found_named_and_mended(tmp_path):
    whole = make(tmp_path)["3"].tensor()
    path = tmp_path / shard_files.file_name(2)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    store = open_store(tmp_path)
    with pytest.raises(StoreError, match=r"shard-000002.*are not those that were written"):
        store.verify()
    path.write_bytes(content[:40])
    with pytest.raises(StoreError, match=r"shard-000002.*is not a shard of layerlens, or is damaged"):
        open_store(tmp_path)["3"]
    path.unlink()
    with pytest.raises(StoreError, match=r"1 of its shards are missing \(2\)"):
        open_store(tmp_path)
    assert torch.equal(make(tmp_path)["3"].tensor(), whole)
    open_store(tmp_path).verify()
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(StoreError, match="is not a shard of layerlens"):
        open_store(tmp_path).verify()


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    import socket

    make(tmp_path)
    left = tmp_path / f".shard-000001.safetensors.{socket.gethostname()}.999999999.tmp"
    others = tmp_path / ".shard-000001.safetensors.elsewhere.1.tmp"
    for path in (left, others):
        path.write_bytes(b"half")
    make(tmp_path)
    assert not left.exists() and others.exists()


def test_a_writer_that_fails_ends_the_run_and_leaves_no_part(tmp_path, monkeypatch):
    from safetensors import torch as safe

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safe, "save_file", full)
    with pytest.raises(StoreError, match=r"shard-000000.safetensors cannot be written \(no space left.*are kept"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    monkeypatch.undo()
    assert make(tmp_path).complete


def test_ctrl_c_keeps_what_is_finished_and_the_model(tmp_path):
    class Stopped(Broken):
        def __getitem__(self, index):
            if index == 13:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    model = net()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, model=model, data=Stopped())
    assert open_store(tmp_path).ids.tolist() == list(range(12))
    assert not any(module._forward_hooks for module in model.modules())
    assert make(tmp_path, model=model, data=Broken()).complete


def test_a_manifest_says_how_the_numbers_were_made(tmp_path):
    over(net(), pictures(), store=tmp_path, batch_size=4).saliency(target=2, method="smooth_grad", samples=4, seed=3)
    found = read(tmp_path)
    assert found.settings["method"] == "smooth_grad" and found.settings["samples"] == 4 and found.settings["seed"] == 3
    assert found.model["parameters"] == sum(one.numel() for one in net().parameters())
    assert found.plan.count == 21 and found.complete and json.loads(found.text())["format"] == "layerlens-store/2"


def test_a_store_of_captures_holds_no_attributions(tmp_path):
    found = make(tmp_path)
    with pytest.raises(StoreError, match="of capture, not attributions"):
        found.attribution(0)
    with pytest.raises(StoreError, match="there is no column '33'"):
        found["33"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_anywhere_in_every_type(tmp_path, dtype):
    data = pictures().reshape(21, -1)
    found = over(torch.nn.Identity(), data, store=tmp_path / "a", batch_size=4, shard_size=4).capture("", dtype=dtype)
    places = [20, 0, 7, 7, 13, -1]
    (column,) = found.values()
    assert column.dtype == dtype and torch.equal(column[places], data.to(dtype)[places])
    assert torch.equal(column.tensor(), data.to(dtype)) and torch.equal(column[3:18], data.to(dtype)[3:18])
    row = column[5]
    row += 1  # what was read is the reader's own
    assert torch.equal(column[5], data.to(dtype)[5])
    found.verify()


ODD = "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 complex32 complex64 complex128".split()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_types_that_safetensors_may_not_have(tmp_path):
    for number, name in enumerate(ODD):
        data, path = (pictures().reshape(21, -1) * 3).to(getattr(torch, name)), tmp_path / name
        net = torch.nn.Sequential(torch.nn.Identity(), Ignores())
        data = data[: 21 - number]  # each at another place in the file
        found = over(net, data, store=path, batch_size=4, shard_size=8).capture("0")
        (column,) = open_store(path).values()
        found.verify()
        for index in (slice(None), slice(3, 9), [12, 0, 3], 5):
            listed = isinstance(index, list)  # torch 2.9 takes no list for uint16
            read, wanted = column[index], torch.stack([data[k] for k in index]) if listed else data[index]
            assert read.dtype == wanted.dtype and torch.equal(read.view(torch.uint8), wanted.view(torch.uint8)), name
        record = capture(net, data[:2], "0")
        kept = Record.load(record.save(tmp_path / f"{name}.safetensors"))["0"]
        assert kept.dtype == data.dtype and torch.equal(kept.view(torch.uint8), data[:2].view(torch.uint8)), name
        assert len(column.numpy()) == len(data)


class Ignores(torch.nn.Module):
    """Returns zeros."""

    def forward(self, x):
        return torch.zeros(len(x), 1)


def test_a_stream_that_grew_is_told(tmp_path):
    make(tmp_path, data=iter(pictures()[:10]))
    with pytest.raises(StoreError, match=r"shard 2 holds 2 of 4 samples: the stream ended there"):
        make(tmp_path, data=iter(pictures()))
    (tmp_path / shard_files.file_name(2)).unlink()
    assert make(tmp_path, data=iter(pictures())).ids.tolist() == list(range(21))


def test_noted_samples_end_a_later_run_that_takes_none(tmp_path):
    with pytest.warns(UserWarning, match="1 of 21 samples"):
        make(tmp_path, data=Broken(unreadable=(5,)), on_error="record")
    with pytest.raises(SampleError, match=r"notes 1 bad sample\(s\); sample 5: .*remove shard-000001.safetensors"):
        make(tmp_path, data=Broken())
    (tmp_path / shard_files.file_name(1)).unlink()
    assert make(tmp_path, data=Broken()).ids.tolist() == list(range(21))


def test_an_unreadable_sample_is_the_same_data_in_every_process(tmp_path):
    class Images(Broken):
        def __getitem__(self, index):
            if index == 0:
                raise OSError(f"cannot identify {object()}")
            return super().__getitem__(index)

    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 21 samples"):
            make(tmp_path, data=Images(), on_error="record")


def test_folders_are_found_from_everywhere_and_say_what_is_wrong(tmp_path, monkeypatch):
    class Moving(Broken):
        def __getitem__(self, index):
            if index == 9:
                os.chdir("/")
            return super().__getitem__(index)

    monkeypatch.chdir(tmp_path)
    found = make("here and \u00e9", data=Moving())
    assert found["3"].shape == (21, 4) and len(list((tmp_path / "here and \u00e9").glob("shard-*"))) == 6
    (tmp_path / "here and \u00e9").rename(tmp_path / "moved")
    assert open_store(tmp_path / "moved")["3"].shape == (21, 4)
    with pytest.raises(StoreError, match=r"manifest\.json is a file; a store is a folder"):
        open_store(tmp_path / "moved" / "manifest.json")
    with pytest.raises(StoreError, match="cannot be made or written to"):
        make(tmp_path / "moved" / "manifest.json" / "run")


def test_a_shard_that_goes_away_while_it_is_read_is_told(tmp_path):
    column = make(tmp_path)["3"]
    path = tmp_path / shard_files.file_name(1)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match="removed or changed while it was read"):
        column.tensor()
    path.unlink()
    with pytest.raises(StoreError, match=r"shard-000001.* was removed or changed"):
        column[5]
