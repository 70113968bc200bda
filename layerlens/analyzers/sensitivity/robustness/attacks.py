"""Attacks: changes of the input, within a size, that raise the loss most, and the options that define them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError, OptionError, check_count, choose, warn

from ..stepped_runs import Values, row_lengths
from .prediction_change import LOSSES, Loss
from .sample_chunks import SampleChunk

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")
METHODS = ("fgsm", "pgd")

Bound = float | torch.Tensor
Bounds = tuple[Bound, Bound]
"""Smallest and largest value of the input: numbers, or tensors that broadcast to it."""


@dataclasses.dataclass(frozen=True)
class Ball:
    """The changes that an attack may make.

    Attributes:
        norm: norm of the size, over all leaves of a sample together.
        low: smallest value that an input may take, or None.
        high: largest value that an input may take, or None.
    """

    norm: str
    low: torch.Tensor | None
    high: torch.Tensor | None

    def project(self, start: Values, moved: Values, eps: float) -> Values:
        """Project `moved` into the ball around `start`, and into the bounds."""
        change = {name: moved[name] - value for name, value in start.items()}
        if self.norm == "linf":
            change = {name: step.clamp(-eps, eps) for name, step in change.items()}
        else:
            length = row_lengths(change)
            factor = torch.where(length > eps, eps / length, 1.0)
            change = _times(change, factor)
        return self._bounded({name: value + change[name] for name, value in start.items()})

    def _bounded(self, values: Values) -> Values:
        if self.low is None or self.high is None:
            return values
        return {name: value.clamp(self.low.to(value), self.high.to(value)) for name, value in values.items()}

    def uphill(self, gradient: Values, size: float) -> Values:
        """Return the step of a size that raises a linear function most: Goodfellow et al. 2015, sec. 4, for linf."""
        if self.norm == "linf":
            return {name: size * part.sign() for name, part in gradient.items()}
        length = row_lengths(gradient)
        return _times(gradient, torch.where(length > 0, size / length, 0.0))

    def random(self, start: Values, eps: float, seed: int, *, edge: bool) -> Values:
        """Draw a point of the ball, or of its surface; the same change for all samples before bounds are applied."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {name: torch.randn(value.shape[1:], generator=generator) for name, value in start.items()}
        if self.norm == "linf":
            inner = {name: 2 * torch.special.ndtr(part) - 1 for name, part in drawn.items()}  # uniform in -1..1
            change = {name: part.sign() if edge else part for name, part in inner.items()}
            size = eps
        else:
            count = sum(part.numel() for part in drawn.values())
            length = float(torch.stack([part.double().square().sum() for part in drawn.values()]).sum().sqrt())
            share = 1.0 if edge else float(torch.rand((), generator=generator)) ** (1 / count)
            change, size = drawn, eps * share / max(length, 1e-300)
        return self._bounded({name: value + size * change[name].to(value) for name, value in start.items()})


@dataclasses.dataclass
class Best:
    """The strongest change so far for each sample: one that flips the answer, or else the largest loss."""

    values: Values
    loss: torch.Tensor
    held: torch.Tensor

    def take(self, values: Values, loss: torch.Tensor, held: torch.Tensor, classes: bool) -> None:
        """Keep the stronger change for each sample."""
        better = loss > self.loss
        if classes:
            better = (held < self.held) | ((held == self.held) & better)
        for name, value in values.items():
            mask = better.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            self.values[name] = torch.where(mask, value, self.values[name])
        self.loss = torch.where(better, loss, self.loss)
        self.held = torch.where(better, held, self.held)

    def copy(self) -> Best:
        """Return a copy that later changes do not affect."""
        return Best(dict(self.values), self.loss, self.held)


