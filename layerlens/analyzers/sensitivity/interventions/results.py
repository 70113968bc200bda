"""Results of interventions: names of parts, quantities, explanations and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerlens.analyzers.common.messages import warn_left_out
from layerlens.analyzers.common.parts.grid import NO_POSITIONS
from layerlens.errors import warn
from layerlens.results import Explained, LayerProfile, Matrix, Ranking

from ..output_metrics import Readout
from .intervention_sites import OTHER_POSITIONS, InterventionSite
from .trials import Part, TrialRunner

UNITS = {"kl": "nats", "flip": "share of samples", "relative_change": "1", "change": "units of the output"}
QUANTITIES = {
    "kl": "divergence of the output",
    "flip": "flipped decisions",
    "relative_change": "relative change of the output",
    "change": "change of the output",
}
CHANGES = {
    "kl": "how far the distribution of the output moves (KL divergence)",
    "flip": "for which share of samples the largest output becomes another one",
    "relative_change": "how much the output changes, relative to its size",
    "change": "how much the output changes",
}
PARTS = {
    "layer": "layer",
    "channel": "channel",
    "head": "head",
    "position": "position",
    "unit": "number of a layer",
    "layer_position": "position of a layer",
    "feature": "feature",
    "part": "part",
}
"""Kind of part -> what one of them is called in a sentence."""


def part_name(by: str, part: Part) -> str:
    """Return the name of a part: `blocks.0 channel 3`, `blocks.0 feature 3` of a basis, `blocks.0 feature 3 at 5`."""
    if part.site.basis is not None:
        index = part.site.grid.index(part.number)
        label = "error"
        if part.site.key[0] == "codes":
            label, index = part.site.basis.label(index[-1]), index[:-1]
        return f"{part.site.name} {label}" + (f" at {index[0] if len(index) == 1 else index}" if index else "")
    if by == "layer":
        return part.site.name
    return f"{part.site.name} {by} {part_index(part)}"


def part_index(part: Part) -> str:
    """Return the index of a part in its layer: `3`, or `(1, 2)`."""
    index = part.site.grid.index(part.number)
    return str(index[0] if len(index) == 1 else index) if index else "0"


def kind_of(by: str, sites: Sequence[InterventionSite]) -> str:
    """Return what a part is called, a key of `PARTS`: a feature where all sites are of a basis."""
    bases = [site.basis is not None for site in sites]
    return "feature" if all(bases) else "part" if any(bases) else by


def quantity_and_units(readout: Readout) -> tuple[str, str]:
    """Return what is measured, and its units."""
    if readout.target is None:
        return QUANTITIES[readout.metric], UNITS[readout.metric]
    if readout.metric == "change":
        return "change of the score", "score"
    return "relative change of the score", "1"


def as_result(by: str, parts: Sequence[Part], columns: dict[str, Any], fields: dict[str, Any]) -> Explained:
    """Return a `LayerProfile` of layers, a `Matrix` of positions in layers, or a `Ranking` of parts and features.

    Args:
        by: kind of part.
        parts: one for each entry of `columns`.
        columns: `values`, `error` and `null`, each `(parts,)` or None.
        fields: the other fields of the result.
    """
    if by == "layer" and not any(part.site.basis for part in parts):
        return LayerProfile(layers=tuple(part.site.name for part in parts), **columns, **fields)
    if by != "layer_position":
        return Ranking(items=tuple(part_name(by, part) for part in parts), **columns, **fields)
    rows = tuple(dict.fromkeys(part.site.name for part in parts))
    names = tuple(part_index(Part(parts[0].site, number)) for number in range(parts[0].site.grid.size))
    tables: dict[str, Any] = {}
    for name, column in columns.items():
        table = None if column is None else torch.full((len(rows), len(names)), float("nan"), dtype=torch.float64)
        for part, value in zip(parts, [] if column is None else column, strict=column is not None):
            assert table is not None
            table[rows.index(part.site.name), part.number] = value
        tables[name] = table
    return Matrix(rows=rows, columns=names, axes=("layer", "position"), **tables, **fields)


def ablation_explanation(part: str, value: str, readout: Readout, count: int, measured: int | None) -> tuple[str, str]:
    """Say what the values of `ablate` mean and what they do not; `measured` of `count` parts after a screen."""
    new_values = {"zero": "zeros", "mean": "its mean over other samples", "resample": "the values of other samples"}[
        value
    ]
    sense = "negative where it supported the score" if readout.signed else "larger where the output depends on it more"
    some = "" if measured is None else f" (of {count}, the {measured} with the largest first-order effects)"
    change = CHANGES[readout.metric].replace("output", "output" if readout.target is None else "score")
    means = (
        f"Each value is {change} when one {part}{some} is replaced by {new_values} and all else is computed as usual: "
        f"{sense}."
    )
    zeros = ", and zeros may be unlike anything that the layer ever returns" if value == "zero" else ""
    return means, (
        f"It does not say what a part does together with others: parts that can replace each other show nothing one by "
        f"one, effects do not add up{zeros}."
    )


def null_values(by_draw: torch.Tensor, values: torch.Tensor, signed: bool) -> torch.Tensor:
    """Return the mean over random directions, `(parts,)`; of signed changes the root mean square with the value's sign.

    Args:
        by_draw: changes `(parts, draws)`.
        values: values `(parts,)` to compare with.
        signed: whether changes have a sign.
    """
    if not signed:
        return by_draw.mean(dim=1)
    return by_draw.square().mean(dim=1).sqrt() * torch.where(values < 0, -1.0, 1.0)


def warn_of_misleading(
    method: str, runner: TrialRunner, explicit: bool, values: torch.Tensor, names: Sequence[str]
) -> None:
    """Warn of what would mislead."""
    expected = () if explicit else (NO_POSITIONS, OTHER_POSITIONS)
    warn_left_out(method, {name: why for name, why in runner.left_out.items() if why not in expected}, explicit)
    not_finite = [name for name, finite in zip(names, values.isfinite().tolist(), strict=True) if not finite]
    if not_finite:
        more = f", ... ({len(not_finite)})" if len(not_finite) > 4 else ""
        shown = ", ".join(not_finite[:4]) + more
        hint = (
            " Where zeros are divided by their length, take value='mean' or 'resample'." if method == "ablate" else ""
        )
        warn(f"{method}: the values of {shown} are not finite.{hint}")
