"""The benchmark of image maps: its list of photographs, its fills and numbers, and the masks that its rows share."""

import struct

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import image_report
from benchmarks.image_curves import FILLS, POINTS, ROAD, SHARES, Curves, around, gains
from benchmarks.image_masks import Masked
from benchmarks.image_pictures import tuning
from benchmarks.picture_packages import PACKAGES, listed, resources
from layerlens import saliency
from layerlens.demo import efficientnet


@pytest.fixture
def net():
    """A classifier of two classes that looks at the upper left corner."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    nn.init.zeros_(model[2].weight)
    with torch.no_grad():
        model[2].weight[0, 0] = 4.0
    return model.eval()


@pytest.mark.skipif(not efficientnet.available(), reason="no demo extra")
def test_the_photographs_are_many_named_once_and_of_known_classes():
    pictures, names = listed(), efficientnet.class_names()
    assert len({one.name for one in pictures}) == len({one.file for one in pictures}) == len(pictures) == 122
    assert {one.package for one in pictures} == set(PACKAGES)
    assert all(names[one.target] == one.label for one in pictures)
    assert sum(tuning(one.name) for one in pictures) == 39


def test_files_of_a_qt_resource_are_read():
    name = "a.txt".encode("utf-16-be")
    names = struct.pack(">HI", 5, 0) + name
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", 0, 0, 0, 0)
    data = struct.pack(">I", 3) + b"abc"
    starts = 20, 20 + len(tree), 20 + len(tree) + len(data)
    blob = struct.pack(">4s4I", b"qres", 1, *starts) + tree + data + names
    assert dict(resources(blob)) == {"a.txt": b"abc"}
    with pytest.raises(ValueError, match="qres"):
        dict(resources(b"PK" + blob))


def test_a_map_of_the_place_that_counts_beats_its_opposite(net):
    x = torch.rand(1, 3, 16, 16) + 1
    right = torch.zeros(1, 16, 16)
    right[:, :8, :8] = 1
    curves = Curves(net, x, 0)
    found = [gains(curves(values), curves.ends) for values in (right, -right)]
    assert curves(right).shape == (POINTS,) == (2 * len(FILLS) * len(SHARES) + len(ROAD),)
    assert found[0]["ROAD"] < found[1]["ROAD"] + 1e-3 and found[0]["sufficiency"] <= found[1]["sufficiency"] + 1e-3
    flat = torch.zeros(POINTS)
    assert float(gains(flat, torch.zeros(3))["gain"]) == 0
    full = gains(torch.ones(POINTS), torch.tensor([1.0, 0.0, 0.0]))
    assert full["insertion mean"] == pytest.approx(1 - SHARES[0] / 2)  # it rises in the first share
    assert full["deletion mean"] == pytest.approx(1 - (1 - SHARES[-1]) / 2)


def test_what_is_gone_is_filled_from_its_neighbors():
    x = torch.rand(1, 3, 20, 20)
    gone = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    gone[..., 5:12, 3:9] = True
    filled = around(x, gone)
    kept = ~gone.expand_as(x)
    assert torch.allclose(filled[kept], x[kept])
    assert x.min() <= filled.min() and filled.max() <= x.max()
    assert torch.allclose(around(torch.full_like(x, 0.3), gone), torch.full_like(x, 0.3))


def test_shared_masks_are_those_of_rise(net):
    x = torch.rand(1, 3, 28, 28)
    shared = Masked(net, x, 0)
    first = shared(10).clone()
    values = shared.rise(40)
    assert torch.equal(shared.scores[:10], first) and shared.asked == 40
    known = saliency(net, x, target=0, method="rise", samples=40).tensor[:, 0].double()
    assert torch.allclose(values, known, atol=1e-6)


def test_a_table_is_made_of_stored_numbers(tmp_path, monkeypatch, capsys):
    methods = ["relevance z+", "grad_cam"]
    curves = np.random.default_rng(0).random((20, 2, POINTS)).astype(np.float16)
    curves[:3, 1] = np.nan  # not measured there
    np.savez(
        tmp_path / "stored.npz",
        cases=np.array([f"digits-digit-{number}" for number in range(20)]),
        methods=np.array(methods),
        curves=curves,
        cost=np.ones((20, 2, 2), dtype=np.float32),
        ends=np.ones((20, 3), dtype=np.float32),
    )
    monkeypatch.setattr(image_report, "STORED", tmp_path / "stored.npz")
    image_report.table("digits")
    lines = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert lines["relevance z+"].endswith("| 20 |") and lines["grad_cam"].endswith("| 17 |")
    image_report.table("lite1")
    assert capsys.readouterr().out == ""


def test_the_best_row_for_a_price_is_chosen_on_the_third_for_tuning(tmp_path, monkeypatch, capsys):
    methods = ["relevance z+", "cheap", "costly"]
    names = [f"name{number}" for number in range(60)]
    rows = np.zeros((60, 3, POINTS))
    count = len(SHARES)
    for case, name in enumerate(names):  # cheap is better than z+ on the tuning third alone
        rows[case, 1, :count] = 0.5 if tuning(name) else -0.5
        rows[case, 2, :count] = 0.9
    cost = np.ones((60, 3, 2), dtype=np.float32) * np.array([2, 3, 100])[:, None]
    stored = {"cases": np.array([f"lite0-{name}" for name in names]), "methods": np.array(methods)}
    np.savez(tmp_path / "stored.npz", **stored, curves=rows, cost=cost, ends=np.ones((60, 3), dtype=np.float32))
    monkeypatch.setattr(image_report, "STORED", tmp_path / "stored.npz")
    image_report.prices()
    lines = [line for line in capsys.readouterr().out.splitlines() if "EfficientNet" in line]
    assert [line.split(" | ")[2] for line in lines] == ["cheap", "cheap", "cheap", "costly", "costly"]
    assert " -0." in lines[0] and " +0." in lines[-1]