class Attack:
    """Raises the loss of some samples with changes of growing size.

    Args:
        chunk: the samples.
        options: options of the attack.
        method: `"fgsm"` or `"pgd"`.
    """

    def __init__(self, chunk: SampleChunk, options: AttackOptions, method: str) -> None:
        self.chunk, self.options, self.ball, self.method = chunk, options, options.ball, method
        self.start = chunk.stepped.start
        self.classes = chunk.reader.target is None
        self.zero_gradient: torch.Tensor | None = None
        _check_bounds(chunk, self.start, self.ball)

    @property
    def has_zero_gradient(self) -> torch.Tensor:
        """Whether the loss of each sample has no gradient at its start, `(batch,)`."""
        none = torch.zeros(self.chunk.batch, dtype=torch.bool)
        return none if self.zero_gradient is None else self.zero_gradient

    def __call__(self, sizes: list[float]) -> Iterator[Best]:
        """Yield the best change of each size, smallest first; a change of a smaller size is never lost."""
        best = Best(dict(self.start), self.chunk.loss, self.chunk.held)
        gradient: Values | None = None
        for eps in sizes:
            if eps > 0 and self.method == "fgsm":
                if gradient is None:
                    gradient = self._gradient(self.start)[2]
                    self.zero_gradient = row_lengths(gradient) == 0
                step = self.ball.uphill(gradient, eps)
                moved = {name: value + step[name] for name, value in self.start.items()}
                self._try(best, self.ball.project(self.start, moved, eps))
            elif eps > 0:
                self._climb(best, dict(best.values), eps)  # for the first size, from the unchanged samples
                for restart in range(self.options.restarts):
                    seed = self.options.seed + 7919 * restart
                    self._climb(best, self.ball.random(self.start, eps, seed, edge=False), eps)
            yield best.copy()

    def _climb(self, best: Best, values: Values, eps: float) -> None:
        """Climb by projected gradient ascent (Madry et al. 2018, sec. 2.1)."""
        for _ in range(self.options.steps):
            loss, held, gradient = self._gradient(values)
            best.take(values, loss, held, self.classes)
            if self.zero_gradient is None:
                self.zero_gradient = row_lengths(gradient) == 0
            uphill = self.ball.uphill(gradient, self.options.step_size * eps)
            moved = {name: value + uphill[name] for name, value in values.items()}
            values = self.ball.project(self.start, moved, eps)
        self._try(best, values)

    def _try(self, best: Best, values: Values) -> None:
        with torch.no_grad():
            loss, held = self.chunk(values)
        best.take(values, loss.cpu(), held, self.classes)

    def _gradient(self, values: Values) -> tuple[torch.Tensor, torch.Tensor, Values]:
        """Return the loss, whether the answer holds, and the gradient of the loss with respect to the leaves.

        Raises:
            InputError: when no gradient reaches the input.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            loss, held = self.chunk(leaves)
        if not loss.requires_grad:
            raise InputError(
                f"no gradient of {self.chunk.stepped.name}'s output reaches its input (detach, numpy, or "
                "inference mode inside the model), so a gradient-based attack has nothing to follow."
            )
        with backward_pass(self.chunk.stepped.run.model):
            found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(value) if part is None else part
            for (name, value), part in zip(values.items(), found, strict=True)
        }
        return loss.detach().cpu(), held, gradient


def _times(values: Values, factor: torch.Tensor) -> Values:
    """Multiply each row by its factor, `(rows,)`."""
    return {name: value * factor.to(value).reshape(-1, *[1] * (value.ndim - 1)) for name, value in values.items()}


def as_ball(norm: str, bounds: Bounds | None) -> Ball:
    """Read norm and bounds as users give them.

    Raises:
        OptionError: when they cannot be read.
    """
    if norm not in NORMS:
        raise OptionError(f"unknown norm {norm!r}. Known: {', '.join(NORMS)}.")
    if bounds is None:
        return Ball(norm, None, None)
    try:
        low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in bounds)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"bounds must be (low, high), numbers or tensors like the input, got {bounds!r}.") from error
    if not bool((low < high).all()):
        raise OptionError(f"bounds must be (low, high) with low < high, got {bounds!r}.")
    return Ball(norm, low, high)


def _check_bounds(chunk: SampleChunk, start: Values, ball: Ball) -> None:
    """Check the input against the bounds.

    Raises:
        InputError: when values lie outside the bounds.
        OptionError: when the bounds do not fit the input.
    """
    if ball.low is None or ball.high is None:
        return
    embedded = [name for name, leaf in chunk.stepped.leaves.items() if not leaf.is_input]
    if embedded:
        raise OptionError(f"bounds are for inputs, and {embedded[0]!r} is attacked in its embeddings; leave them out.")
    for name, value in start.items():
        try:
            outside = bool(((value < ball.low.to(value)) | (value > ball.high.to(value))).any())
        except RuntimeError as error:
            raise OptionError(
                f"bounds of shape {tuple(ball.low.shape)} and {tuple(ball.high.shape)} do not fit input {name!r}, "
                f"{tuple(value.shape)}."
            ) from error
        if outside:
            raise InputError(
                f"input {name!r} has values from {float(value.min()):.4g} to {float(value.max()):.4g}, outside the "
                f"bounds {float(ball.low.min()):.4g} to {float(ball.high.max()):.4g}; give the bounds of the input as "
                "the model gets it, after normalization."
            )


DEFAULT_SIZES = (0, 1, 2, 4, 8, 16, 32)
"""Sizes when none are given, in steps of 1/255 of the width of the bounds, or of the range of the input."""


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """The options of an attack, checked.

    Attributes:
        methods: `"fgsm"`, `"pgd"`, or both.
        ball: the changes that an attack may make.
        eps: sizes; None for those of `sizes`.
        steps: number of steps of PGD.
        step_size: size of a step of PGD, in units of eps.
        restarts: number of random starts of PGD, besides the start from the change found for the smaller size.
        loss: loss to raise, see `AnswerReader`.
        seed: seed of the random starts and the noise.
    """

    methods: tuple[str, ...]
    ball: Ball
    eps: tuple[float, ...] | None
    steps: int
    step_size: float
    restarts: int
    loss: str
    seed: int

    def sizes(self, chunk: SampleChunk) -> list[float]:
        """Return the sizes; if none were given, shares of the width of the bounds or of the range of the samples."""
        if self.eps is not None:
            return list(self.eps)
        if self.ball.low is not None and self.ball.high is not None:
            width = float((self.ball.high - self.ball.low).max())
        else:
            start = chunk.stepped.start.values()
            width = max(float(value.max()) for value in start) - min(float(value.min()) for value in start)
        width = width or 1.0
        if self.ball.norm == "l2":  # the length of a change of that size in every hundredth value
            width *= (sum(value[0].numel() for value in chunk.stepped.start.values()) / 100) ** 0.5
        return [size / 255 * width for size in DEFAULT_SIZES]

    def describe(self, method: str) -> str:
        """Describe an attack."""
        if method == "fgsm":
            return f"FGSM, {self.ball.norm}"
        return f"PGD, {self.steps} steps, {self.restarts} random start{'s' * (self.restarts != 1)}, {self.ball.norm}"

    def settings(self) -> dict[str, Any]:
        """Return the settings of the result."""
        low, high = self.ball.low, self.ball.high
        return {
            "norm": self.ball.norm,
            "bounds": None if low is None or high is None else (low.tolist(), high.tolist()),
            "steps": self.steps,
            "step_size": self.step_size,
            "restarts": self.restarts,
            "loss": self.loss,
            "seed": self.seed,
        }


def attack_options(
    method: str | Sequence[str],
    norm: Norm,
    eps: Sequence[float] | None,
    steps: int,
    step_size: float | None,
    restarts: int,
    bounds: Bounds | None,
    loss: Loss,
    seed: int,
) -> AttackOptions:
    """Check the options of an attack.

    Raises:
        OptionError: when one is unknown or out of range.
    """
    names = (method,) if isinstance(method, str) else method
    if not isinstance(names, Sequence) or not names or len(set(names)) < len(names):
        raise OptionError(f"method must be {' or '.join(METHODS)}, or several different ones, got {method!r}.")
    methods = tuple(choose("attack", name, METHODS) for name in names)
    check_count("steps", steps)
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise OptionError(f"restarts must be a whole number of at least 0, got {restarts!r}.")
    if step_size is not None and (not isinstance(step_size, (int, float)) or not 0 < step_size < float("inf")):
        raise OptionError(f"step_size must be a positive number, in units of eps, got {step_size!r}.")
    return AttackOptions(
        methods,
        as_ball(norm, bounds),
        None if eps is None else rising_numbers("eps", eps),
        steps,
        2.5 / steps if step_size is None else float(step_size),
        restarts,
        choose("loss", loss, LOSSES),
        seed,
    )


def rising_numbers(name: str, values: float | Sequence[float]) -> tuple[float, ...]:
    """Read numbers of at least 0 that rise.

    Raises:
        OptionError: when they are not.
    """
    try:
        numbers = tuple(float(value) for value in ([values] if isinstance(values, (int, float)) else values))
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name} must be numbers of at least 0, from the smallest on, got {values!r}.") from error
    valid = numbers and all(0 <= number < float("inf") for number in numbers)
    if not valid or any(one >= other for one, other in itertools.pairwise(numbers)):
        raise OptionError(f"{name} must be numbers of at least 0, from the smallest on, got {values!r}.")
    return numbers


def random_changes(chunk: SampleChunk, options: AttackOptions, size: float, draws: int) -> Iterator[Values]:
    """Yield the samples with changes of random signs or directions; seeds differ from those of random starts."""
    for draw in range(draws):
        yield options.ball.random(chunk.stepped.start, size, options.seed + 104729 * (draw + 1), edge=True)


def warn_zero_gradient(name: str, zero_gradient: torch.Tensor, loss: str) -> None:
    """Warn of samples whose loss has no gradient: an attack on them means nothing."""
    count = int(zero_gradient.sum())
    if count:
        other = " loss='margin' does not saturate." if loss == "cross_entropy" else ""
        warn(
            f"{name}: the gradient of the loss is zero at {count} of {len(zero_gradient)} sample(s), so the "
            f"attack has no direction: that they withstand it means nothing.{other}",
        )
