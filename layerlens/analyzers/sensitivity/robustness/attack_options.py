"""What the attacks share: their options, checked, and the sizes when none are given."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from layerlens.errors import OptionError, check_count, choose, warn

from .attacks import METHODS, Attack, Ball, as_ball
from .prediction_change import LOSSES
from .sample_chunks import Part

STEPS = (0, 1, 2, 4, 8, 16, 32)
"""Sizes when none are given, in steps of 1/255 of the width of the bounds, or of the range of the input."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of an attack, as used.

    Attributes:
        methods: names, `"fgsm"` and `"pgd"`.
        ball: what an attack may do.
        eps: sizes, or None for those made by `sizes`.
        steps: of PGD.
        step_size: of a step of PGD, in units of eps.
        restarts: random starts.
        loss: as in `Verdict`.
        seed: of the random starts and of the noise.
    """

    methods: tuple[str, ...]
    ball: Ball
    eps: tuple[float, ...] | None
    steps: int
    step_size: float
    restarts: int
    loss: str
    seed: int

    def attack(self, part: Part, method: str) -> Attack:
        """An attack on some samples."""
        return Attack(
            part,
            self.ball,
            method,
            steps=self.steps,
            step_size=self.step_size,
            restarts=self.restarts,
            seed=self.seed,
        )

    def sizes(self, part: Part) -> list[float]:
        """The sizes; when none were given, shares of the width of the bounds or of the range of these samples."""
        if self.eps is not None:
            return list(self.eps)
        if self.ball.low is not None and self.ball.high is not None:
            width = float((self.ball.high - self.ball.low).max())
        else:
            start = part.job.start.values()
            width = max(float(value.max()) for value in start) - min(float(value.min()) for value in start)
        width = width or 1.0
        if self.ball.norm == "l2":  # as long as a change of that size in every hundredth value
            width *= (sum(value[0].numel() for value in part.job.start.values()) / 100) ** 0.5
        return [step / 255 * width for step in STEPS]

    def words(self, method: str) -> str:
        """An attack in words."""
        if method == "fgsm":
            return f"FGSM, {self.ball.norm}"
        return f"PGD, {self.steps} steps, {self.restarts} random start{'s' * (self.restarts != 1)}, {self.ball.norm}"

    def settings(self) -> dict[str, Any]:
        """For the result."""
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


def plan(
    method: Any, norm: Any, eps: Any, steps: Any, step_size: Any, restarts: Any, bounds: Any, loss: Any, seed: int
) -> Plan:
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
    return Plan(
        methods,
        as_ball(norm, bounds),
        None if eps is None else rising("eps", eps),
        steps,
        2.5 / steps if step_size is None else float(step_size),
        restarts,
        choose("loss", loss, LOSSES),
        seed,
    )


def rising(name: str, values: Any) -> tuple[float, ...]:
    """Read sizes: numbers of at least 0 that rise.

    Raises:
        OptionError: when they are not.
    """
    try:
        numbers = tuple(float(value) for value in ([values] if isinstance(values, (int, float)) else values))
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name} must be numbers of at least 0, from the smallest on, got {values!r}.") from error
    fine = numbers and all(0 <= number < float("inf") for number in numbers)
    if not fine or any(one >= other for one, other in itertools.pairwise(numbers)):
        raise OptionError(f"{name} must be numbers of at least 0, from the smallest on, got {values!r}.")
    return numbers


def warn_flat(name: str, flat: torch.Tensor, loss: str) -> None:
    """Warn of samples whose loss has no gradient: that they withstand an attack says nothing."""
    count = int(flat.sum())
    if count:
        other = " loss='margin' does not saturate." if loss == "cross_entropy" else ""
        warn(
            f"{name}: the gradient of the loss is zero at {count} of {len(flat)} sample(s), so the attack does not "
            f"know where to go: that they withstand it says nothing.{other}",
        )
