"""The subject of the demo: a model, its class names and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from PIL import Image
from torch import Tensor, nn

from layerlens.errors import choose

from . import efficientnet, embedded

ModelName = Literal["auto", "efficientnet", "embedded"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to look into, with pictures.

    Attributes:
        name: name of the model, as shown.
        model: the model in evaluation mode.
        class_names: names by index.
        pictures: title -> input (1, channels, height, width).
        preprocess: turns a picture into an input.
        mosaic: layers whose activations are shown, from the first to the last.
        depth: layer in the middle at whose output relevance is shown.
        source: origin of model and pictures.
    """

    name: str
    model: nn.Module
    class_names: list[str]
    pictures: dict[str, Tensor]
    preprocess: Callable[[Image.Image], Tensor]
    mosaic: tuple[str, ...]
    depth: str
    source: str


def subject(model: ModelName) -> Subject:
    """Return the demo's subject: `"efficientnet"`, `"embedded"`, or `"auto"`, the first if its packages are installed.

    Raises:
        MissingPackage: when EfficientNet is asked for and not installed.
        OptionError: when the name is unknown.
    """
    choose("model", model, ("auto", "efficientnet", "embedded"))
    if model == "embedded" or (model == "auto" and not efficientnet.available()):
        return _embedded()
    network = efficientnet.load_efficientnet()
    pictures = {name: efficientnet.preprocess(photo) for name, photo in efficientnet.photographs().items()}
    return Subject(
        "EfficientNet-Lite0",
        network,
        efficientnet.class_names(),
        pictures,
        efficientnet.preprocess,
        ("_conv_stem", "_blocks.2", "_blocks.5", "_blocks.10", "_blocks.15"),
        "_blocks.10",
        "Tan and Le 2019, ImageNet weights; photographs of scikit-image",
    )


def _embedded() -> Subject:
    images, labels, _ = embedded.sample_pictures()
    chosen = (7, 3, 0)
    pictures = {f"{embedded.CLASS_NAMES[int(labels[row])]} in clutter": images[row : row + 1] for row in chosen}
    return Subject(
        "DigitNet",
        embedded.load_digit_net(),
        list(embedded.CLASS_NAMES),
        pictures,
        embedded.preprocess,
        ("stem.conv", "blocks.0", "blocks.1", "blocks.2"),
        "blocks.1",
        "the embedded demo model, digits of Alpaydin and Kaynak 1998",
    )
