"""Stores whose files were changed, exchanged or made to harm: each is found, and named."""

import dataclasses
import json
import random
import resource
import shutil

import pytest
import torch

from layerlens import open_store, over
from layerlens.errors import OptionError, StoreError
from layerlens.scale.store import manifest as manifests
from layerlens.scale.store.plan import Plan
from layerlens.scale.store.shard_files import file_name

from .helpers import net, pictures


def make(path, **options):
    return over(net(), pictures(), store=path, batch_size=4, shard_size=4, **options).capture("3")


def test_every_flipped_bit_is_found(tmp_path):
    make(tmp_path)
    path = tmp_path / file_name(2)
    good = path.read_bytes()
    header = int.from_bytes(good[:8], "little") + 8
    draw = random.Random(0)
    bits = [draw.randrange(8 * header) for _ in range(150)] + [draw.randrange(8 * len(good)) for _ in range(100)]
    missed = []
    for bit in [*range(64), *bits]:
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            open_store(tmp_path).verify()
            missed.append(bit)
        except StoreError as error:
            assert path.name in str(error)
    assert not missed
    path.write_bytes(good)
    manifest = tmp_path / "manifest.json"
    good = manifest.read_bytes()
    for bit in [draw.randrange(8 * len(good)) for _ in range(100)]:
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(content)
        try:
            assert open_store(tmp_path).manifest.text().encode() == good  # a flipped space
        except StoreError as error:
            assert "manifest.json" in str(error)


def ways(path):
    """Call everything that must notice a wrong shard."""
    with pytest.raises(StoreError) as opened:
        open_store(path)
    with pytest.raises(StoreError) as again:
        make(path)
    assert str(opened.value) == str(again.value)
    return str(opened.value)


def test_shards_belong_to_their_place_and_run(tmp_path):
    found = make(tmp_path / "run")
    make(tmp_path / "other")
    path, good = tmp_path / "run" / file_name(2), (tmp_path / "run" / file_name(2)).read_bytes()
    shutil.copy(tmp_path / "run" / file_name(1), path)
    assert "shard-000002.safetensors holds shard 1. Remove the file" in ways(tmp_path / "run")
    with pytest.raises(StoreError, match="holds shard 1"):
        found.verify()
    shutil.copy(tmp_path / "other" / file_name(2), path)
    assert "holds a shard of another run" in ways(tmp_path / "run")
    path.write_bytes(good)
    shutil.copy(path, tmp_path / "run" / file_name(6))
    assert "shard-000006.safetensors is not of this run, which has 6 shards" in ways(tmp_path / "run")
    (tmp_path / "run" / file_name(6)).unlink()
    open_store(tmp_path / "run").verify()
    path.unlink()
    assert torch.equal(make(tmp_path / "run")["3"].tensor(), open_store(tmp_path / "other")["3"].tensor())


def signed(folder, **changes):
    """Write a manifest as somebody who means harm would, with the right checksum."""
    fields = json.loads((folder / manifests.NAME).read_text())
    del fields["format"], fields["sha256"]
    plan = changes.get("plan", {})
    fields |= {**changes, "plan": {**fields["plan"], **plan} if isinstance(plan, dict) else plan}
    return json.dumps({"format": manifests.FORMAT, "sha256": manifests._checksum(fields), **fields})


def test_hostile_manifests_get_an_error_in_bounded_memory(tmp_path):
    make(tmp_path)
    good = (tmp_path / manifests.NAME).read_text()
    bad = [signed(tmp_path, plan={"count": count}) for count in (10**18, -5, 2.5, "9", True, [1], {"a": 1})]
    bad += [signed(tmp_path, plan={"shard": shard}) for shard in (0, -1, 1.5, "4", None, [4])]
    fields = [field.name for field in dataclasses.fields(manifests.Manifest)]
    fits = {
        ("kind", str),
        ("version", str),
        ("settings", dict),
        ("model", dict),
        ("data", dict),
        ("version", type(None)),
    }
    for value in (7, None, ["a"], "text", {"a": [1]}):
        bad += [
            signed(tmp_path, **{name: value}) for name in fields if (name, type(value)) not in fits | {("plan", dict)}
        ]
    bad += [
        "",
        "[]",
        "null",
        "7",
        '"x"',
        "{}",
        "[" * 10**6,
        '{"format":' * 10**5,
        good[: len(good) // 2],
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in bad:
        (tmp_path / manifests.NAME).write_text(text)
        with pytest.raises(StoreError, match=r"manifest\.json|holds a shard of another run") as error:
            open_store(tmp_path)
        assert len(str(error.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    (tmp_path / manifests.NAME).write_text(good)
    (tmp_path / manifests.NAME).write_bytes(b" " * (manifests.MOST_BYTES + 1))
    with pytest.raises(StoreError, match="is larger than 67,108,864 bytes"):
        open_store(tmp_path)


def test_a_store_of_an_earlier_version_is_said(tmp_path):
    make(tmp_path)
    path = tmp_path / manifests.NAME
    path.write_text(path.read_text().replace("store/2", "store/1"))
    assert "has format 'layerlens-store/1'; this layerlens reads 'layerlens-store/2'" in ways(tmp_path)


def test_a_plan_with_too_many_shards_says_a_size_that_works():
    with pytest.raises(OptionError, match="more than 10,000,000 shards; give at least 100000"):
        Plan(10**12, 1)
    assert Plan(10**12, 100_000).shards == 10_000_000
