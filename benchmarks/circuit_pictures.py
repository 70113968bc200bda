"""Photographs of installed packages, and crops of them that keep the class that EfficientNet-Lite0 gives the whole."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from layerlens.demo import efficientnet

Case = tuple[str, torch.Tensor, int]
"""The photograph it comes from, the input (1, 3, 224, 224), and the class."""
CROPS, SURE = 3, 0.2
"""Crops of each photograph, beside the whole, and the probability of its class from which a picture takes part."""


def originals() -> dict[str, Image.Image]:
    """Photographs by name, of scikit-image, scikit-learn and matplotlib."""
    import matplotlib

    data = resources.files("skimage.data")
    names = """astronaut.png camera.png chelsea.png coffee.png rocket.jpg motorcycle_left.png coins.png clock_motion.png
    brick.png gravel.png horse.png retina.jpg page.png moon.png""".split()
    found = {name.split(".")[0]: Image.open(str(data / name)).convert("RGB") for name in names}
    sklearn = resources.files("sklearn.datasets.images")
    found |= {name: Image.open(str(sklearn / f"{name}.jpg")).convert("RGB") for name in ("china", "flower")}
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return found | {"grace_hopper": Image.open(hopper).convert("RGB")}


def photographs(model: torch.nn.Module) -> Iterator[Case]:
    """Each photograph whose top class is sure, followed by crops that keep it."""
    for number, (name, picture) in enumerate(originals().items()):
        x = efficientnet.preprocess(picture)
        top, sure = _top(model, x)
        if sure < SURE:
            continue
        yield name, x, top
        generator, kept = torch.Generator().manual_seed(number), 0
        for _ in range(40):
            x = efficientnet.preprocess(_crop(picture, generator))
            own, sure = _top(model, x)
            if own == top and sure >= SURE:
                kept += 1
                yield name, x, top
            if kept == CROPS:
                break


def _top(model: torch.nn.Module, x: torch.Tensor) -> tuple[int, float]:
    with torch.no_grad():
        probability = model(x).softmax(dim=1)[0]
    return int(probability.argmax()), float(probability.max())


def _crop(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    draws: Any = torch.rand(3, generator=generator).tolist()
    side = int((0.5 + 0.4 * draws[0]) * min(picture.size))
    left, upper = int(draws[1] * (picture.width - side)), int(draws[2] * (picture.height - side))
    return picture.crop((left, upper, left + side, upper + side))
