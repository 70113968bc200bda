"""How much of a model's accuracy remains under common corruptions of growing severity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import InputError, OptionError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.progress import track
from layerlens.results import Curve
from layerlens.targets.target import Spec

from ..stepped_runs import Values
from .attacks import rising_numbers
from .corruptions import CORRUPTIONS, Corruption, corrupted
from .prediction_change import AnswerReader, Labels
from .sample_chunks import LabeledSamples, SampleChunk, sample_chunks


@measure(
    question="responds_to_input",
    cost="F for each corruption (9 of images), severity (5) and, of random kinds, draw (4)",
    needs="a floating-point input, or token ids",
    source="Hendrycks & Dietterich 2019",
)
def corruption_curve(
    model: nn.Module,
    x: Input,
    labels: Labels | None = None,
    *,
    corruptions: str | Sequence[str] | None = None,
    severities: Sequence[float] = (0, 1, 2, 3, 4, 5),
    draws: int = 4,
    bounds: tuple[float, float] | None = None,
    target: Spec = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Curve:
    """Measure accuracy against the severity of common corruptions, a curve for each (Hendrycks & Dietterich 2019).

    For images `(batch, channel, height, width)`, and for videos frame by frame: `"gaussian_noise"`, `"shot_noise"`,
    `"impulse_noise"`, `"speckle_noise"`, `"gaussian_blur"`, `"contrast"`, `"brightness"`, `"pixelate"` and
    `"occlusion"`, with the strengths of ImageNet-C at severities 1 to 5 and lengths scaled to the picture. For series,
    tables, latent vectors and the embeddings of token ids: `"noise"`, `"masking"` and `"scaling"`, relative to the
    sample's own size. Of several inputs each gets the corruptions that fit it.

    Random corruptions are drawn several times; all samples get the same draws, so a batch gives what its samples give
    alone, and a draw is the same at all severities.

    Args:
        x: ... Or a Dataset or DataLoader, which is read batch by batch and may hold the labels.
        labels: the class index of each sample. None: its label in the data set, or else the model's answer to the
            clean sample; the curves are then the share of decisions that hold.
        corruptions: names of corruptions; None for all that fit the input.
        severities: rising, from 0 (none) to 5; those between whole numbers are interpolated.
        draws: number of draws of random corruptions.
        bounds: the values of black and white as the model gets them. None takes 0..1, -1..1 or 0..255, whichever is
            the first to contain the (first) batch, or else its own range, with a warning.
        target: a score to watch instead of classes, see `as_target`. The curves are its mean.

    Returns:
        A `Curve` along severity, with the standard error over draws (0 for those that draw nothing). Its null, where
        there are labels, is the accuracy of the same answers when the labels are shuffled among the samples. Its checks
        are `"per sample"`, `(corruptions, severities, batch)`, means over draws, and `"clean"`, `()`.

    Raises:
        InputError: when input or labels cannot be used, or values lie outside the bounds.
        OptionError: when an option is unknown or out of range, or a corruption does not fit the input.
        TargetError: when the output is not `(batch, classes)` and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when there is only one draw, or the range of images had to be guessed.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))  # class 1: brighter on the left
        >>> weight = torch.where(torch.arange(64) % 8 < 4, 1.0, -1.0)
        >>> _ = net[1].weight.data.copy_(torch.stack([-weight, weight]))
        >>> x = torch.full((1, 1, 8, 8), 0.4)
        >>> x[..., :4] = 0.6
        >>> curve = corruption_curve(net, x, [1], corruptions=("contrast", "occlusion"), bounds=(0, 1), draws=2)
        >>> curve.of("contrast")
        tensor([1., 1., 1., 1., 1., 1.], dtype=torch.float64)
    """
    levels = rising_numbers("severities", severities)
    if levels[-1] > 5:
        raise OptionError(f"severities go from 0 to 5, got {levels[-1]:g}.")
    check_count("draws", draws)
    requested = (corruptions,) if isinstance(corruptions, str) else corruptions
    if requested is not None:
        requested = tuple(choose("corruption", name, CORRUPTIONS) for name in requested)
        if not requested or len(set(requested)) < len(requested):
            raise OptionError(f"corruptions must be one or more different names, got {corruptions!r}.")
    chosen: tuple[str, ...] | None = None
    limits: tuple[float, float] | None = None if bounds is None else as_limits(bounds)
    held: list[torch.Tensor] = []
    answers: list[torch.Tensor] = []
    clean: list[torch.Tensor] = []
    readers: list[AnswerReader] = []
    with borrowed(model, grad=False), layers_called(), said_once() as passes:
        samples = LabeledSamples(x, labels, target, "cross_entropy", batch_size, seed, forward)
        for chunk in track(sample_chunks(model, samples), "corruptions", enabled=progress):
            images = [name for name, leaf in chunk.stepped.leaves.items() if is_image(leaf)]
            if chosen is None:
                chosen = fitting_corruptions(requested, chunk, images)
            if limits is None and images and any(CORRUPTIONS[name].image for name in chosen):
                limits = detect_limits([chunk.stepped.leaves[name].value for name in images])
            corrupt = CorruptedRuns(chunk, images, limits, seed)
            pairs = [corrupt(CORRUPTIONS[name], levels, draws) for name in chosen]
            held.append(torch.stack([chunk_held for chunk_held, _ in pairs]))  # (corruptions, severities, draws, batch)
            answers.append(torch.stack([classes for _, classes in pairs]))
            clean.append(chunk.held)
            readers.append(chunk.reader)
    assert chosen is not None  # an empty data set is refused before
    reader, values = readers[0], torch.cat(held, dim=3)
    by_draw = values.mean(dim=3)
    random = torch.tensor([CORRUPTIONS[name].random for name in chosen])
    if draws == 1 and bool(random.any()):
        warn("corruption_curve: one draw gives no standard error. Use draws=4.")
    return Curve(
        quantity=reader.quantity,
        along="severity",
        points=torch.tensor(levels, dtype=torch.float64),
        series=chosen,
        values=by_draw.mean(dim=2),
        units=reader.units,
        method=f"common corruptions, {draws} draw{'s' * (draws > 1)}",
        settings={
            "corruptions": chosen,
            "draws": draws,
            "bounds": limits,
            "target": None if reader.target is None else reader.target.label,
            "seed": seed,
            "samples": values.shape[3],
            **passes,
        },
        error=by_draw.std(dim=2) / draws**0.5 if draws > 1 else None,
        null=_shuffled_accuracy(torch.cat(answers, dim=3), readers),
        checks={"per sample": values.mean(dim=2), "clean": torch.cat(clean).mean()},
        explanation=(
            f"Each value is the {reader.text} that remains when the inputs are corrupted"
            + ("." if reader.labels is None else "; the null is what remains when the answers go to other samples."),
            "Severities of different corruptions are not on a common scale, and the values hold for these samples: "
            "compare models on the same samples, not corruptions with each other.",
        ),
    )


def _shuffled_accuracy(classes: torch.Tensor, readers: list[AnswerReader]) -> torch.Tensor | None:
    """Return the share of pairs of an answer and any sample's label that agree, `(corruptions, severities)`."""
    if any(reader.labels is None for reader in readers):
        return None
    labels = torch.cat([reader.labels for reader in readers if reader.labels is not None])
    count = int(max(labels.max(), classes.max())) + 1
    right = torch.bincount(labels, minlength=count).double() / len(labels)
    return right[classes].mean(dim=(2, 3))


