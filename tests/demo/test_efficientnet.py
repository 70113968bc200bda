"""The demo on the real network: it knows the photographs, and the books close."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from layerlens import Lens
from layerlens.demo import efficientnet
from layerlens.errors import InputError

EXPECTED = {"chelsea": 285, "coffee": 967, "camera": 872}
ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lens():
    return Lens(efficientnet.load_efficientnet(), class_names=efficientnet.class_names())


@pytest.mark.parametrize("name, index", EXPECTED.items())
def test_it_knows_the_photographs_and_the_ledger_closes(lens, name, index):
    x = efficientnet.preprocess(efficientnet.photographs()[name])
    assert int(lens.model(x).argmax()) == index
    for rules in ("epsilon", "attn"):
        relevance = lens.relevance(x, target=index, rules=rules)
        assert float(relevance.ledger.relative.max()) < 1e-5
        assert float(relevance.score[0]) == pytest.approx(float(lens.model(x).detach()[0, index]), rel=1e-5)


def test_class_names_are_distinct_and_found():
    names = efficientnet.class_names()
    assert len(set(names)) == len(names) == 1000
    assert (names[285], names[967]) == ("Egyptian cat", "espresso")


def test_grad_cam_lies_on_the_cup(lens):
    """Coffee: most of the map lies in the box around the cup, far more than the share of that box of the picture."""
    x = efficientnet.preprocess(efficientnet.photographs()["coffee"])
    cam = lens.grad_cam(x, target="espresso").tensor[0]
    assert cam.shape == (224, 224)
    inside = cam[10:160, 41:172].sum() / cam.sum()  # the cup in the picture of 600 x 400 that is cropped to its middle
    share = 150 * 131 / 224**2
    assert float(inside) > 0.5 and float(inside) > 1.5 * share


@pytest.mark.parametrize("mode, fill, expected", [
    ("L", 127, (0.0, 0.0, 0.0)),
    ("RGBA", (255, 0, 0, 0), (1.0, 1.0, 1.0)),  # transparent: white
    ("CMYK", (0, 0, 0, 255), (-127 / 128,) * 3),
    ("1", 1, (1.0, 1.0, 1.0)),
])  # fmt: skip
def test_pictures_of_other_modes(mode, fill, expected):
    x = efficientnet.preprocess(Image.new(mode, (31, 57), fill))
    assert x.shape == (1, 3, 224, 224)
    assert x[0, :, 100, 100].tolist() == pytest.approx(expected, abs=0.02)
    with pytest.raises(InputError, match="8-bit"):
        efficientnet.preprocess(Image.new("F", (4, 4)))


def test_the_whole_demo(tmp_path):
    """A process of its own, on a photograph from a file, with a class by name; then the pictures in the README."""
    efficientnet.photographs()["coffee"].save(tmp_path / "my coffee.png")
    command = [sys.executable, "-m", "layerlens", "demo", "--model", "efficientnet", "--out", str(tmp_path / "out")]
    own = [*command, "--image", str(tmp_path / "my coffee.png"), "--target", "espresso"]
    done = subprocess.run(own, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout and "conservation gap" in done.stdout
    assert (tmp_path / "out" / "my_coffee_png_relevance.pdf").exists()
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "my coffee.png: espresso" in page and "_blocks.15" in page

    wrong = subprocess.run([*command, "--target", "expresso"], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert wrong.returncode == 2
    assert "Closest: espresso" in wrong.stderr.strip().splitlines()[-1]
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("viewport", ["1200,2400", "400,2400"])
def test_a_browser_shows_the_page(tmp_path, viewport):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    from layerlens.__main__ import main

    assert main(["demo", "--model", "embedded", "--out", str(tmp_path / "out")]) == 0
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={viewport}"]
    shot = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={shot}", (tmp_path / "out" / "index.html").as_uri()], check=True,
                   capture_output=True, timeout=120)  # fmt: skip
    pixels = torch.from_numpy(np.asarray(Image.open(shot).convert("RGB")).copy()).float()
    coloured = (pixels.amax(dim=2) - pixels.amin(dim=2) > 40).float().mean()
    assert float(coloured) > 0.01  # the figures are shown: the page itself is black on white
