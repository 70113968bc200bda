"""Which rule of a rulebook each linear site of a graph gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from torch import nn

from layerlens.model.layers import LayerPath, Layers

from ..linear import Epsilon, LinearRule
from ..linear.linear_sites import Site
from ..rules.bookkeeper import Span, innermost
from ..rules.rulebook import Part, Rulebook

GRADIENT = Epsilon(0.0)

Assigned: TypeAlias = tuple[Site, LinearRule, LayerPath]
"""A linear site, the rule that it gets, and the path of its layer."""


def assign(book: Rulebook, sites: Iterable[Site], model: nn.Module, spans: list[Span]) -> list[Assigned]:
    """The sites that a rule of the book is meant for; at all others the gradient is the rule.

    Raises:
        LayerNotFound: when a selection of the rulebook matches no layer of the model.
    """
    sites = list(sites)
    paths = innermost(spans, sorted(site.number for site in sites))
    layers = Layers(model)
    chosen = [None if isinstance(where, Part) else set(layers.select(where)) for where, _ in book.linear]

    def rule_for(site: Site) -> LinearRule:
        inside = set(_enclosing(paths[site.number]))
        for (where, rule), selected in zip(book.linear, chosen, strict=True):
            if _fits(where, site) if isinstance(where, Part) else bool(inside & (selected or set())):
                return rule
        return GRADIENT

    found = [(site, rule_for(site), paths[site.number]) for site in sites]
    return [(site, rule, path) for site, rule, path in found if rule != GRADIENT]


def _fits(part: Part, site: Site) -> bool:
    if part is Part.FIRST:
        return site.first
    if part is Part.LAST:
        return site.last
    return part is Part.ANY or part.value == site.kind


def _enclosing(path: LayerPath) -> list[LayerPath]:
    """The path and those of the modules that contain it: a.b.c, a.b, a."""
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
