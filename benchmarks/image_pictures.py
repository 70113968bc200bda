"""The pictures of the benchmark of image maps: photographs of installed packages and crops that keep the top class."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from layerlens.demo import efficientnet, embedded

Case = tuple[str, torch.nn.Module, torch.Tensor, int, torch.Tensor | None]
"""The picture it comes from, the model, its input (1, ...), the class, and where the object is, when known."""

CROPS = 3
"""Of each picture, beside the whole."""


def originals() -> dict[str, Image.Image]:
    """Photographs by name, of scikit-image, scikit-learn and matplotlib."""
    import matplotlib

    data = resources.files("skimage.data")
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
             "coins.png", "clock_motion.png", "brick.png", "gravel.png", "horse.png", "retina.jpg", "page.png",
             "moon.png")  # fmt: skip
    found = {name.split(".")[0]: Image.open(str(data / name)).convert("RGB") for name in names}
    sklearn = resources.files("sklearn.datasets.images")
    found |= {name: Image.open(str(sklearn / f"{name}.jpg")).convert("RGB") for name in ("china", "flower")}
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return found | {"grace_hopper": Image.open(hopper).convert("RGB")}


def wholes() -> Iterator[tuple[str, Case]]:
    """Each picture whose top class has a probability of .2 or more, by name."""
    model = load_model()
    for name, picture in originals().items():
        x = efficientnet.preprocess(picture)
        top, sure = _top(model, x)
        if sure >= 0.2:
            yield name, (name, model, x, top, None)


def photographs() -> Iterator[Case]:
    """Each of `wholes`, followed by crops of it that keep its class with a probability of .2 or more."""
    pictures = originals()
    for name, case in wholes():
        _, model, _, top, _ = case
        yield case
        generator = torch.Generator().manual_seed(list(pictures).index(name))
        kept = 0
        for _ in range(40):
            x = efficientnet.preprocess(_crop(pictures[name], generator))
            own, sure = _top(model, x)
            if own == top and sure >= 0.2:
                kept += 1
                yield name, model, x, top, None
            if kept == CROPS:
                break


@functools.cache
def load_model() -> torch.nn.Module:
    """EfficientNet-Lite0, one for all pictures."""
    return efficientnet.load_efficientnet()


def _top(model: torch.nn.Module, x: torch.Tensor) -> tuple[int, float]:
    with torch.no_grad():
        probability = model(x).softmax(dim=1)[0]
    return int(probability.argmax()), float(probability.max())


def _crop(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    draws: Any = torch.rand(3, generator=generator).tolist()
    side = int((0.5 + 0.4 * draws[0]) * min(picture.size))
    left, upper = int(draws[1] * (picture.width - side)), int(draws[2] * (picture.height - side))
    return picture.crop((left, upper, left + side, upper + side))


@functools.cache
def _digit_net() -> torch.nn.Module:
    return embedded.load_digit_net()


def digits() -> Iterator[Case]:
    """The embedded model's pictures with the ink of their digits."""
    images, labels, masks = embedded.sample_pictures()
    for row in range(len(images)):
        yield f"digit {row}", _digit_net(), images[row : row + 1], int(labels[row]), masks[row : row + 1]