SMALLEST_IMAGE = 8
"""Smallest height and width of an input `(batch, channel, height, width)` that counts as an image."""


class CorruptedRuns:
    """Corrupts some samples and reads the answers.

    Args:
        chunk: the samples.
        images: names of the leaves that are images.
        limits: the values of black and white.
        seed: seed of the draws.
    """

    def __init__(self, chunk: SampleChunk, images: list[str], limits: tuple[float, float] | None, seed: int) -> None:
        self.chunk, self.images, self.limits, self.seed = chunk, images, limits, seed
        self.start = chunk.stepped.start
        if limits is not None:
            for name in images:
                _check_limits(name, self.start[name], limits)

    def __call__(self, kind: Corruption, severities: Sequence[float], draws: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whether the answers hold, and their classes, `(severities, draws, batch)` each."""
        by_severity = []
        for severity in severities:
            needed = draws if kind.random and severity else 1  # one run is enough where nothing is drawn
            by_draw = [self._answer(kind, severity, draw) for draw in range(needed)]
            by_severity.append((by_draw * draws)[:draws])
        held, classes = (
            torch.stack([torch.stack([answer[which] for answer in by_draw]) for by_draw in by_severity])
            for which in (0, 1)
        )
        return held, classes

    def _answer(self, kind: Corruption, severity: float, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.chunk.run(self._corrupted(kind, severity, draw))
        rows = torch.arange(self.chunk.batch)
        return self.chunk.reader(output, rows)[1], self.chunk.reader.answers(output, rows)

    def _corrupted(self, kind: Corruption, severity: float, draw: int) -> Values:
        values = dict(self.start)
        low, high = self.limits or (0.0, 1.0)
        for place, (name, value) in enumerate(self.start.items()):
            if kind.image == (name in self.images):
                seed = self.seed + 104729 * (draw + 1) + 7919 * place
                values[name] = torch.stack([corrupted(one, kind, severity, low, high, seed) for one in value])
        return values


def is_image(leaf: Leaf) -> bool:
    """Return whether a leaf holds images: `(batch, ..., channel, height, width)`."""
    return leaf.is_input and leaf.value.ndim >= 4 and min(leaf.value.shape[-2:]) >= SMALLEST_IMAGE


def fitting_corruptions(requested: Sequence[str] | None, chunk: SampleChunk, images: list[str]) -> tuple[str, ...]:
    """Return the corruptions requested, or all that fit some leaf.

    Raises:
        OptionError: when one fits none.
    """
    has_others = len(images) < len(chunk.stepped.leaves)
    known = [name for name, kind in CORRUPTIONS.items() if (bool(images) if kind.image else has_others)]
    if requested is None:
        return tuple(known)
    for name in requested:
        if name not in known:
            shapes = ", ".join(f"{one} {tuple(leaf.value.shape)}" for one, leaf in chunk.stepped.leaves.items())
            what = "images (batch, channel, height, width)" if CORRUPTIONS[name].image else "inputs other than images"
            raise OptionError(f"{name!r} is for {what}; the input is {shapes}. Fitting: {', '.join(known)}.")
    return tuple(requested)


def as_limits(bounds: tuple[float, float]) -> tuple[float, float]:
    """Read the values of black and white as users give them.

    Raises:
        OptionError: when they are not two rising numbers.
    """
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise OptionError(f"bounds must be two numbers, (low, high), got {bounds!r}.") from error
    if not -float("inf") < low < high < float("inf"):
        raise OptionError(f"bounds must be (low, high) with low < high, got {bounds!r}.")
    return low, high


def detect_limits(values: list[torch.Tensor]) -> tuple[float, float]:
    """Return the range of images: the first usual one that contains them, or else their own, with a warning."""
    least, most = min(float(value.min()) for value in values), max(float(value.max()) for value in values)
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        if low <= least and most <= high:
            return low, high
    warn(
        f"corruption_curve: the images have values from {least:.4g} to {most:.4g}, which is not a usual range; these "
        "are taken as black and white. Give bounds=(low, high), the values of black and white.",
    )
    return least, most if most > least else least + 1


def _check_limits(name: str, value: torch.Tensor, limits: tuple[float, float]) -> None:
    """Check the values of an image.

    Raises:
        InputError: when they lie outside the limits.
    """
    least, most = float(value.min()), float(value.max())
    slack = 1e-6 * (limits[1] - limits[0])
    if least < limits[0] - slack or most > limits[1] + slack:
        raise InputError(
            f"input {name!r} has values from {least:.4g} to {most:.4g}, outside {limits[0]:.4g} to {limits[1]:.4g}; "
            "give bounds=(low, high), the values of black and white as the model gets them."
        )
