"""Rules that split relevance by the sign of each contribution z_ij = x_i w_ij: z+, alpha-beta, gamma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .linear_sites import Site
from .rules import Term

PLUS = Term(1, 0)


class Pull(NamedTuple):
    """What is pulled back through the linear map.

    Attributes:
        sign: of the inputs that it is for: 1 or -1.
        weight: to pull through.
        s: relevance per unit of the output, shaped like it.
    """

    sign: int
    weight: torch.Tensor
    s: torch.Tensor


def split(
    site: Site,
    terms: Sequence[Term],
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    y: torch.Tensor,
    relevance: torch.Tensor,
) -> tuple[list[Pull], list[torch.Tensor], list[torch.Tensor]]:
    """(pulls, amounts that the bias gets, amounts that are absorbed); the amounts have a batch axis.

    Args:
        site: the linear operation.
        terms: the parts of the rule.
        x: its input.
        weight: with the scale of its norm.
        shift: bias and shift of its norm, which broadcasts to y; None for none.
        y: its output with bias and norm, at least wherever relevance is not 0.
        relevance: of the output.
    """
    signs = (1,) if site.nonnegative else _signs(x)
    active = [term for term in terms if not (term.where < 0 and site.rectified)]
    pulls: list[Pull] = []
    biased: list[torch.Tensor] = []
    absorbed: list[torch.Tensor] = []
    denominators, weights = _denominators(site, active, signs, x, weight, shift, y)
    for term, z in zip(active, denominators, strict=True):
        if term.where and not site.rectified:
            z.masked_fill_(y <= 0 if term.where > 0 else y >= 0, math.inf)  # others share nothing
        empty = z == 0
        nothing = bool(empty.any())
        s = torch.div(relevance, z, out=z)
        if nothing:  # nothing of this sign came in: its share has nowhere to go
            s.masked_fill_(empty, 0.0)
            absorbed.append(relevance * empty * term.share)
        if shift is not None:
            biased.append(_times_shift(s, term.bias(shift) * term.share))
        for sign in signs:
            pulled = weights.pop((term, sign), None)
            pulled = term.weight(weight, sign) if pulled is None else pulled
            pulls.append(Pull(sign, pulled if term.share == 1 else pulled.mul_(term.share), s))
    return pulls, biased, absorbed


def _denominators(
    site: Site,
    active: Sequence[Term],
    signs: tuple[int, ...],
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    y: torch.Tensor,
) -> tuple[list[torch.Tensor], dict[tuple[Term, int], torch.Tensor]]:
    """The sum of contributions of each term, with the bias's, in new tensors; and the weights made on the way."""
    weights: dict[tuple[Term, int], torch.Tensor] = {}
    parts = {1: x, -1: x} if len(signs) == 1 else {1: x.clamp(min=0), -1: x.clamp(max=0)}

    def total(term: Term) -> torch.Tensor:
        total: torch.Tensor | None = None
        for sign in signs:
            weights[term, sign] = term.weight(weight, sign)
            z = site.map.apply(parts[sign], weights[term, sign])
            total = z if total is None else total.add_(z)
        assert total is not None
        return total if shift is None else total.add_(term.bias(shift))

    if not any(term.positive and term.negative for term in active):
        return [total(term) for term in active], weights
    plus = total(PLUS)
    # p z+ + n z- = n y + (p - n) z+, of two amounts of one sign where the term is used: nothing cancels
    sums = [
        torch.add(y if term.negative == 1 else y * term.negative, plus, alpha=term.positive - term.negative)
        for term in active
    ]
    return sums, weights


def _times_shift(s: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`s * shift`, summed over places where the shift has one number per channel."""
    if s.ndim > 2 and shift.ndim and shift.numel() == shift.shape[0] == s.shape[1]:
        return s.flatten(2).sum(dim=2) * shift.reshape(-1)
    return s * shift


def _signs(x: torch.Tensor) -> tuple[int, ...]:
    """Which signs occur in x: an input of one sign needs half of the work."""
    low, high = torch.aminmax(x)
    if float(low) >= 0:
        return (1,)
    return (-1,) if float(high) <= 0 else (1, -1)
