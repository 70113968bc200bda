"""What the numbers of an intervention are called, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerlens.analyzers.common.messages import listed, warn_left_out
from layerlens.errors import warn
from layerlens.results import Explained, LayerProfile, Matrix, Ranking

from ..output_metrics import Readout
from .intervention_sites import OTHER_POSITIONS, Found
from .parts import NO_POSITIONS
from .trials import Part

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
}
"""Kind of part -> what one of them is called in a sentence."""


def named(by: str, part: Part) -> str:
    """The name of a part: `blocks.0 channel 3`."""
    if by == "layer":
        return part.seam.name
    return f"{part.seam.name} {by} {place(part)}"


def place(part: Part) -> str:
    """The index of a part in its layer: `3`, or `(1, 2)`."""
    index = part.seam.grid.index(part.number)
    return str(index[0] if len(index) == 1 else index) if index else "0"


def quantity(read: Readout) -> tuple[str, str]:
    """What is measured, and its units."""
    if read.target is None:
        return QUANTITIES[read.metric], UNITS[read.metric]
    if read.metric == "change":
        return "change of the score", "score"
    return "relative change of the score", "1"


def result(by: str, parts: Sequence[Part], columns: dict[str, Any], shared: dict[str, Any]) -> Explained:
    """A `LayerProfile` of layers, a `Matrix` of positions in layers, a `Ranking` of all else.

    Args:
        by: kind of part.
        parts: one for each entry of `columns`.
        columns: `values`, `error` and `null`, each `(parts,)` or None.
        shared: the other fields.
    """
    if by == "layer":
        return LayerProfile(layers=tuple(part.seam.name for part in parts), **columns, **shared)
    if by != "layer_position":
        return Ranking(items=tuple(named(by, part) for part in parts), **columns, **shared)
    rows = tuple(dict.fromkeys(part.seam.name for part in parts))
    names = tuple(place(Part(parts[0].seam, number)) for number in range(parts[0].seam.grid.size))
    tables: dict[str, Any] = {}
    for name, column in columns.items():
        table = None if column is None else torch.full((len(rows), len(names)), float("nan"), dtype=torch.float64)
        for part, value in zip(parts, [] if column is None else column, strict=column is not None):
            assert table is not None
            table[rows.index(part.seam.name), part.number] = value
        tables[name] = table
    return Matrix(rows=rows, columns=names, axes=("layer", "position"), **tables, **shared)


def ablation_explained(part: str, value: str, read: Readout, count: int, measured: int | None) -> tuple[str, str]:
    """What the numbers of `ablate` mean and what they do not; `measured` of `count` parts after a screen."""
    words = {"zero": "zeros", "mean": "its mean over other samples", "resample": "the values of other samples"}[value]
    signed = read.target is not None and read.metric == "change"
    sense = "negative where it supported the score" if signed else "larger where the output depends on it more"
    some = "" if measured is None else f" (of {count}, the {measured} with the largest first-order effects)"
    says = CHANGES[read.metric].replace("output", "output" if read.target is None else "score")
    means = (
        f"Each value is {says} when one {part}{some} is replaced by {words} and all else is computed as ever: {sense}."
    )
    odd = ", and zeros may be unlike anything that the layer ever returns" if value == "zero" else ""
    return means, (
        f"It does not say what a part does in company: parts that stand in for each other show nothing one by one, "
        f"effects do not add up{odd}."
    )


def size_of(by_draw: torch.Tensor, values: torch.Tensor, signed: bool) -> torch.Tensor:
    """What random directions do, `(parts,)`: their mean; of signed changes the root mean square, with the value's sign.

    Args:
        by_draw: `(parts, draws)`.
        values: `(parts,)`, what is compared with it.
        signed: whether changes have a sign.
    """
    if not signed:
        return by_draw.mean(dim=1)
    return by_draw.square().mean(dim=1).sqrt() * torch.where(values < 0, -1.0, 1.0)


def warn_of_misleading(
    method: str, found: Found, left_out: dict[str, str], explicit: bool, values: torch.Tensor, names: Any
) -> None:
    """Say what would mislead."""
    expected = () if explicit else (NO_POSITIONS, OTHER_POSITIONS)
    warn_left_out(method, {name: why for name, why in left_out.items() if why not in expected}, explicit)
    if found.stays:
        warn(
            f"{method}: besides what is changed, {listed(found.stays)} returned states that stay as they are, and the "
            "model may go on with those: a small value does not say that the part is not used.",
        )
    odd = [name for name, finite in zip(names, values.isfinite().tolist(), strict=True) if not finite]
    if odd:
        shown = ", ".join(odd[:4]) + (f", ... ({len(odd)})" if len(odd) > 4 else "")
        warn(f"{method}: the values of {shown} are not finite.")
