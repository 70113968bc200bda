"""The relevance of a layer, divided among the features of a basis and its error."""

from __future__ import annotations

from typing import Any

import torch

from layerlens.analyzers.common.features.basis_site import BasisSite, shares
from layerlens.errors import warn
from layerlens.results import Ranking

from .layer_relevance import Arrived


def feature_relevance(site: BasisSite, arrived: Arrived, target: str, settings: dict[str, Any]) -> Ranking:
    """Divide R = h m: a feature gets its code times decoder . m; the error and the bias of decode are items as well.

    Where a rule treats a layer and its batch norm as one, m is that of the layer's own output, and what the norm adds
    is constant. What a first-layer rule brought has no multiplier, and is an item of its own.

    Args:
        site: the basis, and the tensor.
        arrived: what came back to it.
        target: what was explained.
        settings: settings of the propagation.

    Warns:
        UserWarning: when the decoder is not linear, so that the features get their first-order shares.
    """
    value, multiplier = arrived.output.value, arrived.multiplier
    m = torch.zeros_like(value) if multiplier is None else multiplier.detach()
    m = m if arrived.folded is None else m * arrived.folded[1]
    relevance = site.units_last(arrived.relevance.detach())
    shared = shares(site.basis, site.units_last(value), site.units_last(m))
    items, rows = list(shared.items(site.basis)), shared.rows()
    added = torch.zeros_like(value) if arrived.added is None else arrived.added.detach()
    if arrived.folded is not None and multiplier is not None:
        shift = arrived.folded[0] * multiplier.detach() - value * m
        rows[:, items.index("constant")] += site.units_last(shift).sum(dim=-1)
    if bool(added.any()):
        items.append("first-layer rule")
        rows = torch.cat([rows, site.units_last(added).sum(dim=-1).unsqueeze(1)], dim=1)
    if shared.rest is not None:
        size = float(shared.rest.abs().sum() / rows.abs().sum())
        warn(
            f"relevance: decode of {site!r} is not linear, so features get their first-order shares; what it adds "
            f"besides ({100 * size:.1f}% of all magnitudes) is the item 'beyond first order'."
        )
    by_place = rows.movedim(1, 0).cpu()  # (items, batch, *places)
    per_sample = by_place.reshape(*by_place.shape[:2], -1).sum(dim=2)
    return Ranking(
        quantity="relevance",
        items=tuple(items),
        values=per_sample.mean(dim=1),
        units="score",
        signed=True,
        method=f"relevance, {site.basis.name} of {site.name}",
        settings={"layer": site.name, "basis": repr(site.basis), "target": target, "rules": settings["rules"]},
        checks={"per place": by_place, "per sample": per_sample, "layer": relevance.sum(dim=-1).cpu()},
        explanation=(
            "Each value is the relevance of a feature: its code times what the layer's multiplier makes of its "
            "direction. All items of a sample sum to the relevance of the layer.",
            "What the basis cannot express is in the error, and says nothing of the features.",
        ),
    )
