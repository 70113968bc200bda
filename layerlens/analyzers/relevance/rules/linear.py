"""Rules for linear operations, as published: how each splits relevance among the contributions x_i w_ij."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch

from layerlens.errors import OptionError


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a rule: relevance in proportion to x_i v_ij, where v depends on the sign of x_i.

    Attributes:
        positive: factor of positive w for x above 0, of negative w for x below 0.
        negative: factor of negative w for x above 0, of positive w for x below 0.
        share: factor of the relevance that this term takes.
        where: sign of the outputs z that it is used for; 0 for all.
    """

    positive: float
    negative: float
    share: float = 1.0
    where: int = 0

    def weight(self, w: torch.Tensor, sign: int = 1) -> torch.Tensor:
        """Return v for x of this sign, without the share, in a new tensor."""
        above, below = (self.positive, self.negative) if sign > 0 else (self.negative, self.positive)
        if below == 0 or above == 0:
            part = w.clamp(min=0) if below == 0 else w.clamp(max=0)
            factor = above or below
            return part if factor == 1 else part.mul_(factor)
        return torch.add(w if below == 1 else w * below, w.clamp(min=0), alpha=above - below)

    def bias(self, b: torch.Tensor) -> torch.Tensor:
        """Return the contribution of the bias, whose x is 1, without the share."""
        return self.weight(b)


