"""The benchmark of image maps: its list of photographs, its fills and numbers, and the masks that its rows share."""

import struct

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import image_report
from benchmarks.image_curves import FILLS, POINTS, ROAD, SHARES, Curves, around, gains
from benchmarks.image_masks import Masked
from benchmarks.image_pictures import jobs, picture_of, tuning
from benchmarks.image_readers import TextRegion, face_detector, text_detector
from benchmarks.image_words import FACES, face, words
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


def test_words_and_faces_are_many_and_named_once():
    found = words()
    assert len({one.name for one in found}) == len({(one.picture, one.box) for one in found}) == len(found) == 36
    assert {one.picture.package for one in found} <= set(PACKAGES)
    assert {picture_of("reader", one.name) for one in found} == {one.picture.name for one in found}
    assert len({one.picture for one in found}) == 20
    assert [len(list(jobs(network))) for network in ("reader", "text", "faces")] == [36, 19, FACES]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["reader", "text"])
def test_words_of_installed_packages_are_read_and_found(network):
    from layerlens import relevance

    chosen = [one for one in jobs(network) if one.picture.picture.package == "scikit-image"]
    assert chosen
    for one in chosen:
        model, x, target = one.case()  # raises where another text is read, or none is found
        curves = Curves(model, x, target)
        assert curves.ends[0] > 0.5 and (curves.ends[1:] < 0.2).all()
        found = relevance(model, x, target=target, rules="epsilon_plus")
        assert float(found.ledger.relative.max()) < 1e-5
        forth, back = (gains(curves(values), curves.ends)["gain"] for values in (found.tensor, -found.tensor))
        assert forth > back + 0.1


@pytest.mark.slow
def test_the_face_detector_separates_faces_from_what_is_behind_them():
    import skimage.data

    shown = [face(number)[1] for number in range(len(skimage.data.lfw_subset()))]
    with torch.inference_mode():
        found = face_detector()(torch.cat(shown)).softmax(dim=1)[:, 1]
    assert found[:FACES].min() > 0.95 and found[FACES:].max() < 0.5


@pytest.mark.slow
def test_the_text_detector_finds_what_is_drawn():
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (128, 64), 255)
    ImageDraw.Draw(picture).text((12, 20), "lens", 0, font=ImageFont.load_default(size=24))
    x = (torch.from_numpy(np.array(picture)).float() / 255 - 0.45) / 0.225
    with torch.inference_mode():
        found = text_detector()(x.expand(1, 3, -1, -1))[0, 0]
    left, right = found[:, :32], found[:, 40:]
    assert left.max() > 0.8 and right.max() < 0.1


def test_a_model_may_have_probabilities_of_its_own():
    class Half(nn.Module):
        def forward(self, pictures):
            return pictures.mean(dim=1, keepdim=True) / 2

    model, x = TextRegion(Half(), torch.eye(8)[None, None] > 0).eval(), torch.rand(1, 3, 8, 8) + 0.1
    expected = x.mean(dim=1)[0].diagonal().mean() / 2
    assert float(Curves(model, x, 0).ends[0]) == pytest.approx(float(expected), abs=1e-6)
    known = (expected.double(), expected.double().log())
    assert torch.allclose(Masked(model, x, 0).of(x), torch.stack(known)[None], atol=1e-6)


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


def test_words_of_a_picture_count_as_one(tmp_path, monkeypatch, capsys):
    cases = [f"reader-picture{number}-{word}" for number in range(15) for word in range(1 + number % 3)]
    curves = np.random.default_rng(0).random((len(cases), 1, POINTS)).astype(np.float16)
    stored = {"cases": np.array(cases), "methods": np.array(["relevance z+"]), "curves": curves}
    ones = {"cost": np.ones((len(cases), 1, 2), dtype=np.float32), "ends": np.ones((len(cases), 3), dtype=np.float32)}
    np.savez(tmp_path / "stored.npz", **stored, **ones)
    monkeypatch.setattr(image_report, "STORED", tmp_path / "stored.npz")
    found = image_report.stored("reader")["rows"]["relevance z+"]["gain"]
    each = gains(torch.from_numpy(curves[:, 0]).double(), torch.ones(len(cases), 3, dtype=torch.float64))["gain"]
    assert len(found) == 15 and found[1] == pytest.approx(float(each[1:3].mean()))
    image_report.table("reader")
    printed = capsys.readouterr().out
    assert "30 words in 15 pictures" in printed and printed.rstrip().endswith("| 15 |")


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
