"""Inputs from files: pictures, arrays, texts."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file

from layerlens.errors import InputError, OptionError
from layerlens.files import read_arrays
from layerlens.inputs.images import read_picture, upright
from layerlens.inputs.inputs import Inputs, as_inputs

PICTURES: Final = (".png", ".jpg", ".jpeg")
ARRAYS: Final = (".npy", ".npz", ".safetensors")
TEXTS: Final = (".txt",)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The way from a picture to a model input: brightness 0..1, minus `mean`, divided by `std`, channels first.

    Attributes:
        size: height and width in pixels, cut from the middle after scaling; None keeps the size of the picture.
        mean: one number per channel, or one for all.
        std: one number per channel, or one for all.
        channels: 1 for gray, 3 for color.
    """

    size: tuple[int, int] | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    channels: int = 3

    def check(self) -> None:
        """Check that the numbers can be used.

        Raises:
            OptionError: when they cannot.
        """
        if self.size is not None and min(self.size) < 1:
            raise OptionError(f"size must be 1 or more pixels, got {self.size}.")
        for name, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (1, self.channels):
                raise OptionError(
                    f"{name} has {len(given)} numbers for {self.channels} channel(s); give 1 or {self.channels}."
                )
        if any(not number > 0 for number in self.std):
            raise OptionError(f"std must be above 0, got {tuple(self.std)}.")

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """Return the input `(1, channels, height, width)`, float32; transparent pixels are white."""
        pixels = upright(picture).convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            pixels = ImageOps.fit(pixels, (self.size[1], self.size[0]), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(pixels, dtype=np.float32) / 255).reshape(pixels.height, pixels.width, -1)
        mean, std = (torch.tensor(list(given), dtype=torch.float32) for given in (self.mean, self.std))
        return ((values - mean) / std).permute(2, 0, 1).unsqueeze(0).contiguous()


def read_inputs(
    paths: Sequence[Path], prepare: Preparation, tokenizer: Callable[..., Any] | None, *, single: bool = False
) -> tuple[list[Any], list[str]]:
    """Read the inputs in files of one kind, and a label for each sample.

    Args:
        paths: pictures, arrays or texts. An array file has a batch; several arrays in it are keyword arguments.
        prepare: turns pictures into inputs.
        tokenizer: turns texts into inputs.
        single: whether an array file has one sample, without the batch axis.

    Returns:
        Texts, or `Inputs`; and labels.

    Raises:
        InputError: when a file cannot be read, is of an unknown kind, or kinds are mixed.
    """
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise InputError(f"the inputs are of several kinds ({', '.join(sorted(kinds))}); give files of one kind.")
    (kind,) = kinds
    given: list[Any] = []
    labels: list[str] = []
    for path in paths:
        count = 1
        if kind == "pictures":
            given.append(as_inputs(prepare(read_picture(path))))
        elif kind == "texts":
            if tokenizer is None:
                raise InputError(f"{str(path)!r} is a text, which needs a tokenizer: --tokenizer module:factory.")
            given.append(_read_text(path))
        else:
            given.append(_read_arrays(path, single))
            count = given[-1].batch
        name = path.name if path.name not in labels else str(path)
        labels += [name] if count == 1 else [f"{name} [{row}]" for row in range(count)]
    return given, labels


def _kind(path: Path) -> str:
    for kind, suffixes in (("pictures", PICTURES), ("arrays", ARRAYS), ("texts", TEXTS)):
        if path.suffix.lower() in suffixes:
            return kind
    known = " ".join((*PICTURES, *ARRAYS, *TEXTS))
    raise InputError(f"{str(path)!r} has a suffix that is not known; give one of: {known}.")


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a text ({error}).") from None
    if not text:
        raise InputError(f"{str(path)!r} is empty.")
    return text


def _read_arrays(path: Path, single: bool) -> Inputs:
    try:
        if path.suffix.lower() == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = {name: as_inputs(array).args[0] for name, array in read_arrays(path).items()}
    except (OSError, ValueError, EOFError, SafetensorError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} cannot be read as arrays ({error}).") from None
    if not tensors:
        raise InputError(f"{str(path)!r} holds no array.")
    if single:
        tensors = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    return as_inputs(dict(tensors) if len(tensors) > 1 else next(iter(tensors.values())))