@dataclasses.dataclass(frozen=True)
class LinearRule:
    """How relevance passes a linear operation z_j = sum_i x_i w_ij + b_j.

    Args:
        bias: whether the bias, and the shift of a batch norm that belongs to it, takes its share of the relevance, as
            published; False leaves it out of the denominator, as zennit's `zero_params="bias"` does, so that its share
            goes to the inputs. The map then sums up to more of the score, and is no more faithful for it: the share
            grows without bound where the contributions of the inputs cancel.
    """

    citation: ClassVar[str] = ""
    bias: bool = dataclasses.field(default=True, kw_only=True)

    def __str__(self) -> str:
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        shown = (
            f"{name}={value!r}"
            for name, (value, default) in values.items()
            if not isinstance(default, bool) or value != default
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def terms(self) -> tuple[Term, ...]:
        """The terms of a rule that splits by sign; none for other rules."""
        return ()


@dataclasses.dataclass(frozen=True)
class Epsilon(LinearRule):
    """R_i = sum_j x_i w_ij / (z_j + epsilon sign(z_j)) R_j; what epsilon takes is absorbed.

    Args:
        epsilon: number of at least 0; 0 is the limit in which the gradient is the rule (LRP-0).
        relative: whether epsilon is in units of the standard deviation of the sample's z.
        bias: whether the bias takes its share, see `LinearRule`; without it z_j = sum_i x_i w_ij.

    Source: Bach et al. 2015, eq. 58.
    """

    citation: ClassVar[str] = "Bach et al. 2015, eq. 58"
    epsilon: float = 1e-6
    relative: bool = False

    def __post_init__(self) -> None:
        _check("epsilon", self.epsilon, self.epsilon >= 0, "at least 0")

    def damped(self, z: torch.Tensor) -> torch.Tensor:
        """Return z / (z + epsilon sign(z)), elementwise."""
        epsilon: float | torch.Tensor = self.epsilon
        if self.relative:
            rows = z.reshape(len(z), -1)
            epsilon = epsilon * rows.std(dim=1, unbiased=False).reshape(-1, *[1] * (z.ndim - 1))
        size = z.abs()
        return torch.where(size == 0, 0.0 if self.epsilon else 1.0, size / (size + epsilon))


@dataclasses.dataclass(frozen=True)
class Gamma(LinearRule):
    """R_i = sum_j (z_ij + gamma z_ij^+) / (sum) R_j for z_j > 0, with z_ij^- instead for z_j < 0, z_ij = x_i w_ij.

    Args:
        gamma: number of at least 0; 0 is LRP-0, infinity is z+ (for outputs above 0).
        bias: whether the bias takes its share, see `LinearRule`; without it z_j = sum_i z_ij decides the sign.

    Source: Montavon et al. 2019, section 10.2.1; for signed inputs and outputs Andeol et al. 2022.
    """

    citation: ClassVar[str] = "Montavon et al. 2019; signed form Andeol et al. 2022"
    gamma: float = 0.25

    def __post_init__(self) -> None:
        _check("gamma", self.gamma, self.gamma >= 0, "at least 0")

    def terms(self) -> tuple[Term, ...]:
        """One term for outputs above 0, one for outputs below."""
        return Term(1 + self.gamma, 1, where=1), Term(1, 1 + self.gamma, where=-1)


@dataclasses.dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """R_i = sum_j (alpha z_ij^+ / sum z_ij^+ - beta z_ij^- / sum z_ij^-) R_j, with z_ij = x_i w_ij.

    Args:
        alpha: factor of the contributions that support the output, at least 1.
        beta: factor of the contributions that oppose it, alpha - 1.
        bias: whether the bias is among the contributions, see `LinearRule`.

    Source: Bach et al. 2015, eq. 60.
    """

    citation: ClassVar[str] = "Bach et al. 2015, eq. 60"
    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        _check("alpha", self.alpha, self.alpha >= 1, "at least 1")
        _check("beta", self.beta, abs(self.alpha - self.beta - 1) < 1e-9, "alpha - 1, so that relevance is conserved")

    def terms(self) -> tuple[Term, ...]:
        """A term for supporting, and one for opposing contributions."""
        supporting = Term(1, 0, self.alpha)
        return (supporting, Term(0, 1, -self.beta)) if self.beta else (supporting,)


@dataclasses.dataclass(frozen=True)
class ZPlus(LinearRule):
    """R_i = sum_j z_ij^+ / sum z_ij^+ R_j with z_ij = x_i w_ij: alpha 1, beta 0.

    Args:
        bias: whether a positive bias takes a share, see `LinearRule`; without it this is excitation backprop
            (Zhang et al. 2016).

    Source: Montavon et al. 2017, eq. 14; signed inputs as in Bach et al. 2015.
    """

    citation: ClassVar[str] = "Montavon et al. 2017, z+; without bias Zhang et al. 2016, excitation backprop"
    bias: bool = True

    def terms(self) -> tuple[Term, ...]:
        """A term for supporting contributions."""
        return (Term(1, 0),)


@dataclasses.dataclass(frozen=True)
class Flat(LinearRule):
    """R_i = sum_j 1 / (number of inputs of j) R_j: for the first layer, whatever the input is.

    Args:
        bias: whether the bias counts as one more input, see `LinearRule`; as published it does not.

    Source: Lapuschkin et al. 2019; Bach et al. 2016.
    """

    citation: ClassVar[str] = "Bach et al. 2016; Lapuschkin et al. 2019"
    bias: bool = dataclasses.field(default=False, kw_only=True)


@dataclasses.dataclass(frozen=True)
class WSquare(LinearRule):
    """R_i = sum_j w_ij^2 / sum w_ij^2 R_j: for the first layer, whatever the input is.

    Args:
        bias: whether b_j^2 is in the denominator, see `LinearRule`; as published it is not.

    Source: Montavon et al. 2017, eq. 12.
    """

    citation: ClassVar[str] = "Montavon et al. 2017, w2"
    bias: bool = dataclasses.field(default=False, kw_only=True)


@dataclasses.dataclass(frozen=True)
class ZBox(LinearRule):
    """R_i = sum_j (x_i w_ij - l w_ij^+ - h w_ij^-) / (sum) R_j: for the first layer on inputs in a box [l, h].

    Args:
        low: smallest value that an input can have; None takes the smallest of the batch, by channel.
        high: largest value that an input can have; None takes the largest of the batch, by channel.
        bias: without effect: a bias, whose input is 1 with the bounds 1 and 1, has the share b - b^+ - b^- = 0.

    Source: Montavon et al. 2017, eq. 13.
    """

    citation: ClassVar[str] = "Montavon et al. 2017, zB"
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            numbers = value if isinstance(value, tuple) else (0.0 if value is None else value,)
            _check(name, value, all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers), "finite")

    def bounds(self, x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return low and high, shaped like x.

        Raises:
            OptionError: if x leaves the box, or the bounds are not one per channel.
        """
        axes = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
        shape = [1] * x.ndim
        shape[axis] = -1

        def bound(value: float | tuple[float, ...] | None, of_data: torch.Tensor) -> torch.Tensor:
            if value is None:
                return of_data.reshape(shape).expand_as(x)
            given = torch.as_tensor(value, dtype=x.dtype, device=x.device)
            if given.ndim and given.numel() != x.shape[axis]:
                raise OptionError(f"z-box has {given.numel()} bounds, but the input has {x.shape[axis]} channels.")
            return given.reshape(shape if given.ndim else ()).expand_as(x)

        low, high = bound(self.low, x.amin(axes)), bound(self.high, x.amax(axes))
        if bool(((x < low) | (x > high)).any()):
            raise OptionError(
                f"the input leaves the box of the z-box rule: it lies in [{float(x.min()):.4g}, {float(x.max()):.4g}]. "
                "Give bounds that every input keeps, in the units in which the model gets it, or None."
            )
        return low, high


FIRST_LAYER_RULES = (Flat, WSquare, ZBox)
"""Rules that give relevance to inputs that are 0: they make relevance itself, not a multiplier."""


def _check(name: str, value: object, valid: bool, wanted: str) -> None:
    if not valid:
        raise OptionError(f"{name} must be {wanted}, got {value!r}.")
