"""Attacks: the change of the input, within a size, that raises the loss most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError, OptionError

from ..stepped_runs import Values, lengths
from .sample_chunks import Part

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")
METHODS = ("fgsm", "pgd")


@dataclasses.dataclass(frozen=True)
class Ball:
    """What an attack may do.

    Attributes:
        norm: in which the size is measured, over all leaves of a sample together.
        low: the least value that an input may take, or None.
        high: the largest.
    """

    norm: str
    low: torch.Tensor | None
    high: torch.Tensor | None

    def into(self, start: Values, moved: Values, eps: float) -> Values:
        """The point of the ball around `start`, within bounds, that is nearest to `moved`, or near to it."""
        change = {name: moved[name] - value for name, value in start.items()}
        if self.norm == "linf":
            change = {name: step.clamp(-eps, eps) for name, step in change.items()}
        else:
            length = lengths(change)
            factor = torch.where(length > eps, eps / length, 1.0)
            change = _times(change, factor)
        return self._bounded({name: value + change[name] for name, value in start.items()})

    def _bounded(self, values: Values) -> Values:
        if self.low is None or self.high is None:
            return values
        return {name: value.clamp(self.low.to(value), self.high.to(value)) for name, value in values.items()}

    def uphill(self, gradient: Values, size: float) -> Values:
        """The step of a size that raises a linear function most: Goodfellow et al. 2015, sec. 4, for linf."""
        if self.norm == "linf":
            return {name: size * part.sign() for name, part in gradient.items()}
        length = lengths(gradient)
        return _times(gradient, torch.where(length > 0, size / length, 0.0))

    def random(self, start: Values, eps: float, seed: int, *, edge: bool) -> Values:
        """A random point of the ball, or of its edge; the same change for all samples before bounds are applied."""
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
    """The strongest change so far, sample by sample: one that turns the answer first, the largest loss then."""

    values: Values
    loss: torch.Tensor
    held: torch.Tensor

    def take(self, values: Values, loss: torch.Tensor, held: torch.Tensor, classes: bool) -> None:
        """Keep what is better."""
        better = loss > self.loss
        if classes:
            better = (held < self.held) | ((held == self.held) & better)
        for name, value in values.items():
            mask = better.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            self.values[name] = torch.where(mask, value, self.values[name])
        self.loss = torch.where(better, loss, self.loss)
        self.held = torch.where(better, held, self.held)

    def copy(self) -> Best:
        """One that later ones do not change."""
        return Best(dict(self.values), self.loss, self.held)


class Attack:
    """Raises the loss of some samples with ever larger changes.

    Args:
        part: the samples.
        ball: what is allowed.
        method: `"fgsm"` or `"pgd"`.
        steps: of PGD.
        step_size: of a step of PGD, in units of eps.
        restarts: random starts of PGD, besides the one from what was found for the smaller size.
        seed: of the random starts.
    """

    def __init__(
        self, part: Part, ball: Ball, method: str, *, steps: int, step_size: float, restarts: int, seed: int
    ) -> None:
        self.part, self.ball, self.method = part, ball, method
        self.steps, self.step_size, self.restarts, self.seed = steps, step_size, restarts, seed
        self.start = part.job.start
        self.classes = part.verdict.target is None
        self.flat: torch.Tensor | None = None  # samples whose loss has no gradient as they are
        _check_bounds(part, self.start, ball)

    def __call__(self, sizes: list[float]) -> Iterator[Best]:
        """The best change of each size, from the smallest on; what a smaller size reached is never lost."""
        best = Best(dict(self.start), self.part.loss, self.part.held)
        gradient: Values | None = None
        for eps in sizes:
            if eps > 0 and self.method == "fgsm":
                if gradient is None:
                    gradient = self._gradient(self.start)[2]
                    self.flat = lengths(gradient) == 0
                step = self.ball.uphill(gradient, eps)
                moved = {name: value + step[name] for name, value in self.start.items()}
                self._try(best, self.ball.into(self.start, moved, eps))
            elif eps > 0:
                self._climb(best, dict(best.values), eps)  # from the samples as they are, for the first size
                for restart in range(self.restarts):
                    self._climb(best, self.ball.random(self.start, eps, self.seed + 7919 * restart, edge=False), eps)
            yield best.copy()

    def _climb(self, best: Best, values: Values, eps: float) -> None:
        """Projected gradient ascent (Madry et al. 2018, sec. 2.1)."""
        for _ in range(self.steps):
            loss, held, gradient = self._gradient(values)
            best.take(values, loss, held, self.classes)
            if self.flat is None:
                self.flat = lengths(gradient) == 0
            uphill = self.ball.uphill(gradient, self.step_size * eps)
            moved = {name: value + uphill[name] for name, value in values.items()}
            values = self.ball.into(self.start, moved, eps)
        self._try(best, values)

    def _try(self, best: Best, values: Values) -> None:
        with torch.no_grad():
            loss, held = self.part(values)
        best.take(values, loss.cpu(), held, self.classes)

    def _gradient(self, values: Values) -> tuple[torch.Tensor, torch.Tensor, Values]:
        """Loss, answer and the gradient of the loss by the leaves."""
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            loss, held = self.part(leaves)
        if not loss.requires_grad:
            raise InputError(
                f"no gradient of {type(self.part.job.model).__name__}'s output reaches its input (detach, numpy, or "
                "inference mode inside of the model), so there is nothing that an attack by gradients can follow."
            )
        with backward_pass(self.part.job.model):
            found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(value) if part is None else part
            for (name, value), part in zip(values.items(), found, strict=True)
        }
        return loss.detach().cpu(), held, gradient


def _times(values: Values, factor: torch.Tensor) -> Values:
    """Each row times its factor, `(rows,)`."""
    return {name: value * factor.to(value).reshape(-1, *[1] * (value.ndim - 1)) for name, value in values.items()}


def as_ball(norm: Any, bounds: Any) -> Ball:
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


def _check_bounds(part: Part, start: Values, ball: Ball) -> None:
    if ball.low is None or ball.high is None:
        return
    embedded = [name for name, leaf in part.job.leaves.items() if not leaf.is_input]
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
                f"input {name!r} has values from {float(value.min()):.4g} to {float(value.max()):.4g}, outside of the "
                f"bounds {float(ball.low.min()):.4g} to {float(ball.high.max()):.4g}; give those of the input as the "
                "model gets it, after normalization."
            )
