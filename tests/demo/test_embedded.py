import json
import os
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from layerlens.demo import embedded, train_digits
from layerlens.demo.embedded import CLASS_NAMES, DigitNet, load_digit_net, preprocess, sample_pictures
from layerlens.errors import InputError

DATA = resources.files("layerlens.demo") / "data"
RECORD = json.loads((DATA / embedded.RECORD).read_text())


@pytest.fixture(scope="module")
def held_out():
    return train_digits.split_digits(RECORD["seed"])[1]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def as_picture(image):
    return Image.fromarray((255 * image[0]).round().to(torch.uint8).numpy())


# -- what ships ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [embedded.WEIGHTS, embedded.PICTURES])
def test_the_files_are_small(name):
    assert len((DATA / name).read_bytes()) < 200_000


def test_the_record_tells_the_accuracy_and_how_it_came_about():
    assert set(RECORD) == {"test_accuracy", "n_test", "n_test_digits", "seed", "parameters", "torch"}
    assert 0.95 < RECORD["test_accuracy"] <= 1
    assert RECORD["n_test"] >= 1000
    assert RECORD["parameters"] == sum(p.numel() for p in DigitNet().parameters())
    assert 30_000 <= RECORD["parameters"] <= 45_000


def test_the_record_holds_on_new_scenes_of_held_out_digits(held_out):
    scenes = train_digits.make_scenes(held_out, range(len(held_out.labels)), seed=12345)
    assert train_digits.accuracy(load_digit_net(), scenes) > 0.95


def test_loading_gives_equal_bits_twice_in_evaluation_mode():
    first, second = load_digit_net(), load_digit_net()
    assert not any(module.training for module in first.modules())
    for (name, one), (_, other) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
        assert one.data_ptr() != other.data_ptr(), name  # a user may change one model without changing the other
        assert one.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name


@pytest.mark.parametrize(("change", "message"), [("drop", "Missing key"), ("add", "Unexpected key")])
def test_loading_is_strict(monkeypatch, change, message):
    weights = load((DATA / embedded.WEIGHTS).read_bytes())
    if change == "drop":
        del weights["head.bias"]
    else:
        weights["head.scale"] = torch.ones(1)
    monkeypatch.setattr(embedded, "_packaged", lambda name: save(weights))
    with pytest.raises(RuntimeError, match=message):
        load_digit_net()


def test_layers_have_clear_names_and_a_relu_is_called_twice():
    model, calls = load_digit_net(), []
    assert [name for name, _ in model.named_children()] == ["stem", "blocks", "pool", "head"]
    handle = model.blocks[1].relu.register_forward_hook(lambda *_: calls.append(1))
    model(sample_pictures()[0])
    handle.remove()
    assert len(calls) == 2
    assert all(module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU))


def test_sample_pictures_show_all_ten_digits_and_mask_them():
    images, labels, masks = sample_pictures()
    assert (images.shape, labels.shape, masks.shape) == ((16, 1, 48, 48), (16,), (16, 48, 48))
    assert (images.dtype, labels.dtype, masks.dtype) == (torch.float32, torch.int64, torch.bool)
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(labels.tolist()) == set(range(len(CLASS_NAMES)))
    assert ((masks.sum((1, 2)) >= 60) & (masks.sum((1, 2)) <= 600)).all()  # of 2304 pixels
    assert not torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]).any()  # not cut off
    inside = torch.stack([image[0][mask].mean() for image, mask in zip(images, masks, strict=True)])
    outside = torch.stack([image[0][~mask].mean() for image, mask in zip(images, masks, strict=True)])
    assert (inside > 3 * outside).all()


def test_the_model_names_the_sample_pictures():
    images, labels, _ = sample_pictures()
    with torch.no_grad():
        assert (load_digit_net()(images).argmax(1) == labels).sum() >= 14


