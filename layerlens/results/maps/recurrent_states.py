"""States and gates of a recurrent layer over time."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from layerlens.errors import RecordError, suggestion
from layerlens.model.trees import as_array

from ..base import Result, numbers

GATES = ("input_gate", "forget_gate", "output_gate", "reset_gate", "update_gate")
"""Quantities that lie between 0 and 1."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RecurrentStates(Result):
    """What a recurrent layer keeps, lets in and lets out at every step.

    Attributes:
        layer: path of the module.
        kind: `"LSTM"`, `"GRU"` or `"RNN"`, with `Cell` for a single step that the model calls in a loop.
        states: run (`"layer 0"`, `"layer 0 reverse"`, `"layer 1"`, ...) -> quantity -> `(batch, time, unit)`. All runs
            hold `hidden`; an LSTM also `cell`, `input_gate`, `forget_gate`, `cell_gate` (what the input gate lets in)
            and `output_gate`; a GRU `reset_gate`, `update_gate` and `new_gate` (what the update gate lets in). Step t
            is the step of the input, also in the reverse direction; steps after the end of a shorter sample are NaN.
        lengths: how many steps each sample has, `(batch,)`.
        settings: every option as used.
        checks: `"difference"`: the largest between these states and what the module itself returned, `(batch,)`.
    """

    layer: str
    kind: str
    states: dict[str, dict[str, torch.Tensor]]
    lengths: torch.Tensor
    settings: dict[str, Any]
    checks: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What is known of every unit at every step."""
        return tuple(next(iter(self.states.values())))

    def of(self, quantity: str, layer: int = 0, *, reverse: bool = False) -> torch.Tensor:
        """One quantity `(batch, time, unit)`.

        Args:
            quantity: such as `"hidden"` or `"forget_gate"`.
            layer: which of the stacked layers.
            reverse: whether the backward direction is asked for.

        Raises:
            RecordError: when there is no such layer, direction or quantity.
        """
        run = f"layer {layer}{' reverse' if reverse else ''}"
        if run not in self.states:
            raise RecordError(f"{self.kind} {self.layer!r} has no {run!r}. There are: {', '.join(self.states)}.")
        if quantity not in self.states[run]:
            known = self.states[run]
            raise RecordError(
                f"a {self.kind} has no {quantity!r}.{suggestion(quantity, known)} There are: {', '.join(known)}."
            )
        return self.states[run][quantity]

    def saturation(self, margin: float = 0.1) -> dict[str, dict[str, tuple[float, float]]]:
        """Run -> gate -> the share of its values below `margin` and above `1 - margin`.

        Karpathy, Johnson & Li 2015, Visualizing and understanding recurrent networks, sec. 4.2.

        Args:
            margin: how near to 0 or 1 a gate counts as shut or open.
        """
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for run, parts in self.states.items():
            found[run] = {}
            for name in (name for name in parts if name in GATES):
                values = parts[name][~parts[name].isnan()]
                found[run][name] = (
                    float((values < margin).double().mean()),
                    float((values > 1 - margin).double().mean()),
                )
        return found

    def numpy(self) -> Any:
        """Run -> quantity -> its numpy array."""
        return {run: {name: as_array(values) for name, values in parts.items()} for run, parts in self.states.items()}

    def summary(self) -> list[tuple[str, str]]:
        """Layer, size, quantities and how well they agree with the module's own output."""
        first = next(iter(self.states.values()))["hidden"]
        batch, steps, units = first.shape
        rows = [("layer", self.layer), ("kind", self.kind), ("runs", ", ".join(self.states))]
        rows.append(("size", f"batch {batch}, steps {steps}, units {units}"))
        rows.append(("quantities", ", ".join(self.quantities)))
        return rows + [(name, numbers(check)) for name, check in self.checks.items()]
