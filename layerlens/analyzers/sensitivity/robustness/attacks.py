"""Attacks: changes of the input, within a size, that raise the loss most, and the options that define them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError, OptionError, check_count, check_seed, choose, warn
from layerlens.model.borrowed import seed_torch
from layerlens.model.trees import describe

from ..stepped_runs import Values, row_lengths
from .ball import Allowed, Bounds, Mask, Norm, Size, allowed
from .prediction_change import LOSSES, Loss
from .sample_chunks import SampleChunk

METHODS = ("fgsm", "pgd")

Method: TypeAlias = "str | Callable[[Any, float], Any]"
"""Name of an attack, or a function `(x, size) -> changed x`."""
Keep = Literal["best", "last"]


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
        self.put(better, Best(values, loss, held))

    def put(self, rows: torch.Tensor, other: Best) -> None:
        """Take the samples `rows`, bool `(batch,)`, of another one."""
        for name, value in other.values.items():
            mask = rows.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            self.values[name] = torch.where(mask, value, self.values[name])
        self.loss = torch.where(rows, other.loss, self.loss)
        self.held = torch.where(rows, other.held, self.held)

    def copy(self) -> Best:
        """Return a copy that later changes do not affect."""
        return Best(dict(self.values), self.loss, self.held)


class Attack:
    """Raises the loss of some samples with changes of growing size.

    Args:
        chunk: the samples.
        options: options of the attack.
        method: `"fgsm"`, `"pgd"` or a function.
    """

    def __init__(self, chunk: SampleChunk, options: AttackOptions, method: Method) -> None:
        self.chunk, self.options, self.ball, self.method = chunk, options, options.allowed.ball(chunk), method
        self.start = chunk.stepped.start
        self.classes = chunk.reader.target is None
        self.zero_gradient: torch.Tensor | None = None
        self._first: Values | None = None

    @property
    def has_zero_gradient(self) -> torch.Tensor:
        """Whether the loss of each sample has no gradient at its start, `(batch,)`."""
        none = torch.zeros(self.chunk.batch, dtype=torch.bool)
        return none if self.zero_gradient is None else self.zero_gradient

    def __call__(self, sizes: list[float]) -> Iterator[Best]:
        """Yield the best change of each size, smallest first; a change of a smaller size is never lost."""
        best = self._clean()
        for eps in sizes:
            if eps > 0:
                best = self.at(eps, best)
            yield best.copy()

    def at(self, eps: Size, best: Best | None = None) -> Best:
        """Return the best change of a size above 0, or of a size for each sample; `best` is that of a smaller size."""
        if best is None or self.options.keep == "last":
            best = self._clean()
        if not isinstance(self.method, str):
            for attempt in range(max(1, self.options.restarts)):
                seed_torch(self.options.seed + attempt)
                self._try(best, self._by_function(self.method, eps))
        elif self.method == "fgsm":
            if self._first is None:
                self._first = self._gradient(self.start)[2]
                self.zero_gradient = row_lengths(self._first) == 0
            step = self.ball.uphill(self._first, eps)
            moved = {name: value + step[name] for name, value in self.start.items()}
            self._try(best, self.ball.project(self.start, moved, eps))
        else:
            if self.options.keep == "best" or not self.options.restarts:
                self._climb(best, dict(best.values), eps)  # for the first size, from the unchanged samples
            for restart in range(self.options.restarts):
                seed = self.options.seed + 7919 * restart
                self._climb(best, self.ball.random(self.start, eps, seed, edge=False), eps)
        return best

    def _clean(self) -> Best:
        return Best(dict(self.start), self.chunk.loss, self.chunk.held)

    def _by_function(self, function: Callable[[Any, float], Any], eps: Size) -> Values:
        """Return what a function makes of the leaves; of each sample by itself where sizes differ.

        Raises:
            InputError: when it returns something else than the leaves.
        """
        if isinstance(eps, torch.Tensor):
            parts = [
                self._made(function, {name: value[row : row + 1] for name, value in self.start.items()}, float(size))
                for row, size in enumerate(eps)
            ]
            return {name: torch.cat([part[name] for part in parts]) for name in self.start}
        return self._made(function, self.start, eps)

    def _made(self, function: Callable[[Any, float], Any], start: Values, eps: float) -> Values:
        copies = {name: value.clone() for name, value in start.items()}
        with torch.no_grad():
            found = function(next(iter(copies.values())) if len(copies) == 1 else copies, eps)
        made = found if isinstance(found, Mapping) else dict.fromkeys(start, found)
        for name, value in start.items():
            own = made.get(name)
            if not isinstance(own, torch.Tensor) or own.shape != value.shape:
                raise InputError(
                    f"method= must return the changed input {name!r}, {tuple(value.shape)}, for (x, size); "
                    f"got {describe(own)}."
                )
        return self.ball.bounded({name: made[name].to(value) for name, value in start.items()})

    def _climb(self, best: Best, values: Values, eps: Size) -> None:
        """Climb by projected gradient ascent (Madry et al. 2018, sec. 2.1)."""
        for _ in range(self.options.steps):
            loss, held, gradient = self._gradient(values)
            if self.options.keep == "best":
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
        if self.options.keep == "last":
            best.values, best.loss, best.held = dict(values), loss.cpu(), held
        else:
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


DEFAULT_SIZES = (0, 1, 2, 4, 8, 16, 32)
"""Sizes when none are given, in steps of 1/255 of the width of the bounds, or of the range of the input."""


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """The options of an attack, checked.

    Attributes:
        methods: `"fgsm"`, `"pgd"`, functions, or several of these.
        allowed: the changes that an attack may make.
        eps: sizes; None for those of `sizes`.
        steps: number of steps of PGD.
        step_size: size of a step of PGD, in units of eps.
        restarts: number of random starts of PGD, besides the start from the change found for the smaller size.
        loss: loss to raise, see `AnswerReader`.
        seed: seed of the random starts and the noise.
        targeted: whether the labels are the classes to reach.
        keep: `"best"` of all points tried, or the `"last"`.
    """

    methods: tuple[Method, ...]
    allowed: Allowed
    eps: tuple[float, ...] | None
    steps: int
    step_size: float
    restarts: int
    loss: str
    seed: int
    targeted: bool = False
    keep: str = "best"

    def sizes(self, chunk: SampleChunk) -> list[float]:
        """Return the sizes; if none were given, shares of the width of the bounds or of the range of the samples."""
        if self.eps is not None:
            return list(self.eps)
        ball, widths = self.allowed.ball(chunk), []
        for name, value in chunk.stepped.start.items():
            std = ball.std.get(name, torch.ones(())).to(value)
            if name in ball.low:
                widths.append(float(((ball.high[name] - ball.low[name]).to(value) * std).max()))
            else:
                widths.append(float((value * std).max()) - float((value * std).min()))
        width = max(widths)
        width = width or 1.0
        if self.allowed.norm == "l2":  # the length of a change of that size in every hundredth value
            width *= (sum(value[0].numel() for value in chunk.stepped.start.values()) / 100) ** 0.5
        return [size / 255 * width for size in DEFAULT_SIZES]

    def describe(self, method: Method) -> str:
        """Describe an attack."""
        norm, reach = self.allowed.norm, ", targeted" * self.targeted
        if not isinstance(method, str):
            return f"{getattr(method, '__name__', type(method).__name__)}{reach}"
        if method == "fgsm":
            return f"FGSM, {norm}{reach}"
        return f"PGD, {self.steps} steps, {self.restarts} random start{'s' * (self.restarts != 1)}, {norm}{reach}"

    def settings(self) -> dict[str, Any]:
        """Return the settings of the result."""
        own = self.allowed
        return {
            "norm": own.norm,
            "bounds": plain(own.bounds),
            "steps": self.steps,
            "step_size": self.step_size,
            "restarts": self.restarts,
            "loss": self.loss,
            "seed": self.seed,
            **({} if own.normalized is None else {"normalized": plain(own.normalized)}),
            **({} if own.mask is None else {"mask": "given"}),
            **({"targeted": True} if self.targeted else {}),
            **({"keep": self.keep} if self.keep != "best" else {}),
        }


def plain(given: Any) -> Any:
    """Return numbers, arrays and pairs of them as numbers and tuples, for settings."""
    if isinstance(given, Mapping):
        return {str(name): plain(one) for name, one in given.items()}
    if isinstance(given, (tuple, list)):
        return tuple(plain(one) for one in given)
    if given is None or isinstance(given, (int, float)):
        return given if given is None else float(given)
    found = torch.as_tensor(given)
    return found.tolist() if found.numel() <= 16 else describe(found)


def attack_options(
    method: Method | Sequence[Method],
    norm: Norm,
    eps: Sequence[float] | None,
    steps: int,
    step_size: float | None,
    restarts: int,
    bounds: Bounds | None,
    loss: Loss,
    seed: int,
    *,
    normalized: Bounds | None = None,
    mask: Mask = None,
    targeted: bool = False,
    keep: Keep = "best",
) -> AttackOptions:
    """Check the options of an attack.

    Raises:
        OptionError: when one is unknown or out of range.
    """
    names = (method,) if isinstance(method, str) or callable(method) else method
    if not isinstance(names, Sequence) or not names or len(set(names)) < len(names):
        raise OptionError(f"method must be {' or '.join(METHODS)}, or several different ones, got {method!r}.")
    methods = tuple(name if callable(name) else choose("attack", name, METHODS) for name in names)
    choose("keep", keep, ("best", "last"))
    check_seed(seed)
    check_count("steps", steps)
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise OptionError(f"restarts must be a whole number of at least 0, got {restarts!r}.")
    if step_size is not None and (not isinstance(step_size, (int, float)) or not 0 < step_size < float("inf")):
        raise OptionError(f"step_size must be a positive number, in units of eps, got {step_size!r}.")
    return AttackOptions(
        methods,
        allowed(norm, bounds, normalized, mask),
        None if eps is None else rising_numbers("eps", eps),
        steps,
        2.5 / steps if step_size is None else float(step_size),
        restarts,
        choose("loss", loss, LOSSES),
        seed,
        targeted,
        keep,
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
    ball = options.allowed.ball(chunk)
    for draw in range(draws):
        yield ball.random(chunk.stepped.start, size, options.seed + 104729 * (draw + 1), edge=True)


def warn_zero_gradient(name: str, zero_gradient: torch.Tensor, loss: str) -> None:
    """Warn of samples whose loss has no gradient: an attack on them means nothing."""
    count = int(zero_gradient.sum())
    if count:
        other = " loss='margin' does not saturate." if loss == "cross_entropy" else ""
        warn(
            f"{name}: the gradient of the loss is zero at {count} of {len(zero_gradient)} sample(s), so the "
            f"attack has no direction: that they withstand it means nothing.{other}",
        )
