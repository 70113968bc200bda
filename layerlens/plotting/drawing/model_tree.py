"""The rows of a tree of layers, and the number of each."""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal

from layerlens.errors import OptionError, PlotError, choose
from layerlens.results import LayerProfile, LayerTable
from layerlens.results.reports.layer_table import LayerRow

Quantity = Literal["parameters", "time", "memory"]
OF_TABLE: Final[dict[str, str]] = {
    "parameters": "own parameters",
    "time": "share of the time in the layer itself",
    "memory": "output (MiB)",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the tree.

    Attributes:
        name: last part of the path.
        kind: the class.
        level: how deep.
        value: its number; NaN where it has none, see `known`.
        known: whether it has a number.
        path: path of the layer, with `#1` for its second call.
        below: numbers of the layers that are not drawn.
        hidden: how many those are.
    """

    name: str
    kind: str
    level: int
    value: float
    known: bool
    path: str
    below: tuple[float, ...] = ()
    hidden: int = 0


def read(
    table: LayerTable, profile: LayerProfile | None, quantity: Quantity, series: str | int
) -> tuple[dict[str, float], str, str]:
    """Return path (with `#1` for a second call) -> number, what the number is, and how it was measured.

    Raises:
        OptionError: if there is no such quantity or series.
        PlotError: if there is no number, or a layer is not in the table.
    """
    if profile is None:
        choose("quantity", quantity, OF_TABLE)
        found = {row.path: number for row in table.rows if (number := _of(row, quantity)) is not None}
        if not found:
            remedy = "; it is known after a run: lens.layers(x)" if quantity != "parameters" else ""
            raise PlotError(f"no layer of {table.model} has a number of {quantity}{remedy}.")
        return found, OF_TABLE[quantity], ""
    if not isinstance(profile, LayerProfile):
        raise PlotError(f"the numbers of a model_map come from a LayerProfile, not a {type(profile).__name__}.")
    values = profile.values.detach().double().cpu().reshape(len(profile.layers), -1)
    if isinstance(series, str):
        series = profile.series.index(choose("series", series, profile.series))
    if not -values.shape[1] <= series < values.shape[1]:
        raise OptionError(f"series={series}, but the profile holds {values.shape[1]} (0 to {values.shape[1] - 1}).")
    paths = {row.path for row in table.rows}
    named = ["" if name == "(model)" else name for name in profile.layers]
    strange = [name for name in named if name.split(" #")[0] not in paths]
    if strange:
        raise PlotError(
            f"{len(strange)} of the {len(named)} layers of the profile are not in {table.model}: "
            f"{', '.join(strange[:3])}. Give the table of the same model, or draw the profile: layer_profile."
        )
    what = f"{profile.quantity}, {profile.series[series]}" if profile.series else profile.quantity
    label = f"{what} ({profile.units})" if profile.units not in ("", "1") else what
    return dict(zip(named, values[:, series].tolist(), strict=True)), label, profile.method


def _of(row: LayerRow, quantity: str) -> float | None:
    if quantity == "parameters":
        return float(row.own) if row.own else None
    if quantity == "time":
        return row.share if row.calls else None
    return None if row.activation is None else row.activation / 2**20


def tree(table: LayerTable, numbers: dict[str, float], depth: int) -> list[Row]:
    """The rows down to a level; those at it hold the numbers of all below them."""
    rows: list[Row] = []
    for row in table.rows:
        level = row.path.count(".") + 1 if row.path else 0
        calls = [path for path in (row.path, *_calls(row.path, numbers)) if path in numbers]
        if level > depth:
            below = (*rows[-1].below, *(numbers[path] for path in calls))
            rows[-1] = dataclasses.replace(rows[-1], below=below, hidden=rows[-1].hidden + 1)
            continue
        name = row.path.rpartition(".")[2] or "(model)"
        value = numbers.get(row.path, math.nan)
        rows.append(Row(name, row.type, level, value, row.path in numbers, row.path))
        for path in calls:
            if path != row.path:
                rows.append(Row(path.rpartition(" ")[2], "", level + 1, numbers[path], True, path))
    return rows


def _calls(path: str, numbers: dict[str, float]) -> list[str]:
    """The further calls of a layer that have numbers."""
    found, call = [], 1
    while f"{path} #{call}" in numbers:
        found.append(f"{path} #{call}")
        call += 1
    return found
