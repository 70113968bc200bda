"""Rulebooks: which published choices the propagation makes where the graph leaves one."""

from __future__ import annotations

import dataclasses

from ...errors import choose


@dataclasses.dataclass(frozen=True)
class Rulebook:
    """The choices of a relevance propagation.

    Attributes:
        name: what it is called.
        attention: `"cp"` treats attention weights as constants, so relevance flows through the values only and is
            conserved (CP-LRP, Ali et al. 2022); `"attn"` passes through the softmax by its Taylor rule
            (AttnLRP, Achtibat et al. 2024), whose remainder is absorbed.
        product: how two factors that both carry relevance share it: `"gate"` gives all to the signal when the other
            is a gate, a sigmoid or a softmax (Arras et al. 2017), and half to each otherwise; `"uniform"` always
            gives half to each.
        citation: where it is from.

    Example:
        >>> as_rulebook("attn").product
        'uniform'
    """

    name: str
    attention: str = "cp"
    product: str = "gate"
    citation: str = ""

    def __post_init__(self) -> None:
        choose("attention rule", self.attention, ("cp", "attn"))
        choose("product rule", self.product, ("gate", "uniform"))


RULEBOOKS = {
    book.name: book
    for book in (
        Rulebook("epsilon", "cp", "gate", "Bach et al. 2015, eq. 58, epsilon -> 0; Ali et al. 2022; Arras et al. 2017"),
        Rulebook("attn", "attn", "uniform", "Achtibat et al. 2024, AttnLRP"),
    )
}


def as_rulebook(rules: str | Rulebook) -> Rulebook:
    """A rulebook by its name, or itself.

    Raises:
        OptionError: with the known names.
    """
    return rules if isinstance(rules, Rulebook) else RULEBOOKS[choose("rulebook", rules, RULEBOOKS)]
