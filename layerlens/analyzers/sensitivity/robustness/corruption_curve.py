"""How much of a model's accuracy is left under common corruptions of growing severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.common.measure_registry import measure
from layerlens.errors import InputError, OptionError, check_count, choose, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import Curve
from layerlens.targets.target import Spec

from ..stepped_runs import Values
from .attack_options import rising
from .corruptions import CORRUPTIONS, Corruption, corrupted
from .prediction_change import Verdict
from .sample_chunks import Part, parts


@measure(
    question="responds_to_input",
    cost="F for each corruption (9 of images), severity (5) and, of random kinds, draw (4)",
    needs="a floating-point input, or token ids",
    source="Hendrycks & Dietterich 2019",
)
def corruption_curve(
    model: nn.Module,
    x: Input,
    labels: Any = None,
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
    """Accuracy against the severity of common corruptions, a curve for each (Hendrycks & Dietterich 2019).

    Of images `(batch, channel, height, width)`, and of videos frame by frame: `"gaussian_noise"`, `"shot_noise"`,
    `"impulse_noise"`, `"speckle_noise"`, `"gaussian_blur"`, `"contrast"`, `"brightness"`, `"pixelate"` and
    `"occlusion"`, with the strengths of ImageNet-C at severities 1 to 5 and lengths scaled to the picture. Of series,
    tables, latent vectors and the embeddings of token ids: `"noise"`, `"masking"` and `"scaling"`, relative to the
    sample's own size. Of several inputs each gets what fits it.

    Random kinds are drawn several times; all samples get the same draws, so that a batch gives what its samples give
    alone, and a draw is the same at all severities.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments; or a Dataset or
            DataLoader, which is read batch by batch and may hold the labels.
        labels: the class index of each sample. None: its label in the data set, or else what the model says of the
            clean sample; the curves are then the share of decisions that hold.
        corruptions: which; None for all that fit the input.
        severities: rising, from 0 (none) to 5; those between whole numbers are interpolated.
        draws: of random kinds.
        bounds: (low, high), the values of black and white as the model gets them. None takes 0..1, -1..1 or 0..255,
            whichever is the first to hold the (first) batch, or else its own range, with a warning.
        target: a score to watch in place of classes, as in `layerlens.as_target`. The curves are its mean.
        batch_size: samples that run together.
        seed: of the draws, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `Curve` along severity, with the standard error over draws (0 for kinds that draw nothing). Its null, where
        there are labels, is what the same answers give when the labels are shuffled among the samples. Its checks are
        `"per sample"`, `(corruptions, severities, batch)`, means over draws, and `"clean"`, `()`.

    Raises:
        InputError: when input or labels cannot be used, or values lie outside of the bounds.
        OptionError: when an option is unknown or out of range, or a corruption does not fit the input.
        TargetError: when the output is not `(batch, classes)` and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when there is one draw only, or when the range of images had to be guessed.

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
    levels = rising("severities", severities)
    if levels[-1] > 5:
        raise OptionError(f"severities go from 0 to 5, got {levels[-1]:g}.")
    check_count("draws", draws)
    asked = (corruptions,) if isinstance(corruptions, str) else corruptions
    if asked is not None:
        asked = tuple(choose("corruption", name, CORRUPTIONS) for name in asked)
        if not asked or len(set(asked)) < len(asked):
            raise OptionError(f"corruptions must be one or more different names, got {corruptions!r}.")
    chosen: tuple[str, ...] | None = None
    limits: tuple[float, float] | None = None if bounds is None else as_limits(bounds)
    held: list[torch.Tensor] = []
    chance: list[torch.Tensor] = []
    clean: list[torch.Tensor] = []
    verdicts: list[Verdict] = []
    with borrowed(model, grad=False), layers_called():
        found = parts(
            model, x, labels, target=target, loss="cross_entropy", batch_size=batch_size, seed=seed, forward=forward,
            label="corruptions",
        )  # fmt: skip
        for part in track(found, "corruptions", enabled=progress):
            pictures = [name for name, leaf in part.job.leaves.items() if is_picture(leaf)]
            if chosen is None:
                chosen = fitting(asked, part, pictures)
            if limits is None and pictures and any(CORRUPTIONS[name].image for name in chosen):
                limits = detected([part.job.leaves[name].value for name in pictures])
            trial = Trial(part, pictures, limits, seed)
            answers = [trial(CORRUPTIONS[name], levels, draws) for name in chosen]
            held.append(torch.stack([one for one, _ in answers]))  # (corruptions, severities, draws, batch)
            chance.append(torch.stack([other for _, other in answers]))
            clean.append(part.held)
            verdicts.append(part.verdict)
    assert chosen is not None  # an empty data set is refused before
    verdict, values = verdicts[0], torch.cat(held, dim=3)
    by_draw = values.mean(dim=3)
    random = torch.tensor([CORRUPTIONS[name].random for name in chosen])
    if draws == 1 and bool(random.any()):
        warn("corruption_curve: one draw gives no standard error. Use draws=4.")
    return Curve(
        quantity=verdict.quantity,
        along="severity",
        points=torch.tensor(levels, dtype=torch.float64),
        series=chosen,
        values=by_draw.mean(dim=2),
        units=verdict.units,
        method=f"common corruptions, {draws} draw{'s' * (draws > 1)}",
        settings={
            "corruptions": chosen,
            "draws": draws,
            "bounds": limits,
            "target": None if verdict.target is None else verdict.target.label,
            "seed": seed,
            "samples": values.shape[3],
        },
        error=by_draw.std(dim=2) / draws**0.5 if draws > 1 else None,
        null=_shuffled(torch.cat(chance, dim=3), verdicts),
        checks={"per sample": values.mean(dim=2), "clean": torch.cat(clean).mean()},
        explanation=(
            f"Each value is the {verdict.words} that is left when the inputs are corrupted"
            + ("." if verdict.labels is None else "; the null is what is left when the answers go to other samples."),
            "Severities of different corruptions are no common measure, and the samples given stand for themselves: "
            "compare models on the same samples, not corruptions with each other.",
        ),
    )


def _shuffled(classes: torch.Tensor, verdicts: list[Verdict]) -> torch.Tensor | None:
    """The share of pairs of an answer and any sample's label that agree, `(corruptions, severities)`."""
    if any(verdict.labels is None for verdict in verdicts):
        return None
    labels = torch.cat([verdict.labels for verdict in verdicts if verdict.labels is not None])
    count = int(max(labels.max(), classes.max())) + 1
    right = torch.bincount(labels, minlength=count).double() / len(labels)
    return right[classes].mean(dim=(2, 3))


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
