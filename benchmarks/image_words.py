"""Words and faces of the benchmark of image maps, as the inputs of a reader and of two detectors.

benchmarks/picture_words.csv has the place of each word in its picture, and what the reader reads there, which a look at
the picture confirms. Faces are the first hundred of scikit-image's `lfw_subset`.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from .circuit_subjects import CLASSES, reader
from .image_readers import TEXT_DEVIATION, TEXT_MEAN, Part, TextRegion, face_detector, text_detector
from .picture_packages import Picture, read

LISTED = Path(__file__).with_name("picture_words.csv")
FACES, FACE_SIDE = 100, 48
LINE = 64
"""Height of what the reader sees, in pixels."""

SCENE, WIDEST = 48, 144
"""Height and greatest width of what the text detector sees, in pixels: a letter is about 16 high."""

TEXT = 0.4
"""The score of the text detector from which a place belongs to the region."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A word in a picture: its name, where it is `(left, top, right, bottom)`, in pixels, and what is read."""

    name: str
    picture: Picture
    box: tuple[int, int, int, int]
    text: str


@functools.cache
def words() -> list[Word]:
    """Every word of picture_words.csv."""
    found: list[Word] = []
    with LISTED.open() as file:
        for row in csv.DictReader(file):
            picture = Picture(f"{row['package']}-{Path(row['file']).stem}", row["package"], row["file"], -1, "")
            number = sum(one.picture == picture for one in found)
            box = (int(row["left"]), int(row["top"]), int(row["right"]), int(row["bottom"]))
            found.append(Word(f"{picture.name}-{number}", picture, box, row["text"]))
    return found


@functools.cache
def _reader() -> nn.Module:
    return reader()


def spelled(word: Word) -> tuple[nn.Module, torch.Tensor, int]:
    """The reader where it reads the middle letter of a word, the word `(1, 1, 64, width)`, and the letter's class."""
    model, picture = _reader(), read(word.picture).convert("L").crop(word.box)
    x = pixels(picture, LINE, round(LINE * picture.width / picture.height)) * 2 - 1
    with torch.inference_mode():
        probabilities = model(x)[0].softmax(dim=1)
    best: list[int] = probabilities.argmax(dim=1).tolist()
    runs = [
        (symbol, [step for step, _ in run]) for symbol, run in itertools.groupby(enumerate(best), lambda one: one[1])
    ]
    runs = [run for run in runs if CLASSES[run[0]].strip()]  # neither blanks nor spaces
    if "".join(CLASSES[symbol] for symbol, _ in runs) != word.text:
        raise ValueError(f"{word.name} is read as {''.join(CLASSES[symbol] for symbol, _ in runs)}, not {word.text}.")
    symbol, steps = runs[len(runs) // 2]
    step = max(steps, key=lambda one: float(probabilities[one, symbol]))
    return Part(model, lambda scores: scores[:, step]).eval(), x, symbol


def surrounded(word: Word) -> tuple[nn.Module, torch.Tensor, int]:
    """The text detector at the region of a word, and the word with what is around it, `(1, 3, 48, width)`."""
    picture, (left, top, right, bottom) = read(word.picture).convert("RGB"), word.box
    margin = bottom - top
    top, bottom = max(0, top - margin), min(picture.height, bottom + margin)
    beside = max(margin // 2, (bottom - top - (right - left)) // 2)  # no narrower than high
    left, right = max(0, left - beside), min(picture.width, right + beside)
    width = min(WIDEST, 16 * round(SCENE * (right - left) / (bottom - top) / 16))
    mean, deviation = (torch.tensor(one)[:, None, None] for one in (TEXT_MEAN, TEXT_DEVIATION))
    x = (pixels(picture.crop((left, top, right, bottom)), SCENE, width) - mean) / deviation
    detector = text_detector()
    with torch.inference_mode():
        found = detector(x)[:, :1]
    across = torch.linspace(left, right, found.shape[3])
    down = torch.linspace(top, bottom, found.shape[2])[:, None]
    inside = (word.box[0] <= across) & (across < word.box[2]) & (word.box[1] <= down) & (down < word.box[3])
    region = (found > TEXT) & inside
    if not bool(region.any()):
        raise ValueError(f"The detector finds no text where {word.name} is.")
    return TextRegion(detector, region).eval(), x, 0


def face(number: int) -> tuple[nn.Module, torch.Tensor, int]:
    """The face detector, a face `(1, 3, 48, 48)`, and the class of faces."""
    import skimage.data

    gray: Any = torch.from_numpy(skimage.data.lfw_subset()[number]).float()
    x = F.interpolate(gray.expand(1, 3, -1, -1), (FACE_SIDE, FACE_SIDE), mode="bilinear")
    return face_detector(), (255 * x - 127.5) / 128, 1


def pixels(picture: Image.Image, height: int, width: int) -> torch.Tensor:
    """A picture `(1, channel, height, width)`, 0 to 1."""
    values: Any = np.array(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy(values).reshape(1, height, width, -1).permute(0, 3, 1, 2).contiguous()
