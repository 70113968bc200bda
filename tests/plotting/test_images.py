import numpy as np
import pytest
import torch

from layerlens.errors import PlotError
from layerlens.plotting.drawing import images


def photo():
    return np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "form",
    [
        lambda p: p,
        lambda p: p.transpose(2, 0, 1),
        lambda p: p / 255,
        lambda p: p.astype(np.float32),
        lambda p: torch.tensor(p.transpose(2, 0, 1) / 255, requires_grad=True),
        lambda p: torch.tensor(p)[None],
        lambda p: np.concatenate([p, np.full((9, 12, 1), 255, np.uint8)], axis=2),
    ],
    ids=["HWC", "CHW", "0..1", "0..255 float", "gradients", "batch of 1", "RGBA"],
)
def test_every_form_of_a_picture_is_read_alike(form):
    np.testing.assert_allclose(images.picture(form(photo())), photo() / 255, atol=1e-6)


def test_gray_pictures_lose_their_channel():
    assert images.picture(np.ones((1, 9, 12))).shape == (9, 12)
    assert images.picture(np.ones((9, 12, 1))).shape == (9, 12)


def test_a_standardized_picture_is_stretched():
    shown = images.picture(torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0)))
    assert shown.min() == 0 and shown.max() == 1


def test_reading_does_not_change_what_is_read():
    given = torch.ones(4)
    images.finite_array(given, "x")[0] = 7
    assert given[0] == 1


@pytest.mark.parametrize(
    "image, expected",
    [
        (np.ones((3, 9, 3)), r"the picture has shape \(3, 9, 3\): channels could come first or last"),
        (np.ones(5), r"has shape \(5,\); one picture is \(height, width\)"),
        (np.full((9, 9), np.nan), "holds NaN or infinity at 81 of 81 places.*nan_to_num"),
        (np.ones((9, 9), dtype=complex), "holds no real numbers"),
        (np.ones((0, 9)), "is empty"),
        ([[1, 2]], "is a list; give a tensor or a numpy array"),
    ],
    ids=["ambiguous", "vector", "NaN", "complex", "empty", "list"],
)
def test_what_is_no_picture_is_refused(image, expected):
    with pytest.raises(PlotError, match=expected):
        images.picture(image)


def test_the_underlay_is_middle_gray():
    shown = images.gray(images.picture(photo()))
    assert shown.min() >= 0.42 and shown.max() <= 0.88 and shown.shape == (9, 12)
