"""Rulebooks: which published rule each part of a network gets."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import nn

from layerlens.errors import OptionError, choose
from layerlens.model.layers import Selection

from .linear import AlphaBeta, Flat, Gamma, LinearRule, WSquare, ZBox, ZPlus


class Part(enum.Enum):
    """Linear operations by what they are and where they are, whatever the layers are called."""

    FIRST = "first"  # no other linear operation lies between it and the input
    LAST = "last"  # none lies between it and the score
    CONVOLUTION = "convolution"
    DENSE = "dense"
    ANY = "any"


Where: TypeAlias = "Part | Selection"
"""A part, or layers as in `Selection`, with everything inside them."""


@dataclasses.dataclass(frozen=True)
class Rulebook:
    """The choices of a relevance propagation.

    Attributes:
        name: name of the rulebook.
        attention: `"cp"` treats attention weights as constants, so relevance flows through the values only and is
            conserved (CP-LRP, Ali et al. 2022); `"attn"` passes through the softmax by its Taylor rule
            (AttnLRP, Achtibat et al. 2024), whose remainder is absorbed.
        product: how two factors that both carry relevance share it: `"gate"` gives all to the signal if the other is a
            gate, a sigmoid or a softmax (Arras et al. 2017), and half to each otherwise; `"uniform"` always gives half
            to each.
        linear: (where, rule) for linear operations with constant weights; the first that fits counts, and where none
            does the gradient is the rule, which is epsilon -> 0. A batch norm right after one belongs to it.
        citation: where it was published.

    Raises:
        OptionError: if a choice is unknown, or a rule is not a `LinearRule`.

    Example:
        >>> as_rulebook("attn").product
        'uniform'
        >>> print(Rulebook("mine", linear=[(Part.FIRST, Flat()), (nn.Conv2d, Gamma(0.1))]))
        mine: attention cp, products gate
          first: Flat()
          Conv2d: Gamma(gamma=0.1)
          else: epsilon -> 0
    """

    name: str
    attention: str = "cp"
    product: str = "gate"
    linear: Sequence[tuple[Where, LinearRule]] = ()
    citation: str = ""

    def __post_init__(self) -> None:
        choose("attention rule", self.attention, ("cp", "attn"))
        choose("product rule", self.product, ("gate", "uniform"))
        pairs = tuple(tuple(pair) if isinstance(pair, (list, tuple)) else (pair,) for pair in self.linear)
        for pair in pairs:
            if len(pair) != 2 or not isinstance(pair[1], LinearRule):
                raise OptionError(
                    f"linear= takes pairs (where, rule), such as (Part.FIRST, Flat()) or ('features.*', ZPlus()); got "
                    f"{pair if len(pair) != 1 else pair[0]!r}."
                )
        object.__setattr__(self, "linear", pairs)

    def __str__(self) -> str:
        lines = [f"{self.name}: attention {self.attention}, products {self.product}"]
        lines += [f"  {_where_text(where)}: {rule}" for where, rule in self.linear]
        return "\n".join([*lines, "  else: epsilon -> 0"] if self.linear else lines)

    def settings(self) -> dict[str, Any]:
        """Return the choices as plain data, to be stored with a result."""
        return {
            "name": self.name,
            "attention": self.attention,
            "product": self.product,
            "linear": [f"{_where_text(where)}: {rule}" for where, rule in self.linear],
        }


def _where_text(where: Where) -> str:
    if isinstance(where, Part):
        return where.value
    if isinstance(where, tuple) and where and all(isinstance(kind, type) for kind in where):
        return ", ".join(kind.__name__ for kind in where)
    if isinstance(where, type):
        return where.__name__
    if isinstance(where, nn.Module):
        return f"this {type(where).__name__}"
    if isinstance(where, Callable):  # type: ignore[arg-type]
        return getattr(where, "__name__", type(where).__name__)
    return str(getattr(where, "pattern", where))


RULEBOOKS = {
    rulebook.name: rulebook
    for rulebook in (
        Rulebook(
            "epsilon",
            citation="Bach et al. 2015, eq. 58, epsilon -> 0; attention Ali et al. 2022; gates Arras et al. 2017",
        ),
        Rulebook("cp", citation="Ali et al. 2022, CP-LRP: attention weights are constants; epsilon -> 0"),
        Rulebook("gate", citation="Arras et al. 2017: gates get nothing; epsilon -> 0"),
        Rulebook("attn", "attn", "uniform", citation="Achtibat et al. 2024, AttnLRP"),
        Rulebook(
            "epsilon_plus",
            linear=[(Part.CONVOLUTION, ZPlus())],
            citation="Montavon et al. 2019; Kohlbrenner et al. 2020",
        ),
        Rulebook(
            "epsilon_plus_flat",
            linear=[(Part.FIRST, Flat()), (Part.CONVOLUTION, ZPlus())],
            citation="Kohlbrenner et al. 2020",
        ),
        Rulebook(
            "epsilon_gamma_box",
            linear=[(Part.FIRST, ZBox()), (Part.CONVOLUTION, Gamma(0.25))],
            citation="Montavon et al. 2019",
        ),
        Rulebook(
            "epsilon_alpha2_beta1",
            linear=[(Part.CONVOLUTION, AlphaBeta(2, 1))],
            citation="Kohlbrenner et al. 2020",
        ),
        Rulebook(
            "epsilon_alpha2_beta1_flat",
            linear=[(Part.FIRST, Flat()), (Part.CONVOLUTION, AlphaBeta(2, 1))],
            citation="Kohlbrenner et al. 2020; Lapuschkin et al. 2019",
        ),
        Rulebook(
            "excitation",
            linear=[(Part.ANY, ZPlus(bias=False))],
            citation="Zhang et al. 2016, excitation backprop; divide by the score for its probabilities",
        ),
        Rulebook(
            "epsilon_plus_w2",
            linear=[(Part.FIRST, WSquare()), (Part.CONVOLUTION, ZPlus())],
            citation="Montavon et al. 2017",
        ),
    )
}
"""Name -> rulebook, as published."""


def as_rulebook(rules: str | Rulebook) -> Rulebook:
    """Return a rulebook by its name, or the rulebook itself.

    Args:
        rules: rulebook, or the name of one in `RULEBOOKS`.

    Raises:
        OptionError: if no rulebook has this name.
    """
    return rules if isinstance(rules, Rulebook) else RULEBOOKS[choose("rulebook", rules, ("auto", *RULEBOOKS))]
