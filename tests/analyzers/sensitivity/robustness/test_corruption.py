"""Corruptions against what they are by definition, and curves against runs by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from layerlens import errors
from layerlens.analyzers.sensitivity import corruption_curve
from layerlens.analyzers.sensitivity.robustness.corruptions import CORRUPTIONS, corrupted
from tests.cases import CASES, double, normal

IMAGES = [name for name, kind in CORRUPTIONS.items() if kind.image]
OTHERS = [name for name, kind in CORRUPTIONS.items() if not kind.image]


def picture(seed=7, side=64):
    """Smooth, as pictures are."""
    coarse = normal(1, 3, 8, 8, seed=seed).double().sigmoid()
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear")[0]


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_severity_rises_from_nothing_and_the_seed_rules(name):
    kind, image = CORRUPTIONS[name], picture()
    changes = []
    for severity in (0, 0.5, 1, 2, 3, 4, 5):
        one, again = (corrupted(image, kind, severity, 0, 1, seed=3) for _ in range(2))
        assert torch.equal(one, again)
        changes.append(float((one - image).norm()))
    assert changes[0] == 0
    assert min(changes[1:]) > 0 and changes[-1] == max(changes)
    if name != "pixelate":  # blocks of half a pixel more or less fit a picture by chance
        assert changes == sorted(changes)
    other = corrupted(image, kind, 3, 0, 1, seed=4)
    assert torch.equal(other, corrupted(image, kind, 3, 0, 1, seed=3)) is not kind.random
    if kind.image:
        assert 0 <= float(other.min()) <= float(other.max()) <= 1


@pytest.mark.parametrize("name", IMAGES)
def test_the_range_makes_no_difference(name):
    kind, image = CORRUPTIONS[name], picture()
    plain = corrupted(image, kind, 3, 0, 1, seed=3)
    wide = corrupted(image * 255 - 100, kind, 3, -100, 155, seed=3)
    torch.testing.assert_close((wide + 100) / 255, plain, rtol=1e-9, atol=1e-9)


def test_noise_has_the_moments_of_its_definition():
    flat = torch.full((3, 200, 200), 0.5).double()

    def of(name, severity):
        return corrupted(flat, CORRUPTIONS[name], severity, 0, 1, seed=1)

    assert float(of("gaussian_noise", 1).std()) == pytest.approx(0.08, rel=0.02)
    assert float(of("gaussian_noise", 1.5).std()) == pytest.approx(0.1, rel=0.02)
    shot = of("shot_noise", 2)
    assert float(shot.mean()) == pytest.approx(0.5, rel=0.01)
    assert float(shot.std()) == pytest.approx((0.5 / 25) ** 0.5, rel=0.02)
    assert float((of("impulse_noise", 5) != 0.5).double().mean()) == pytest.approx(0.27, rel=0.03)
    assert float(of("speckle_noise", 1).std()) == pytest.approx(0.5 * 0.15, rel=0.02)
    assert float((of("masking", 5) == 0).double().mean()) == pytest.approx(0.5, rel=0.03)
    assert float((of("occlusion", 5) == 0.5).double().mean()) == 1
    hidden = (corrupted(flat + 0.1, CORRUPTIONS["occlusion"], 5, 0, 1, seed=1) == 0.5).double().mean()
    assert float(hidden) == pytest.approx(0.4, abs=0.01)
    assert float((of("noise", 5) - 0.5).std()) == pytest.approx(0.5, rel=0.02)
    gains = torch.stack([corrupted(flat[:, :1, :1], CORRUPTIONS["scaling"], 5, 0, 1, seed=k)[0, 0, 0] / 0.5
                         for k in range(300)])  # fmt: skip
    assert float(gains.log().std()) == pytest.approx(1, rel=0.15)


def test_blur_is_a_convolution_with_a_gaussian():
    point = torch.zeros(1, 65, 65).double()
    point[0, 32, 32] = 1
    blurred = corrupted(point, CORRUPTIONS["gaussian_blur"], 5, 0, 1, seed=0)
    width = 6 * 65 / 224
    places = torch.arange(65).double() - 32
    line = torch.exp(-places.square() / (2 * width**2)) * (places.abs() <= math.ceil(3 * width))
    torch.testing.assert_close(blurred[0], torch.outer(line, line) / line.sum() ** 2)


def test_contrast_brightness_and_pixels_are_their_definitions():
    image = picture(side=8)
    mean = image.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(corrupted(image, CORRUPTIONS["contrast"], 4, 0, 1, 0), mean + 0.1 * (image - mean))
    torch.testing.assert_close(corrupted(image, CORRUPTIONS["brightness"], 2, 0, 1, 0), (image + 0.2).clamp(0, 1))
    blocks = image.reshape(3, 2, 4, 2, 4).mean(dim=(2, 4))
    grown = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(corrupted(image, CORRUPTIONS["pixelate"], 5, 0, 1, 0), grown)


def test_a_curve_is_what_runs_by_hand_give():
    case = CASES["cnn"]
    model, x = case.build().double(), torch.cat([case.example()] * 3).double().sigmoid()
    x = (x + 0.1 * normal(*x.shape, seed=5).double()).clamp(0, 1)
    with torch.no_grad():
        labels = model(x).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4
    curve = corruption_curve(model, x, labels, severities=(0, 2, 5), draws=3)
    assert curve.series == tuple(IMAGES) and curve.settings["bounds"] == (0.0, 1.0)
    assert curve.values[:, 0].tolist() == [pytest.approx(5 / 6)] * len(IMAGES)
    for row, name in enumerate(IMAGES):
        kind = CORRUPTIONS[name]
        shares, answers = [], []
        for draw in range(3):
            changed = torch.stack([corrupted(one, kind, 5, 0, 1, seed=104729 * (draw + 1)) for one in x])
            with torch.no_grad():
                answers.append(model(changed).argmax(dim=1))
            shares.append((answers[-1] == labels).double().mean())
        shares = torch.stack(shares)
        assert float(curve.values[row, 2]) == pytest.approx(float(shares.mean()))
        assert float(curve.error[row, 2]) == pytest.approx(float(shares.std() / 3**0.5))
        pairs = (torch.cat(answers).unsqueeze(1) == labels).double().mean()
        assert float(curve.null[row, 2]) == pytest.approx(float(pairs))


@pytest.mark.parametrize("name", ["cnn", "lstm", "hf_bert", "two_inputs"])
def test_a_batch_is_its_samples(name):
    case = CASES[name]
    model, x = case.build().double(), double(case.example())
    limits = (-5, 5) if name == "cnn" else None
    options = {"severities": (1, 4), "draws": 2, "bounds": limits, "target": 1}
    together = corruption_curve(model, x, **options)
    pieces = corruption_curve(model, x, batch_size=1, **options)
    torch.testing.assert_close(together.checks["per sample"], pieces.checks["per sample"])
    assert together.null is None and together.quantity == "score"
    assert together.series == tuple(IMAGES if name == "cnn" else OTHERS)


def test_of_several_inputs_each_gets_what_fits_it():
    class Both(nn.Module):
        def forward(self, image, row):
            return torch.stack([image.square().mean(dim=(1, 2, 3)), row.square().sum(dim=1)], dim=1)

    x = {"image": normal(2, 3, 16, 16).sigmoid(), "row": normal(2, 4)}
    image = corruption_curve(Both(), x, target=0, severities=(0, 5), draws=2)
    row = corruption_curve(Both(), x, target=1, severities=(0, 5), draws=2)
    assert image.series == tuple(CORRUPTIONS)
    for name in CORRUPTIONS:
        moved = [bool(curve.of(name)[0] != curve.of(name)[1]) for curve in (image, row)]
        assert moved == [name in IMAGES, name in OTHERS]


def test_a_data_set_is_read_batch_by_batch_and_severity_zero_is_the_model():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), normal(9, 6)
    labels = torch.arange(9) % 3
    whole = corruption_curve(net, x, labels)
    streamed = corruption_curve(net, TensorDataset(x, labels), batch_size=4)
    torch.testing.assert_close(whole.values, streamed.values)
    torch.testing.assert_close(whole.null, streamed.null)
    with torch.no_grad():
        right = float((net(x).argmax(dim=1) == labels).double().mean())
    assert whole.values[:, 0].tolist() == [pytest.approx(right)] * 3
    assert bool((whole.error[:, 0] == 0).all())
    assert "severities" in whole.explain().lower()


def test_bad_options_are_named_and_guesses_are_told():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    with pytest.warns(UserWarning, match=r"images have values from -.* which is not a usual range"):
        corruption_curve(model, x, corruptions="contrast", severities=(1,))
    with pytest.raises(errors.InputError, match="outside 0 to 1; give bounds"):
        corruption_curve(model, x, bounds=(0, 1))
    with pytest.raises(errors.OptionError, match=r"'masking' is for inputs other than images; the input is 0 \(2, 3"):
        corruption_curve(model, x, corruptions="masking", bounds=(-5, 5))
    with pytest.raises(errors.OptionError, match="unknown corruption 'fog'"):
        corruption_curve(model, x, corruptions="fog")
    with pytest.raises(errors.OptionError, match="severities go from 0 to 5, got 6"):
        corruption_curve(model, x, severities=(1, 6))
    with pytest.warns(UserWarning, match="one draw gives no standard error"):
        assert corruption_curve(model, x, bounds=(-5, 5), draws=1, severities=(1,)).error is None
