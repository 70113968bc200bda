"""The embedded demo model: a small trained CNN and sixteen pictures with known answers, in the base install.

The task is *digit in clutter*: one bright handwritten digit somewhere in a 48 x 48 picture, over fainter strokes,
blobs and fragments of other digits. The digit's pixels are known, so good and bad attributions can be distinguished.
`train_digits.py` makes the weights, the pictures and the record of the accuracy in `data/`.

The digits are the 8 x 8 pictures of `sklearn.datasets.load_digits`: Alpaydin and Kaynak 1998, Optical Recognition of
Handwritten Digits, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49 (CC BY 4.0).
"""

from __future__ import annotations

from collections import OrderedDict
from importlib import resources
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load
from torch import Tensor, nn

from layerlens.errors import InputError
from layerlens.inputs.images import check_8_bit, upright

SIDE: Final = 48
"""Height and width of a picture, in pixels."""

CLASS_NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The name of each output of `DigitNet`, in order."""

WEIGHTS: Final = "digit_net.safetensors"
PICTURES: Final = "digit_pictures.safetensors"
RECORD: Final = "digit_net.json"


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a skip connection; one in-place ReLU module is called twice.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: stride of the first convolution and of the skip connection, in pixels.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            skip_conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(OrderedDict(conv=skip_conv, norm=nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of two convolutions to `x`: (batch, inputs, h, w) to (batch, outputs, h, w) / stride."""
        y = self.relu(self.norm1(self.conv1(x)))  # (batch, outputs, h / stride, w / stride)
        y = self.norm2(self.conv2(y))
        x = self.skip(x)
        out: Tensor = self.relu(x + y)
        return out


class DigitNet(nn.Module):
    """Name the digit in a cluttered picture: `stem`, `blocks.0` to `blocks.2`, `pool`, `head`.

    It has what attribution methods find hard: BatchNorm, in-place ReLUs, skip connections, a module called twice.

    Example:
        >>> DigitNet()(torch.zeros(2, 1, 48, 48)).shape
        torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True)))
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16),
            ResidualBlock(16, 24, stride=2),
            ResidualBlock(24, 40),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(40, len(CLASS_NAMES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Score the ten digits.

        Args:
            pictures: (batch, 1, 48, 48), brightness in 0..1, bright strokes on a dark background.

        Returns:
            Logits (batch, 10), in the order of `CLASS_NAMES`.
        """
        x = self.stem(pictures)  # (batch, 16, 24, 24)
        x = self.blocks(x)  # (batch, 40, 12, 12)
        x = self.pool(x).flatten(1)  # (batch, 40)
        logits: Tensor = self.head(x)
        return logits


def load_digit_net() -> DigitNet:
    """Load the trained `DigitNet` that ships with layerlens, on the CPU and in evaluation mode.

    Raises:
        RuntimeError: when the packaged weights and the class do not fit each other name by name.

    Example:
        >>> model = load_digit_net()
        >>> sum(parameter.numel() for parameter in model.parameters()) < 45_000
        True
    """
    model = DigitNet()
    model.load_state_dict(load(_packaged(WEIGHTS)), strict=True)
    return model.eval()


def sample_pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Load sixteen pictures of digits that the model was not trained on; each of the ten digits is among them.

    Returns:
        images: (16, 1, 48, 48) float32, brightness in 0..1 in steps of 1/255.
        labels: (16,) int64, the digit, its index in `CLASS_NAMES`.
        masks: (16, 48, 48) bool, True where the digit has ink.

    Example:
        >>> images, labels, masks = sample_pictures()
        >>> CLASS_NAMES[int(labels[7])], tuple(images.shape), tuple(masks.shape)
        ('seven', (16, 1, 48, 48), (16, 48, 48))
    """
    pictures = load(_packaged(PICTURES))
    return pictures["images"].float() / 255, pictures["labels"], pictures["masks"]


def preprocess(picture: Image.Image) -> Tensor:
    """Turn a picture of your own into the input of `DigitNet`: grayscale, bright on dark, square, 48 x 48.

    The model knows bright strokes on a dark background. A mostly bright picture (mean brightness above 0.5: ink on
    paper) is inverted. A picture that is not square is padded with black, never cut or stretched. Transparent pixels
    count as white paper. The model expects one digit that is a third to a half of the picture high.

    Args:
        picture: any 8-bit Pillow image; the rotation noted by the camera is applied.

    Returns:
        (1, 1, 48, 48) float32, brightness in 0..1.

    Raises:
        InputError: for a picture of more than 8 bits per channel, or one without any contrast.

    Example:
        >>> paper = Image.new("L", (96, 96), 255)
        >>> paper.paste(0, (44, 24, 52, 72))
        >>> preprocess(paper)[0, 0, 24, 24].item()
        1.0
    """
    check_8_bit(picture)
    gray = upright(picture).convert("L")
    darkest, brightest = gray.getextrema()
    if darkest == brightest:
        raise InputError(
            f"a picture of the single brightness {brightest} of 255 (size {picture.width} x {picture.height}) shows "
            "no digit. Transparent pixels count as white: give white strokes a dark background"
        )
    if np.asarray(gray).mean() > 0.5 * 255:
        gray = ImageOps.invert(gray)
    fitted = ImageOps.pad(gray, (SIDE, SIDE), Image.Resampling.BILINEAR, color=0)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)[None, None]  # (1, 1, 48, 48)


def _packaged(name: str) -> bytes:
    return (resources.files(__package__) / "data" / name).read_bytes()