def test_the_model_looks_at_the_digit():
    images, labels, masks = sample_pictures()
    scores = load_digit_net()(images.requires_grad_()).gather(1, labels[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    relevance = (gradient * images).detach()[:, 0].abs()  # (16, 48, 48)
    share = (relevance * masks).sum((1, 2)) / relevance.sum((1, 2))
    area = masks.float().mean((1, 2))
    assert (share > 3 * area).all()
    assert share.mean() > 0.6


def test_the_model_does_not_know_a_picture_whose_digit_is_erased():
    images, labels, masks = sample_pictures()
    with torch.no_grad():
        probability = load_digit_net()(images.masked_fill(masks[:, None], 0.05)).softmax(1).gather(1, labels[:, None])
    assert probability.mean() < 0.3


# -- a picture of the user -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(48, 48), (31, 200), (640, 480)])
def test_preprocess_gives_the_input_of_the_model(mode, size):
    pixels = np.random.default_rng(0).integers(0, 100, (size[1], size[0]), dtype=np.uint8)
    pixels[: size[1] // 4] = 250
    tensor = preprocess(Image.fromarray(pixels).convert(mode))
    assert (tensor.shape, tensor.dtype) == ((1, 1, 48, 48), torch.float32)
    assert 0 <= tensor.min() < tensor.max() <= 1


def test_preprocess_keeps_a_picture_that_fits():
    images, _, _ = sample_pictures()
    assert torch.equal(preprocess(as_picture(images[3])), images[3:4])


def test_preprocess_inverts_ink_on_paper_and_only_that():
    images, labels, _ = sample_pictures()
    paper = torch.cat([preprocess(as_picture(1 - image)) for image in images])
    torch.testing.assert_close(paper, images, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert (load_digit_net()(paper).argmax(1) == labels).sum() >= 14
    half = np.full((48, 48), 127, dtype=np.uint8)  # mean just below 0.5: stays
    half[0, 0] = 0
    assert preprocess(Image.fromarray(half))[0, 0, 0, 0] == 0
    half[:] = 128  # just above: inverted
    half[0, 0] = 200
    assert preprocess(Image.fromarray(half))[0, 0, 0, 0] == np.float32(55) / np.float32(255)


def test_preprocess_pads_instead_of_cutting_or_stretching():
    wide = Image.new("L", (192, 96), 0)
    wide.paste(200, (0, 0, 40, 96))
    tensor = preprocess(wide)[0, 0]
    assert (tensor[:12] == 0).all()
    assert (tensor[36:] == 0).all()
    assert (tensor[14:34, :9] > 0.75).all()
    assert (tensor[:, 12:] == 0).all()


def test_preprocess_takes_transparent_pixels_for_paper():
    drawing = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (20, 10, 28, 38))
    tensor = preprocess(drawing)[0, 0]
    assert tensor[24, 24] == 1
    assert tensor[0, 0] == 0


def test_preprocess_applies_the_rotation_of_the_camera():
    picture = Image.new("L", (48, 48), 0)
    picture.paste(255, (0, 0, 48, 10))  # a bar at the top, to be seen after half a turn
    picture.getexif()[0x0112] = 3
    tensor = preprocess(picture)[0, 0]
    assert tensor[-1].eq(1).all()
    assert tensor[0].eq(0).all()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("L", (48, 48), 255), "single brightness 255 of 255 .size 48 x 48. shows no digit"),
        (Image.new("RGBA", (10, 20), (255, 255, 255, 0)), "size 10 x 20.*Transparent pixels count as white"),
        (Image.new("I;16", (48, 48)), "mode 'I;16' has no fixed range.*Image.fromarray"),
        (Image.new("F", (48, 48)), "mode 'F' has no fixed range"),
    ],
)
def test_preprocess_refuses_what_it_cannot_read(picture, message):
    with pytest.raises(InputError, match=message):
        preprocess(picture)


# -- the training script ---------------------------------------------------------------------------------------------


def test_training_and_test_digits_share_no_picture(held_out):
    learn, again = train_digits.split_digits(RECORD["seed"])
    assert np.array_equal(again.images, held_out.images)
    assert {image.tobytes() for image in learn.images}.isdisjoint(image.tobytes() for image in held_out.images)
    assert (len(learn.labels), len(held_out.labels)) == (1438, 359)
    assert RECORD["n_test_digits"] == len(held_out.labels)


def test_scenes_are_deterministic_for_a_seed(held_out):
    first, second, other = (train_digits.make_scenes(held_out, range(40), seed=seed) for seed in (7, 7, 8))
    for name, one, two in zip(first._fields, first, second, strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.images, other.images)
    assert torch.equal(first.labels, other.labels)  # the sources fix the labels, the seed does not
    assert (first.masks.sum((1, 2)) > 40).all()


def test_training_writes_files_that_load(tmp_path, capsys, monkeypatch, one_thread):
    state = torch.get_rng_state()
    train_digits.main(["--epochs", "2", "--scenes", "192", "--out", str(tmp_path)])
    assert torch.equal(torch.get_rng_state(), state)
    assert "epoch  2/2  loss" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {embedded.WEIGHTS, embedded.PICTURES, embedded.RECORD}
    assert set(json.loads((tmp_path / embedded.RECORD).read_text())) == set(RECORD)
    monkeypatch.setattr(embedded, "_packaged", lambda name: (tmp_path / name).read_bytes())
    assert load_digit_net()(sample_pictures()[0]).shape == (16, 10)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    train_digits.write(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        train_digits.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
