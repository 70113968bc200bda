"""Files that are written whole or not at all, and files that were made to harm."""

import io
import json
import os
import resource
import socket
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import layerlens.files
from layerlens import Lens, Record, capture, over, saliency
from layerlens.errors import InputError, LayerLensError, ResultFileError, WriteError
from layerlens.files import owner, remove_leftovers, whole
from layerlens.report.files import Preparation, read_inputs
from layerlens.results import LayerProfile, load


@pytest.fixture(scope="module")
def made():
    """Name of a file -> what writes it."""
    net, x = nn.Sequential(nn.Linear(40, 90), nn.ReLU(), nn.Linear(90, 3)), torch.randn(40, 40)
    result = saliency(net, x, target=1, method="gradient")

    def write(path):
        with whole(path) as file:
            file.write(b"x" * 5000)

    return {
        "r.npz": result.save,
        "r.safetensors": capture(net, x).save,
        "p.png": result.plot().save,
        "p.svg": result.plot().save,
        "plain": write,
        "store": lambda path: over(net, x, store=path, progress=False).capture(),
    }


def test_a_full_disk_is_an_error_of_ours_and_leaves_what_was_there(made, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, save in made.items():
        if name != "store":
            (tmp_path / name).write_bytes(b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(LayerLensError, match=r"cannot (write|be written|be made).*[Ff]ile too large") as error:
                save(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert name in str(error.value)
    assert {path.name for path in tmp_path.rglob("*")} - {"manifest.json"} == set(made)
    assert all((tmp_path / name).read_bytes() == b"old" for name in made if name != "store")


@pytest.mark.parametrize("kind", ["long", "zero", "surrogate", "below a file", "folder", "missing", "not writable"])
def test_a_place_that_cannot_be_is_an_error_of_ours(made, tmp_path, monkeypatch, kind):
    (tmp_path / "file").write_bytes(b"x")
    if kind == "not writable":
        refused = PermissionError(13, "Permission denied")
        monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(refused))
    for name, save in made.items():
        end = Path(name).suffix
        if (name == "store" and kind in ("folder", "missing")) or (name[:2] == "p." and kind != "long"):
            continue
        path = {
            "long": tmp_path / f"{'n' * 300}{end}",
            "zero": tmp_path / f"a\0b{end}",
            "surrogate": tmp_path / f"a\ud800b{end}",
            "below a file": tmp_path / "file" / name,
            "folder": tmp_path / f"folder{end}",
            "missing": tmp_path / "none" / name,
            "not writable": tmp_path / name,
        }[kind]
        if kind == "folder":
            path.mkdir()
        with pytest.raises(LayerLensError, match=r"cannot|below a file|is a file") as error:
            save(path)
        str(error.value).encode()
    assert not list(tmp_path.glob(".*"))


def test_names_as_long_as_the_file_system_takes_them(made, tmp_path):
    for name in ("r.npz", "r.safetensors", "p.svg", "store"):
        save, end = made[name], Path(name).suffix
        save(tmp_path / ("é" * ((255 - len(end)) // 2) + end))


def test_errors_of_the_block_are_those_of_the_block(tmp_path):
    with pytest.raises(ValueError, match="mine") as error, whole(tmp_path / "a"):
        raise ValueError("mine")
    assert not isinstance(error.value, WriteError) and not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"cannot write .*b: No space left on device"), whole(tmp_path / "b"):
        raise OSError(28, "No space left on device")


def test_leftovers_of_this_machine_only(tmp_path, monkeypatch):
    host = socket.gethostname()
    machine = owner().split(".")[0]
    dead, other = 999_999_999, "0" * len(machine)
    gone = [f".a.x-{machine}.{host}.{dead}.tmp", f".a.x.{host}.{dead}.tmp"]
    kept = [f".a.x-{other}.{host}.{dead}.tmp", f".a.x-{machine}.{host}.{os.getpid()}.tmp", f".a.elsewhere.{dead}.tmp"]
    for name in gone + kept:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    with whole(tmp_path / "a") as file:
        assert Path(file.name).name.endswith(f"-{owner()}.tmp")
    monkeypatch.setattr(socket, "gethostname", lambda: "a[1-9]b")
    (tmp_path / f".a.x.a[1-9]b.{dead}.tmp").touch()
    remove_leftovers(tmp_path)
    assert not (tmp_path / f".a.x.a[1-9]b.{dead}.tmp").exists()


def npy(shape, dtype="<f4", content=b"", by_column=False, version=b"\x01\x00"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': {by_column}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


def text(value, name="description", kind="layerlens-result/1"):
    content = value if isinstance(value, bytes) else json.dumps({"format": kind, "value": value}).encode()
    return {f"{name}.npy": npy((len(content),), "|u1", content)}


def profile(**changes):
    fields = {"quantity": "q", "layers": {"tuple": ["a"]}, "values": {"tensor": "array0", "dtype": "float32"},
              "units": "1", "signed": False, "method": "m", "settings": {"dict": []}}  # fmt: skip
    return {"class": "LayerProfile", "fields": {**fields, **changes}}


GOOD = {"array0.npy": npy((1,), content=b"\0" * 4)}
DEEP = b'{"format": "layerlens-result/1", "value": ' + b'{"list": [' * 50_000
TWICE = {"list": [{"tensor": "array0", "dtype": "float32"}] * 100_000}
HOSTILE = {
    "deep": text(DEEP),
    "deep and closed": text(DEEP + b"]}" * 50_000 + b"}"),
    "a shape of 10^15": {**text(profile()), "array0.npy": npy((10**15,))},
    "a shape of 10^18 and 0": {**text(profile()), "array0.npy": npy((10**18, 10**18))},
    "a shape below 0": {**text(profile()), "array0.npy": npy((-1,), content=b"\0" * 4)},
    "more than it says": {**text(profile()), "array0.npy": npy((1,), content=b"\0" * 400)},
    "objects": {**text(profile()), "array0.npy": npy((1,), "|O", b"\x80\x04N.")},
    "texts": {**text(profile()), "array0.npy": npy((1,), "<U1", b"\0" * 4)},
    "records": {**text(profile()), "array0.npy": npy((1,), [("a", "<f4")], b"\0" * 4)},
    "no numbers": {**text(profile()), "array0.npy": npy((10**9,), "|V0")},
    "a version that is not": {**text(profile()), "array0.npy": npy((1,), content=b"\0" * 4, version=b"\x09\x00")},
    "one tensor many times": {**text(TWICE), **GOOD},
    "a type that is not": {**text({"tensor": "array0", "dtype": "load"}), **GOOD},
    "a type 4 times as large": {**text({"tensor": "array0", "dtype": "complex128"}), **GOOD},
    "a class that is not": text({"class": "Path", "fields": {}}),
    "fields that are not": {**text(profile(path="x")), **GOOD},
    "no description": GOOD,
    "a description of numbers": text(b"7"),
    "a list": text([1]),
    "another format": text(1, kind="x" * 10**6),
}


def packed(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def refused(path, read=load):
    """Read a file that must be refused; return the message and the memory that it took, in MiB."""
    tracemalloc.start()
    try:
        with pytest.raises((ResultFileError, InputError)) as error:
            read(path)
        return str(error.value), tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_files_that_were_made_to_harm(tmp_path):
    load(packed(tmp_path / "good.npz", {**text(profile()), **GOOD}))
    for name, entries in HOSTILE.items():
        message, memory = refused(packed(tmp_path / "bad.npz", entries))
        assert name and "bad.npz" in message and len(message) < 600 and memory < 60, (name, message, memory)


def test_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(layerlens.files, "FREELY", 2**20)
    zeros = b"\0" * 2**26
    message, memory = refused(packed(tmp_path / "bomb.npz", {**text(profile()), "array0.npy": npy((2**24,)) + zeros}))
    assert "bytes hold 67," in message and memory < 2
    path = packed(tmp_path / "sizes.npz", {**text(profile()), **GOOD}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(struct.pack("<II", 132, 132), struct.pack("<II", 132, 2**31)))
    assert refused(path)[1] < 2
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("array0.npy", GOOD["array0.npy"])
    assert "two arrays of one name" in refused(path)[0]


def test_a_result_of_zeros_is_read_again_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("layerlens.results.files.FREELY", 2**16)
    monkeypatch.setattr(layerlens.files, "FREELY", 2**16)
    result = LayerProfile("norm", ("a",), torch.zeros(10**5), "1", False, "exact", {})
    assert torch.equal(load(result.save(tmp_path / "zeros")).values, result.values)


def test_inputs_that_were_made_to_harm(tmp_path):
    def read(path):
        return read_inputs([path], Preparation(), None)

    for number, content in enumerate(
        [npy((10**15,)), npy((-1,)), npy((1,), "|O", b"N."), npy((3,), content=b"\0" * 4)]
    ):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(content)
        message, memory = refused(path, read)
        assert path.name in message and memory < 60
    for name, entries in HOSTILE.items():
        if "array0.npy" in entries and entries["array0.npy"] != GOOD["array0.npy"] and name not in ("records", "texts"):
            assert "in.npz" in refused(packed(tmp_path / "in.npz", entries), read)[0]
    good = np.arange(12.0, dtype="f4").reshape(3, 4)
    for array in (good, np.asfortranarray(good)):
        np.save(tmp_path / "good.npy", array)
        ((inputs,), _) = read(tmp_path / "good.npy")
        assert torch.equal(inputs.args[0], torch.from_numpy(good))


def test_records_that_were_made_to_harm(tmp_path):
    from safetensors.torch import save_file

    path = Lens(nn.Linear(2, 2)).capture(torch.ones(1, 2)).save(tmp_path / "good")
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    known = json.loads(header["__metadata__"]["record"])
    deep = {"list": []}
    for _ in range(400):
        deep = {"list": [deep]}
    changes = [{"calls": 7}, {"calls": [7]}, {"types": 7}, {"types": {"0:0": "load"}}, {"types": {"0:0": "complex128"}},
               {"selected": 3}, {"aliases": [1]}, {"calls": [{**known["calls"][0], "shape of value": deep}] * 3},
               {"calls": [{**known["calls"][0], "axes": {"": [["a", "b"]]}}]}]  # fmt: skip
    for change in changes:
        about = {"format": "layerlens-record/1", "record": json.dumps(known | change)}
        save_file({"0:0": torch.ones(1, 2)}, tmp_path / "bad.safetensors", metadata=about)
        try:
            repr(Record.load(tmp_path / "bad.safetensors"))
        except ResultFileError as error:
            assert "bad.safetensors" in str(error)
    texts = [b"[" * 100_000, b"{" * 9, b'{"a":' * 50_000]
    texts += [json.dumps({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}).encode()]
    texts += [json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()]
    for content in texts:
        path.write_bytes(struct.pack("<Q", len(content)) + content + b"\0" * 4)
        assert refused(path, Record.load)[1] < 60
    path.write_bytes(struct.pack("<Q", 2**60) + good[8:])
    assert refused(path, Record.load)[1] < 60
    about = {"format": "layerlens-record/1", "record": "[" * 1_000_000}
    save_file({}, path, metadata=about)
    assert "nested too deeply" in refused(path, Record.load)[0]
    assert io.BytesIO(good).read(8) == struct.pack("<Q", length)
