"""Runs of a model on corrupted samples, and which corruptions fit which inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.errors import InputError, OptionError, warn

from ..local.probe_run import Values
from .corruptions import CORRUPTIONS, Corruption, corrupted
from .sample_chunks import Part

LEAST_SIDE = 8
"""Height and width from which on an input `(batch, channel, height, width)` is a picture."""


class Trial:
    """Corrupts some samples and reads the answers.

    Args:
        part: the samples.
        pictures: names of the leaves that are images.
        limits: black and white.
        seed: of the draws.
    """

    def __init__(self, part: Part, pictures: list[str], limits: tuple[float, float] | None, seed: int) -> None:
        self.part, self.pictures, self.limits, self.seed = part, pictures, limits, seed
        self.start = part.job.start
        if limits is not None:
            for name in pictures:
                _check_limits(name, self.start[name], limits)

    def __call__(self, kind: Corruption, severities: Sequence[float], draws: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What holds, and the classes that were answered, `(severities, draws, batch)` each."""
        answers = []
        for severity in severities:
            several = [self._answer(kind, severity, draw) for draw in range(draws if kind.random and severity else 1)]
            answers.append((several * draws)[:draws])  # one does for kinds that draw nothing
        held, classes = (
            torch.stack([torch.stack([one[which] for one in several]) for several in answers]) for which in (0, 1)
        )
        return held, classes

    def _answer(self, kind: Corruption, severity: float, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.part.run(self._changed(kind, severity, draw))
        rows = torch.arange(self.part.batch)
        return self.part.verdict(output, rows)[1], self.part.verdict.answers(output, rows)

    def _changed(self, kind: Corruption, severity: float, draw: int) -> Values:
        values = dict(self.start)
        low, high = self.limits or (0.0, 1.0)
        for place, (name, value) in enumerate(self.start.items()):
            if kind.image == (name in self.pictures):
                seed = self.seed + 104729 * (draw + 1) + 7919 * place
                values[name] = torch.stack([corrupted(one, kind, severity, low, high, seed) for one in value])
        return values


def is_picture(leaf: Leaf) -> bool:
    """Whether a leaf is an image, or several: `(batch, ..., channel, height, width)`."""
    return leaf.is_input and leaf.value.ndim >= 4 and min(leaf.value.shape[-2:]) >= LEAST_SIDE


def fitting(asked: Sequence[str] | None, part: Part, pictures: list[str]) -> tuple[str, ...]:
    """The kinds to use: those asked for, or all that fit some leaf.

    Raises:
        OptionError: when one fits none.
    """
    others = len(pictures) < len(part.job.leaves)
    known = [name for name, kind in CORRUPTIONS.items() if (bool(pictures) if kind.image else others)]
    if asked is None:
        return tuple(known)
    for name in asked:
        if name not in known:
            shapes = ", ".join(f"{one} {tuple(leaf.value.shape)}" for one, leaf in part.job.leaves.items())
            what = "images (batch, channel, height, width)" if CORRUPTIONS[name].image else "what is no image"
            raise OptionError(f"{name!r} is for {what}; the input is {shapes}. Fitting: {', '.join(known)}.")
    return tuple(asked)


def as_limits(bounds: tuple[float, float]) -> tuple[float, float]:
    """Black and white as users give them.

    Raises:
        OptionError: when they are not two numbers that rise.
    """
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise OptionError(f"bounds must be two numbers, (low, high), got {bounds!r}.") from error
    if not -float("inf") < low < high < float("inf"):
        raise OptionError(f"bounds must be (low, high) with low < high, got {bounds!r}.")
    return low, high


def detected(values: list[torch.Tensor]) -> tuple[float, float]:
    """The range of images: the first usual one that holds them, or else their own."""
    least, most = min(float(value.min()) for value in values), max(float(value.max()) for value in values)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        if low <= least and most <= high:
            return low, high
    warn(
        f"corruption_curve: the images have values from {least:.4g} to {most:.4g}, which is no usual range; black and "
        "white are taken to be these ends. Give bounds=(low, high), the values of black and white.",
    )
    return least, most if most > least else least + 1


def _check_limits(name: str, value: torch.Tensor, limits: tuple[float, float]) -> None:
    least, most = float(value.min()), float(value.max())
    slack = 1e-6 * (limits[1] - limits[0])
    if least < limits[0] - slack or most > limits[1] + slack:
        raise InputError(
            f"input {name!r} has values from {least:.4g} to {most:.4g}, outside of {limits[0]:.4g} to {limits[1]:.4g}; "
            "give bounds=(low, high), the values of black and white as the model gets them."
        )
